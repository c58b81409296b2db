"""The command line where no stack runs: exit codes and messages."""

import json
import subprocess
import sys
from pathlib import Path

from serve_app.local.processes import child_environment


def _aifactory(state_dir: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = child_environment(
        {"AIFACTORY_STATE_DIR": str(state_dir), "AIFACTORY_CONFIG": "simulated", "COLUMNS": "200", **variables}
    )
    return subprocess.run(
        [sys.executable, "-m", "serve_app.cli", *arguments], env=env, capture_output=True, text=True, timeout=60
    )


def test_status_of_nothing_is_3_with_every_field(tmp_path: Path) -> None:
    done = _aifactory(tmp_path / "none", "status", "--json")
    assert done.returncode == 3
    values = json.loads(done.stdout)
    fields = {"ready", "api", "api_key_file", "ray_dashboard", "dagster", "nats", "postgres", "state_dir", "replicas"}
    assert set(values) == fields
    assert (values["ready"], values["replicas"], values["state_dir"]) == (False, [], str(tmp_path / "none"))


def test_down_of_nothing_succeeds_and_makes_nothing(tmp_path: Path) -> None:
    done = _aifactory(tmp_path / "none", "down")
    assert (done.returncode, "nothing runs" in done.stdout) == (0, True)
    assert not (tmp_path / "none").exists()


def test_chat_without_a_stack_names_the_cure(tmp_path: Path) -> None:
    done = _aifactory(tmp_path, "chat", "hello")
    assert done.returncode == 1
    assert "scripts/up" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_settings_are_named_without_a_traceback(tmp_path: Path) -> None:
    done = _aifactory(tmp_path, "up", AIFACTORY_PORT="abc")
    assert done.returncode == 1
    assert "port: Input should be a valid integer" in done.stderr
    assert "Traceback" not in done.stderr


def test_unreachable_own_postgres_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    done = _aifactory(
        tmp_path / "s",
        "up",
        "--no-demo",
        AIFACTORY_POSTGRES_DSN="postgresql://u:p@127.0.0.1:1/d",
        AIFACTORY_NATS_URL="nats://127.0.0.1:1",
        AIFACTORY_RAY_ADDRESS="127.0.0.1:1",
    )
    assert done.returncode == 1
    assert "AIFACTORY_POSTGRES_DSN) does not answer" in done.stderr
    left = {p.name for p in (tmp_path / "s").iterdir()}
    assert left == {"logs"}


def test_doctor_names_a_cure_for_a_closed_port(tmp_path: Path) -> None:
    done = _aifactory(tmp_path, "doctor", AIFACTORY_NATS_URL="nats://127.0.0.1:1")
    assert done.returncode == 1
    assert "FAIL NATS: 127.0.0.1:1" in done.stdout
    assert "check the address" in done.stdout


def test_doctor_names_a_cure_for_a_ray_address_where_nothing_listens(tmp_path: Path) -> None:
    done = _aifactory(tmp_path, "doctor", AIFACTORY_RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert "FAIL Ray: 127.0.0.1:1" in done.stdout
    assert "AIFACTORY_RAY_ADDRESS" in done.stdout
