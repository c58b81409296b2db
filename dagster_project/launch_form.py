"""What may be filled in when a debate is launched from Dagster's UI: the config of the step `plan`.

Every field may be left out, and a run that came through the API has none of them: its question is in the queue.
The names are those of the API's x_debate; the gateway's rules for it are checked when the run is launched.
"""

from typing import Any, Final

from dagster import Array, Bool, Enum, EnumValue, Field, Float, Int, Shape, String


def _optional(kind: Any, description: str) -> Field:
    return Field(kind, is_required=False, description=description)


_STRATEGY: Final = Enum("Strategy", [EnumValue(name) for name in ("judge", "vote", "consensus", "synthesize")])
_TASK: Final = Shape(  # type: ignore[no-untyped-call]
    {
        "task": Field(String, description="the debater's label, one capital letter"),
        "model": _optional(String, "its model; the first one served if left out"),
        "adapter": _optional(String, "LoRA adapter of that model"),
        "system": _optional(String, "system prompt of this debater"),
        "temperature": _optional(Float, "0 to 2"),
    }
)

PLAN_CONFIG: Final[dict[str, Any]] = {
    "question": _optional(String, "what is asked; needed for a launch from the UI"),
    "project": _optional(String, "the project whose debate it is (default: default)"),
    "timeout_s": _optional(Float, "deadline of the whole debate in seconds (default: request_timeout_s)"),
    "strategy": _optional(_STRATEGY, "how the answer is found (default: judge)"),
    "rounds": _optional(Int, "1 to 3 (default: 1)"),
    "tasks": _optional(Array(_TASK), "the debaters (default: the preset of the settings)"),
    "judge_model": _optional(String, "who judges or writes (default: the preset's)"),
    "quorum": _optional(Int, "drafts that suffice for a round (default: all)"),
    "token_budget": _optional(Int, "completion tokens of the whole debate (default: no bound)"),
    "drafts": _optional(Bool, "stream the drafts too (default: true)"),
}
