"""After `up`: one direct question and one debate, so that a newcomer sees both work, then where everything is."""

import time
from collections.abc import Iterable

from serve_app.local.client import Piece, ask, debate, stack_settings
from serve_app.local.progress import Progress
from serve_app.local.state import StackState

QUESTION = "What is the capital of France?"
_MAX_TOKENS = 64


def run_demo(state: StackState, progress: Progress) -> None:
    """Ask the question on both routes and print the answers. Raises ApiError."""
    model = stack_settings(state).models[0].model_id
    progress.note(f'\nDemo: "{QUESTION}"')
    started = time.monotonic()
    text, _ = _collect(ask(state, model, QUESTION, temperature=0, max_tokens=_MAX_TOKENS))
    progress.note(f"  direct, {model} ({time.monotonic() - started:.1f} s): {text}")
    started = time.monotonic()
    text, winner = _collect(debate(state, QUESTION, max_tokens=_MAX_TOKENS))
    told = f", won by {winner}" if winner else ""
    progress.note(f"  debate{told} ({time.monotonic() - started:.1f} s): {text}")


def summary(state: StackState, new_key: str | None) -> str:
    """Addresses, the key and how to stop."""
    lines = ["", f"  API            {state.origin}/v1"]
    if state.ray_ports is not None:
        lines.append(f"  Ray dashboard  {ray_dashboard(state)}")
    lines.append(f"  Dagster        {dagster_url(state)}")
    if new_key is not None:
        lines.append(f"  API key        {new_key}  (shown once; kept in {state.api_key_file})")
    else:
        lines.append(f"  API key        in {state.api_key_file}")
    lines += ["", "  aifactory status    what runs", "  aifactory down      stop everything (data stays; --purge removes it)"]
    return "\n".join(lines)


def ray_dashboard(state: StackState) -> str | None:
    """The Ray dashboard's address; None on a cluster that is not ours."""
    return f"http://{state.reach_host}:{state.ray_ports.dashboard}" if state.ray_ports else None


def dagster_url(state: StackState) -> str:
    """The address of Dagster's UI."""
    return f"http://{state.reach_host}:{state.dagster_port}"


def _collect(pieces: Iterable[Piece]) -> tuple[str, str | None]:
    text, winner = "", None
    for piece in pieces:
        if piece.facts is not None:
            winner = (piece.facts.get("debate") or {}).get("winner")
        elif piece.task is None:
            text += piece.text
    return text.strip(), winner
