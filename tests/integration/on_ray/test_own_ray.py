"""What `aifactory doctor` finds out about a Ray cluster of the operator's own."""

import socket

import pytest
import ray

from serve_app.local.own_ray import probe

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_a_cluster_that_lets_us_in(local_ray: None) -> None:
    assert probe(ray.get_runtime_context().gcs_address) is None


def test_what_listens_but_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        assert probe(address, timeout_s=15) == f"{address}: no Ray cluster answers there within 15 s"


@pytest.mark.parametrize(
    ("address", "told"), [("127.0.0.1:1", "refused"), ("nowhere", "nowhere: "), ("127.0.0.1:99999", "99999: ")]
)
def test_a_wrong_address_is_told(address: str, told: str) -> None:
    assert told in (probe(address) or "")
