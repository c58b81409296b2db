"""From what somebody wants of a debate to its full specification; the same for the API and for Dagster's UI."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from serve_app.configured import DEBATE_MODEL_ID, DebateConfig, DebateTaskConfig, Strategy, least_budget
from serve_app.errors import BadRequest, NotFound
from serve_app.settings import Settings


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DebateTaskField(_Closed):
    """One debater of x_debate."""

    task: str = Field(pattern=r"^[A-Z]$")
    model: str | None = None
    adapter: str | None = None
    system: str | None = Field(None, max_length=8000)
    temperature: float | None = Field(None, ge=0, le=2)


class DebateField(_Closed):
    """x_debate: how the debate is held. What is not set comes from the preset."""

    tasks: list[DebateTaskField] | None = Field(None, min_length=2, max_length=8)
    rounds: int | None = Field(None, ge=1, le=3)
    strategy: Strategy | None = None
    judge_model: str | None = None
    quorum: int | None = Field(None, ge=1)
    token_budget: int | None = Field(None, ge=1)
    drafts: bool = True

    @field_validator("tasks")
    @classmethod
    def _labels(cls, tasks: list[DebateTaskField] | None) -> list[DebateTaskField] | None:
        labels = [t.task for t in tasks or ()]
        if len(set(labels)) != len(labels):
            raise ValueError("task labels must be unique")
        return tasks


def resolve_model(model: str, adapter: str | None, known: Sequence[str], *, param: str = "model") -> tuple[str, str | None]:
    """Base model and adapter of an id like `base` or `base:adapter`. Raises NotFound that lists the known ids.

    `base:*` among the known ids: any adapter may exist, only a replica can tell.
    `param`: the field that names the model, for the error.
    """
    base, _, named = model.partition(":")
    if named and adapter and named != adapter:
        raise BadRequest(
            f"model names adapter {named!r} but x_adapter says {adapter!r}; use one", param="x_adapter", code="invalid_value"
        )
    adapter = adapter or named or None
    wanted = f"{base}:{adapter}" if adapter else base
    if wanted not in known and not (adapter and f"{base}:*" in known):
        shown = ", ".join([*known, DEBATE_MODEL_ID])
        raise NotFound(f"model {wanted!r} does not exist; known models: {shown}", param=param, code="model_not_found")
    return base, adapter


def resolve_debate(
    field: DebateField, settings: Settings, known: Sequence[str], *, model: str | None = None, adapter: str | None = None
) -> dict[str, Any]:
    """The full specification of the debate: `field` over the preset, models resolved and checked.

    `model` and `adapter` of a request are the debaters' default, so that {"model": "x", "x_route": "workflow"} debates
    with x. Raises BadRequest or NotFound that name the field.
    """
    preset, asked = settings.debate, model or settings.models[0].model_id
    chosen: Sequence[DebateTaskField | DebateTaskConfig] = field.tasks or preset.tasks
    tasks: list[dict[str, Any]] = []
    for number, task in enumerate(chosen):
        wanted = task.adapter or (adapter if not task.model else None)
        named_by = f"x_debate.tasks[{number}]" if field.tasks and (task.model or task.adapter) else "model"
        base, lora = resolve_model(task.model or asked, wanted, known, param=named_by)
        tasks.append({"task": task.task, "model": base, "adapter": lora, "system": task.system, "temperature": task.temperature})
    judge_named_by = "x_debate.judge_model" if field.judge_model else "model"
    judge, judge_adapter = resolve_model(field.judge_model or preset.judge_model or asked, None, known, param=judge_named_by)
    return {
        "tasks": tasks,
        "rounds": field.rounds or preset.rounds,
        "strategy": field.strategy or preset.strategy,
        "judge_model": judge,
        "judge_adapter": judge_adapter,
        "drafts": field.drafts,
        "quorum": _quorum(field, preset, len(tasks)),
        "straggler_s": preset.straggler_s,
        "token_budget": _token_budget(field, preset, len(tasks)),
        "closing_share": preset.closing_share,
    }


def _quorum(field: DebateField, preset: DebateConfig, tasks: int) -> int | None:
    if field.quorum is not None and field.quorum > tasks:
        raise BadRequest(
            f"x_debate.quorum is {field.quorum}, but the debate has {tasks} tasks; use 1 to {tasks}",
            param="x_debate.quorum",
            code="invalid_value",
        )
    # The preset's quorum was meant for the preset's tasks.
    return field.quorum or (None if preset.quorum is None else min(preset.quorum, tasks))


def _token_budget(field: DebateField, preset: DebateConfig, tasks: int) -> int | None:
    budget, least = field.token_budget or preset.token_budget, least_budget(tasks)
    if budget is not None and budget < least:
        raise BadRequest(
            f"x_debate.token_budget {budget} is too small for {tasks} tasks; use at least {least}",
            param="x_debate.token_budget",
            code="invalid_value",
        )
    return budget
