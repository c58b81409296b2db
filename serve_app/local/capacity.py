"""`aifactory capacity`: a capacity study of the stack that runs here, of any API, or of a replica fitted earlier."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from serve_app.capacity.advice import Debates
from serve_app.capacity.cluster_metrics import ClusterMetrics
from serve_app.capacity.knee import Slo
from serve_app.capacity.load import Load, connect
from serve_app.capacity.plot import check_plotting, draw
from serve_app.capacity.replica_model import ReplicaModel
from serve_app.capacity.report import as_json, text
from serve_app.capacity.simulation import System
from serve_app.capacity.study import Findings, Question, Tell, measure_replica, study
from serve_app.capacity.workload import Pace, Workload
from serve_app.local import client, deployment
from serve_app.local.stack import running
from serve_app.local.state import StackState, load_state
from serve_app.replicas.catalog import deployment_name
from serve_app.settings import Settings

_OUT = "where the results go: OUT.json and OUT.png; capacity if left out, capacity-plan with --replica"


@dataclass(frozen=True)
class _Place:
    """What is measured: an API, and what stands behind it. Without an API there is only the model of a replica."""

    api: str | None
    key: str
    replicas: int
    max_ongoing: int
    max_queued: int
    model: str
    metrics: ClusterMetrics | None
    fitted: ReplicaModel | None


def capacity(
    model: Annotated[str | None, typer.Option(help="model id; the first configured one if left out")] = None,
    ttft_p95: Annotated[float | None, typer.Option(help="objective: time to first token, p95, seconds")] = None,
    itl_p95: Annotated[float | None, typer.Option(help="objective: time between tokens, p95, seconds")] = None,
    rate: Annotated[float | None, typer.Option(help="requests/s to plan for; what runs now if left out")] = None,
    debates: Annotated[float, typer.Option(help="debates/s to plan for besides")] = 0.0,
    headroom: Annotated[float, typer.Option(min=0.05, max=1, help="part of the knee that is planned with")] = 0.8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="length of a prompt")] = 64,
    output_tokens: Annotated[int, typer.Option(min=2, help="length of an answer")] = 64,
    loads: Annotated[str | None, typer.Option(help="loads to try, requests/s: 1,2,4; around the knee if left out")] = None,
    requests: Annotated[int, typer.Option(min=1, help="requests that end a step")] = 150,
    step_s: Annotated[float, typer.Option(min=1, help="seconds that a step lasts at most")] = 30.0,
    level_s: Annotated[float, typer.Option(min=0.1, help="seconds of each concurrency while a replica is fitted")] = 8.0,
    seed: Annotated[int, typer.Option(help="seed of arrivals and prompts")] = 0,
    predict_only: Annotated[bool, typer.Option("--predict-only", help="fit a replica, but do not sweep the system")] = False,
    replica: Annotated[Path | None, typer.Option(help="a JSON file of an earlier study: nothing needs to run")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="replicas; those of the running stack if left out")] = None,
    max_ongoing: Annotated[int | None, typer.Option(min=1, help="max_ongoing_requests of a replica, likewise")] = None,
    api: Annotated[str | None, typer.Option(help="base URL (with /v1) of a system that was not started here")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="file that holds its API key")] = None,
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="draw OUT.png (needs the extra aifactory[capacity])")] = True,
) -> None:
    """Find the load at which the objective breaks, predicted and measured, and advise replicas, limits and workers."""
    if plot:
        check_plotting()
    target = _target(out, replica)
    settings = _settings()
    place = _place(settings, replica, api, api_key_file, model, replicas, max_ongoing)
    question = Question(
        workload=Workload(place.model, prompt_tokens, output_tokens, seed),
        slo=Slo(ttft_p95, itl_p95),
        pace=Pace(requests=requests, least_s=min(8.0, step_s), most_s=step_s),
        level_s=level_s,
        loads=_loads(loads),
        rate=rate,
        headroom=headroom,
        debates=_debates(settings, debates),
    )
    console = Console(stderr=True)
    with console.status("…") as shown:
        findings = asyncio.run(_study(place, question, predict_only, lambda line: shown.update(line)))
    Console().print(text(findings), highlight=False, markup=False, soft_wrap=True)
    written = [target.with_name(target.name + ".json")]
    written[0].write_text(as_json(findings) + "\n")
    if plot:
        written.append(target.with_name(target.name + ".png"))
        draw(findings, written[1])
    console.print(f"written: {', '.join(map(str, written))}", highlight=False, markup=False, soft_wrap=True)


def _target(out: Path | None, replica: Path | None) -> Path:
    """Where the results go. Raises RuntimeError when that is the study that is read."""
    target = out or Path("capacity" if replica is None else "capacity-plan")
    if replica is not None and target.with_name(target.name + ".json").resolve() == replica.resolve():
        raise RuntimeError(f"--out {target} would overwrite the study {replica} that --replica reads: give another --out")
    return target


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        raise RuntimeError(f"the settings are not right: {error}") from error


async def _study(place: _Place, question: Question, predict_only: bool, tell: Tell) -> Findings:
    if place.api is None:
        return await study(question, _system(place, place.fitted), None, None, tell)
    async with connect(place.api, place.key, question.workload) as load:
        fitted = place.fitted or await _fit(load, question, place, tell)
        return await study(question, _system(place, fitted), None if predict_only else load, place.metrics, tell)


async def _fit(load: Load, question: Question, place: _Place, tell: Tell) -> ReplicaModel:
    try:
        return await measure_replica(load, question, place.replicas, place.max_ongoing, tell)
    except ValueError as error:
        seen = "; ".join(f"{count}x {what}" for what, count in load.errors.items())
        raise RuntimeError(f"{error}: {seen or 'no request failed'}") from error


def _system(place: _Place, fitted: ReplicaModel | None) -> System:
    if fitted is None:
        raise RuntimeError("no system to measure and no --replica to predict from")
    return System(fitted, place.replicas, place.max_ongoing, place.max_queued)


def _place(
    settings: Settings,
    replica: Path | None,
    api: str | None,
    key_file: Path | None,
    model: str | None,
    replicas: int | None,
    max_ongoing: int | None,
) -> _Place:
    if replica is not None:
        return _from_file(replica, model, replicas, max_ongoing)
    if api is not None:
        if key_file is None or model is None:
            raise RuntimeError("--api needs --api-key-file and --model as well")
        return _Place(api, key_file.read_text().strip(), replicas or 1, max_ongoing or 64, -1, model, None, None)
    state_dir = settings.state_dir.resolve()
    state = load_state(state_dir)
    if state is None or not running(state):
        raise RuntimeError(f"no stack runs in {state_dir}: start it with scripts/up, or give --api or --replica")
    return _from_stack(state, model, replicas, max_ongoing)


def _from_file(path: Path, model: str | None, replicas: int | None, max_ongoing: int | None) -> _Place:
    try:
        known = json.loads(path.read_text())
        fitted = ReplicaModel.from_json(known["replica"])
        shape = (replicas or int(known["replicas"]), max_ongoing or int(known["max_ongoing_requests"]))
        return _Place(None, "", *shape, int(known["max_queued_requests"]), model or str(known["model"]), None, fitted)
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"{path} is not a study that `aifactory capacity` wrote: {error}") from error


def _from_stack(state: StackState, model_id: str | None, replicas: int | None, max_ongoing: int | None) -> _Place:
    models = {model.model_id: model for model in client.stack_settings(state).models}
    model = models.get(model_id) if model_id else next(iter(models.values()), None)
    if model is None:
        raise RuntimeError(f"the stack has no model {model_id!r}; it has {', '.join(models)}")
    if replicas is None:
        replicas = model.replicas or sum(row["model"] == model.model_id for row in deployment.replica_stats(state))
    return _Place(
        api=f"{state.origin}/v1",
        key=state.api_key_file.read_text().strip(),
        replicas=max(1, replicas),
        max_ongoing=max_ongoing or model.max_ongoing_requests,
        max_queued=model.max_queued_requests,
        model=model.model_id,
        metrics=_metrics(state, deployment_name(model.model_id)),
        fitted=None,
    )


def _metrics(state: StackState, name: str) -> ClusterMetrics | None:
    """Ray's list of metrics endpoints, which it keeps in its own folder; None on a cluster that is not ours."""
    path = state.run_dir / "ray" / "prom_metrics_service_discovery.json"
    if not path.exists():
        return None
    targets = [target for group in json.loads(path.read_text()) for target in group["targets"]]
    return ClusterMetrics([f"http://{target}/metrics" for target in targets], name)


def _debates(settings: Settings, rate: float) -> Debates | None:
    if rate <= 0:
        return None
    preset = settings.debate
    # A judge reads the answers in both orders; a writer writes once; a vote or a consensus asks nobody.
    closing = {"judge": 2, "synthesize": 1}.get(preset.strategy, 0)
    return Debates(rate, len(preset.tasks), preset.rounds, closing, settings.runs_per_worker)


def _loads(loads: str | None) -> tuple[float, ...]:
    try:
        found = tuple(float(load) for load in loads.split(",")) if loads else ()
    except ValueError:
        found = (0.0,)
    if any(load <= 0 for load in found):
        raise RuntimeError(f"--loads takes numbers above 0 with commas between, such as 1,2,4; got {loads!r}")
    return found
