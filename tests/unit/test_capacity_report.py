"""What a study prints and draws."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.capacity import plot
from serve_app.capacity.figures import Figures
from serve_app.capacity.knee import Slo
from serve_app.capacity.plot import PlotError, draw
from serve_app.capacity.replica_model import ReplicaModel
from serve_app.capacity.report import as_json, text
from serve_app.capacity.simulation import System
from serve_app.capacity.study import Findings, Question, study
from serve_app.capacity.workload import Pace, Workload
from serve_app.local.capacity import capacity

REPLICA = ReplicaModel(first_s=0.1, first_each_s=0, step_s=0.02, step_each_s=0.005)
SYSTEM = System(REPLICA, replicas=2, max_ongoing=4)
QUESTION = Question(Workload("m", 64, 16), Slo(ttft_p95=1.0, itl_p95=0.1), Pace(requests=200), rate=8)


def predict(question: Question = QUESTION, system: System = SYSTEM) -> Findings:
    return asyncio.run(study(question, system, None, None, lambda line: None))


@pytest.fixture(scope="module")
def predicted() -> Findings:
    return predict()


def measured(findings: Findings, share: float) -> Findings:
    """As if a measurement had shown the predicted figures at loads lower by `share`."""
    seen: list[Figures] = [replace(step, offered=step.offered * share) for step in findings.beside]
    knee = findings.predicted_knee
    return replace(findings, measured=seen, measured_knee=knee * share if knee else None)


def test_a_prediction_alone_names_its_knee_and_its_advice(predicted: Findings) -> None:
    findings = predicted
    assert findings.predicted_knee is not None
    told = text(findings)
    assert f"predicted {findings.predicted_knee:.3g} requests/s" in told
    assert "measured" not in told.split("knee:")[1]
    assert findings.advice is not None
    assert f"replicas                {findings.advice.replicas}" in told
    assert "held" in told
    assert "missed" in told


def test_a_plan_does_not_overwrite_the_study_that_it_reads(
    predicted: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = Path("capacity.json")
    earlier.write_text(as_json(predicted))
    capacity(replica=earlier, ttft_p95=1.0, requests=20, plot=False)
    assert earlier.read_text() == as_json(predicted)
    assert json.loads(Path("capacity-plan.json").read_text())["replica"] == json.loads(earlier.read_text())["replica"]
    for out in ("capacity", "./capacity", str(tmp_path / "capacity")):
        with pytest.raises(RuntimeError, match="would overwrite the study"):
            capacity(replica=earlier, out=Path(out), plot=False)
    assert earlier.read_text() == as_json(predicted)


def test_prediction_and_measurement_stand_side_by_side(predicted: Findings) -> None:
    told = text(measured(predicted, 0.8))
    assert "(+25.0%)" in told


def test_an_objective_that_cannot_be_kept_is_a_note_not_a_crash() -> None:
    findings = predict(replace(QUESTION, slo=Slo(ttft_p95=0.05)))
    assert findings.advice is None
    assert "note: no advice: a lone request misses the objective" in text(findings)


def test_a_bent_fit_is_warned_of() -> None:
    bent = replace(SYSTEM, replica=replace(REPLICA, worst_miss=0.3, worst_level=4))
    assert "30% off the fitted line" in text(predict(system=bent))


def test_json_holds_the_replica_for_a_later_prediction(predicted: Findings) -> None:
    findings = predicted
    known = json.loads(as_json(findings))
    assert ReplicaModel.from_json(known["replica"]) == REPLICA
    assert known["predicted_knee"] == findings.predicted_knee
    assert len(known["predicted"]) == len(findings.beside)


def test_the_picture_is_a_png(tmp_path: Path, predicted: Findings) -> None:
    path = tmp_path / "study.png"
    draw(measured(predicted, 0.9), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(PlotError, match=r"\.\[capacity\]"):
        plot.check_plotting()
