"""The curves as a PNG. Needs matplotlib: the optional extra `capacity`."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve_app.capacity.figures import Figures
from serve_app.capacity.study import Findings


class PlotError(RuntimeError):
    """There is nothing to draw with."""


def check_plotting() -> None:
    """Raises PlotError when matplotlib is missing; to be asked before a long measurement, not after it."""
    if find_spec("matplotlib") is None:
        raise PlotError("matplotlib is missing: pip install -e '.[capacity]' in the clone, or use --no-plot")


def draw(findings: Findings, path: Path) -> None:
    """Throughput, time to first token, time between tokens and queueing against offered load."""
    check_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2, 2)
    slo, workload = findings.question.slo, findings.question.workload
    _curves(axes[0][0], findings, "throughput, requests/s", {"done": lambda step: step.throughput})
    top = max(step.offered for step in findings.curve)
    axes[0][0].plot([0, top], [0, top], color="0.7", linewidth=1, label="offered")
    first = {"p50": lambda step: step.ttft_p50, "p95": lambda step: step.ttft_p95}
    _curves(axes[0][1], findings, "time to first token, s", first, limit=slo.ttft_p95)
    between = {"p50": lambda step: step.itl_p50, "p95": lambda step: step.itl_p95}
    _curves(axes[1][0], findings, "time between tokens, s", between, limit=slo.itl_p95)
    waiting = {"before the first token": lambda step: step.waiting, "after it": lambda step: step.running}
    _curves(axes[1][1], findings, "mean number of requests", waiting)
    for axis in axes.flat:
        axis.set_xlabel("offered load, requests/s")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    system = findings.system
    figure.suptitle(
        f"{workload.model}: {system.replicas} replica(s) of at most {system.max_ongoing} requests, "
        f"{workload.output_tokens} tokens an answer"
    )
    figure.savefig(path, dpi=110)


def _curves(
    axis: Any, findings: Findings, label: str, values: dict[str, Callable[[Figures], float]], *, limit: float | None = None
) -> None:
    for number, (name, value) in enumerate(values.items()):
        _line(axis, findings.curve, value, "-", f"C{number}", f"{name}, predicted")
        _line(axis, findings.measured, value, "o", f"C{number}", f"{name}, measured")
    if limit is not None:
        axis.axhline(limit, color="C3", linewidth=1, linestyle=":", label="objective (p95)")
    for knee, style, name in ((findings.predicted_knee, "--", "predicted"), (findings.measured_knee, "-.", "measured")):
        if knee is not None:
            axis.axvline(knee, color="0.35", linewidth=1, linestyle=style, label=f"{name} knee {knee:.3g}/s")
    axis.set_ylabel(label)


def _line(axis: Any, steps: Sequence[Figures], value: Callable[[Figures], float], style: str, colour: str, label: str) -> None:
    if steps:
        axis.plot([step.offered for step in steps], [value(step) for step in steps], style, color=colour, label=label)
