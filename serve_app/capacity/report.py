"""Findings as text and as JSON. Pure."""

import json
from dataclasses import asdict
from typing import Any

from serve_app.capacity.figures import Figures
from serve_app.capacity.knee import Slo
from serve_app.capacity.simulation import System
from serve_app.capacity.study import Findings

_COLUMNS = {
    "done/s": "throughput",
    "TTFT p50 s": "ttft_p50",
    "TTFT p95 s": "ttft_p95",
    "ITL p95 s": "itl_p95",
    "waiting": "waiting",
    "running": "running",
}


def text(findings: Findings) -> str:
    """The table, both knees side by side, the advice, and what is doubtful."""
    slo = findings.question.slo
    lines = [*_fitted(findings.system), "", *_heads()]
    beside = list(findings.beside)
    measured: list[Figures | None] = list(findings.measured) or [None] * len(beside)
    lines += [_row(seen, foreseen, slo) for seen, foreseen in zip(measured, beside, strict=True)]
    lines += ["", *_knees(findings), ""]
    if (advice := findings.advice) is not None:
        lines += [
            f"for {advice.rate:.3g} requests/s at {findings.question.headroom:.0%} of the knee:",
            f"  replicas                {advice.replicas}  (knee {advice.knee:.3g}, one alone {advice.knee_each:.3g} requests/s)",
            f"  max_ongoing_requests    {advice.max_ongoing_requests}",
            f"  target_ongoing_requests {advice.target_ongoing_requests}",
            f"  workers                 {advice.workers}",
        ]
    return "\n".join([*lines, *(f"note: {warning}" for warning in findings.warnings)])


def as_json(findings: Findings) -> str:
    """Everything, to be read by programs; `replica` is what --replica takes."""
    question = findings.question
    values: dict[str, Any] = {
        "model": question.workload.model,
        "workload": asdict(question.workload),
        "slo": asdict(question.slo),
        "pace": asdict(question.pace),
        "replica": findings.system.replica.as_json(),
        "replicas": findings.system.replicas,
        "max_ongoing_requests": findings.system.max_ongoing,
        "max_queued_requests": findings.system.max_queued,
        "predicted_knee": findings.predicted_knee,
        "measured_knee": findings.measured_knee,
        "measured": [asdict(step) for step in findings.measured],
        "predicted": [asdict(step) for step in findings.beside],
        "curve": [asdict(step) for step in findings.curve],
        "advice": asdict(findings.advice) if findings.advice else None,
        "warnings": list(findings.warnings),
    }
    return json.dumps(values, indent=1)


def _fitted(system: System) -> list[str]:
    replica = system.replica
    prefill = f", {replica.prefill_token_s * 1e6:.0f} µs a further prompt token" if replica.prefill_token_s else ""
    return [
        f"{system.replicas} replica(s), at most {system.max_ongoing} requests on each; n requests on a replica:",
        f"  first token  {replica.first_s * 1e3:.1f} + {replica.first_each_s * 1e3:.2f} (n-1) ms{prefill}",
        f"  each token   {replica.step_s * 1e3:.1f} + {replica.step_each_s * 1e3:.2f} (n-1) ms",
    ]


def _heads() -> list[str]:
    return [
        f"{'load/s':>8} | {' | '.join(f'{title:^14}' for title in _COLUMNS)} | SLO",
        f"{'':8} | {' | '.join(['  meas.  pred.'] * len(_COLUMNS))} |",
    ]


def _row(seen: Figures | None, foreseen: Figures, slo: Slo) -> str:
    cells = [
        f"{'–' if seen is None else format(getattr(seen, name), '.3g'):>6} {getattr(foreseen, name):>7.3g}"  # noqa: RUF001
        for name in _COLUMNS.values()
    ]
    judged = seen or foreseen
    return f"{foreseen.offered:8.3g} | {' | '.join(cells)} | {'held' if slo.strain(judged) <= 1 else 'missed'}"


def _knees(findings: Findings) -> list[str]:
    predicted, measured = findings.predicted_knee, findings.measured_knee
    if not findings.measured:
        return [f"knee: predicted {_rate(predicted)}"]
    apart = f" ({predicted / measured - 1:+.1%})" if predicted and measured else ""
    return [f"knee: measured {_rate(measured)}, predicted {_rate(predicted)}{apart}"]


def _rate(knee: float | None) -> str:
    return "not within this sweep" if knee is None else f"{knee:.3g} requests/s"
