"""The artifact of a debate, as Dagster's catalogue shows it."""

from typing import Any

from dagster import AssetKey, AssetMaterialization, AssetSpec, MetadataValue

from dagster_project.resources import DebateRun
from serve_app.runs import Answer

DEBATE_ANSWER = AssetKey("debate_answer")

debate_answer = AssetSpec(
    DEBATE_ANSWER,
    description="The answer of a debate. Its text is in Postgres (idempotency_log), under the trace_id shown here.",
    group_name="debates",
)


def materialization(debate: DebateRun, answer: Answer, *, page: str) -> AssetMaterialization:
    """What is told of one answer: numbers and names, never the texts of prompt and answer. `page`: the API's, of the run."""
    told = answer.debate
    question = debate.run.question
    metadata: dict[str, Any] = {
        "trace_id": debate.run.trace_id,
        "run": MetadataValue.url(page) if "://" in page else MetadataValue.path(page),
        "req_id": debate.run.req_id,
        "project": debate.run.project,
        "take": debate.take,
        "winner": answer.winner or "",
        "question_chars": len(question.last_user_text or ""),
        "answer_chars": len(answer.text),
        "usage": MetadataValue.json(answer.usage.model_dump(exclude_none=True)),
    }
    if told is not None:
        metadata |= {
            "winning_task": told.winner or "",
            "strategy": told.strategy,
            "rounds": told.rounds,
            "stop_reason": told.stop_reason,
            "votes": MetadataValue.json([vote.model_dump(mode="json") for vote in told.votes]),
            "tasks": MetadataValue.json([task.model_dump(exclude_none=True) for task in told.tasks]),
        }
    return AssetMaterialization(asset_key=DEBATE_ANSWER, description=_in_short(answer), metadata=metadata)


def _in_short(answer: Answer) -> str:
    if answer.debate is None or answer.debate.winner is not None:
        return f"won by {answer.winner}"
    return f"merged by {answer.winner}"
