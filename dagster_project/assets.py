"""The artifact of a debate, as Dagster's catalogue shows it."""

from dagster import AssetKey, AssetMaterialization, AssetSpec, MetadataValue

from dagster_project.resources import DebateRun
from serve_app.runs import Answer

DEBATE_ANSWER = AssetKey("debate_answer")

debate_answer = AssetSpec(
    DEBATE_ANSWER,
    description="The winning answer of a debate. Its text is in Postgres (idempotency_log), under the trace_id shown here.",
    group_name="debates",
)


def materialization(debate: DebateRun, answer: Answer) -> AssetMaterialization:
    """What is told of one answer: numbers and names, never the texts of prompt and answer."""
    told = answer.debate
    question = debate.run.question
    return AssetMaterialization(
        asset_key=DEBATE_ANSWER,
        description=f"won by {answer.winner}",
        metadata={
            "trace_id": debate.run.trace_id,
            "req_id": debate.run.req_id,
            "project": debate.run.project,
            "winner": answer.winner or "",
            "winning_task": (told.winner if told else None) or "",
            "stop_reason": told.stop_reason if told else "",
            "question_chars": len(question.last_user_text or ""),
            "answer_chars": len(answer.text),
            "usage": MetadataValue.json(answer.usage.model_dump(exclude_none=True)),
            "tasks": MetadataValue.json([t.model_dump(exclude_none=True) for t in told.tasks] if told else []),
        },
    )
