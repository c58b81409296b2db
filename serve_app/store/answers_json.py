"""Answers as JSON values and back, without loss."""

from typing import Any

from serve_app.events import ChoiceEnd, DebateReport, RagReport, RecallReport, Usage
from serve_app.runs import Answer


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """A JSON object from which answer_from_json makes an equal answer."""
    return {
        "model": answer.model,
        "messages": list(answer.messages),
        "ends": [end.model_dump(exclude_none=True) for end in answer.ends],
        "usage": answer.usage.model_dump(),
        "winner": answer.winner,
        "debate": answer.debate.model_dump(mode="json") if answer.debate else None,
        "cache": answer.cache.model_dump() if answer.cache else None,
        "logprobs": list(answer.logprobs),
        "extra": answer.extra,
        **({"rag": answer.rag.model_dump(mode="json")} if answer.rag else {}),
    }


def answer_from_json(value: dict[str, Any]) -> Answer:
    """The inverse of answer_to_json. Raises KeyError or pydantic's ValidationError for anything else."""
    return Answer(
        model=value["model"],
        messages=tuple(value["messages"]),
        ends=tuple(ChoiceEnd.model_validate(end) for end in value["ends"]),
        usage=Usage.model_validate(value["usage"]),
        winner=value["winner"],
        debate=DebateReport.model_validate(value["debate"]) if value["debate"] is not None else None,
        cache=RecallReport.model_validate(value["cache"]) if value.get("cache") is not None else None,
        logprobs=tuple(value["logprobs"]),
        extra=value["extra"],
        rag=RagReport.model_validate(value["rag"]) if value.get("rag") is not None else None,
    )
