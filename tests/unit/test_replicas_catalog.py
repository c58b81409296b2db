"""Which ids exist, and how an unknown one is answered."""

from pathlib import Path

import pytest

from serve_app.configured import AdapterConfig, ModelConfig
from serve_app.debates import resolve_model
from serve_app.errors import BadRequest, NotFound
from serve_app.replicas.catalog import Catalog, deployment_name


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    for name in ("law", "medicine.v2", ".hidden", "has space"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapters" / "no-config").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapters" / "spy").symlink_to(tmp_path / "secret")
    local = AdapterConfig(directory=str(tmp_path / "adapters"))
    return Catalog(
        [
            ModelConfig(model_id="small", source="x", engine_args={"max_model_len": 2048}, adapters=local),
            ModelConfig(model_id="large", source="x", adapters=AdapterConfig(directory="s3://bucket/adapters")),
        ]
    )


def test_cards_name_models_and_their_local_adapters(catalog: Catalog) -> None:
    cards = {card.model_id: card for card in catalog.cards()}
    assert list(cards) == ["small", "small:law", "small:medicine.v2", "large"]
    assert cards["small:law"].parent == "small"
    assert cards["small:law"].max_model_len == 2048
    assert cards["large"].max_model_len is None
    assert [name for name, card in cards.items() if card.any_adapter] == ["large"]
    assert catalog.known_ids() == ["small", "small:law", "small:medicine.v2", "large", "large:*"]


def test_an_id_resolves_to_its_model_and_adapter(catalog: Catalog) -> None:
    model, adapter = catalog.resolve("small:law")
    assert (model.model_id, adapter) == ("small", "law")
    assert catalog.resolve("large")[1] is None


def test_an_adapter_in_a_bucket_is_left_to_the_replica(catalog: Catalog) -> None:
    assert catalog.resolve("large:anything")[1] == "anything"


@pytest.mark.parametrize(
    "model_id",
    [
        "other",
        "",
        "small:",
        "small:nope",
        "small:../secret",
        "small:..",
        "small:no-config",
        "small:/etc",
        "large:a/b",
        "small:law:law",
        "small:spy",
        "large:..",
        "large:*",
    ],
)
def test_an_unknown_id_is_refused_with_the_known_ones(catalog: Catalog, model_id: str) -> None:
    with pytest.raises(NotFound, match=r"use one of: small, small:law, small:medicine\.v2, large, large:\*") as caught:
        catalog.resolve(model_id)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_an_adapter_may_be_added_while_running(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "adapters" / "new").mkdir()
    (tmp_path / "adapters" / "new" / "adapter_config.json").write_text('{"r": 8}')
    assert catalog.resolve("small:new")[1] == "new"


def test_the_gateway_lets_through_what_only_a_replica_can_tell(catalog: Catalog) -> None:
    known = catalog.known_ids()
    assert resolve_model("large", "anything", known) == resolve_model("large:anything", None, known) == ("large", "anything")
    assert resolve_model("small", "law", known) == resolve_model("small:law", "law", known) == ("small", "law")
    for model, adapter in (("small", "anything"), ("other", "law"), ("small:anything", None)):
        with pytest.raises(NotFound, match=r"known models: small, .*large:\*"):
            resolve_model(model, adapter, known)
    with pytest.raises(BadRequest, match="use one"):
        resolve_model("small:law", "medicine.v2", known)


def test_deployment_names_are_plain_and_distinct() -> None:
    assert deployment_name("llama-3.1_8b") == "model-llama-3.1_8b"
    assert deployment_name("org/model") != deployment_name("org-model")
    assert "/" not in deployment_name("org/model")
