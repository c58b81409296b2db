"""A debate on the terminal: the drafts side by side while they grow, then the answer."""

from collections.abc import Iterable

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from serve_app.local.client import Piece

_Drafts = dict[tuple[int, str], tuple[int, str]]  # round and task → attempt and text


def show_debate(console: Console, pieces: Iterable[Piece]) -> str:
    """Draw the pieces as they come. Returns the answer's text."""
    drafts: _Drafts = {}
    answer = ""
    winner: str | None = None
    with Live(console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        for piece in pieces:
            if piece.facts is not None:
                winner = (piece.facts.get("debate") or {}).get("winner")
            elif piece.task is not None:
                attempt, said = drafts.get((piece.round, piece.task), (piece.attempt, ""))
                kept = said if attempt == piece.attempt else ""
                drafts[piece.round, piece.task] = (piece.attempt, kept + piece.text)
            else:
                answer += piece.text
            live.update(_columns(console, drafts, winner))
    if not console.is_terminal:
        console.line()  # on a terminal the live display has ended its last line itself
    console.print(Panel(Text(answer), title=f"answer ({winner})" if winner else "answer", border_style="green"))
    return answer


def _columns(console: Console, drafts: _Drafts, winner: str | None) -> Columns:
    width = max(24, console.width // max(1, len({task for _, task in drafts})) - 1)
    panels = [
        Panel(
            Text(text),
            title=task if number == 1 else f"{task}, round {number}",
            width=width,
            border_style="green" if winner == task else "dim",
        )
        for (number, task), (_, text) in sorted(drafts.items())
    ]
    return Columns(panels, padding=0, expand=False)
