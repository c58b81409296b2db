"""A run as JSON, for the queue."""

import base64
import dataclasses
from typing import Any, Final

import numpy as np
import orjson

from serve_app.runs import CachePolicy, Question, Run

VERSION: Final = 1
_NEW: Final = ("rag", "corpus")  # left out where unset: a worker of the version before does not know them


def encode_run(run: Run) -> bytes:
    """The JSON form: every field of the run but key_id, the embedding as base64 of little-endian float32."""
    fields = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    for name in ("dagster_run_id", "traceparent"):
        if fields[name] is None:
            del fields[name]  # most runs have none, and a worker of the version before knows no such field
    del fields["key_id"]  # the log knows who is charged
    question = dataclasses.asdict(run.question)
    fields["question"] = {k: v for k, v in question.items() if v is not None or k not in _NEW}
    fields["cache"] = dataclasses.asdict(run.cache)
    if run.embedding is not None:
        fields["embedding"] = base64.b64encode(np.asarray(run.embedding, dtype="<f4").tobytes()).decode()
    return orjson.dumps({"v": VERSION, **fields})


def decode_run(raw: bytes) -> Run:
    """The inverse of encode_run; embeddings come back as the nearest float32. Raises ValueError for anything else."""
    try:
        fields: dict[str, Any] = orjson.loads(raw)
        version = fields.pop("v")
        if version != VERSION:
            raise ValueError(f"run has version {version}, this reader knows {VERSION}")
        embedding = fields.pop("embedding")
        run = Run(
            question=Question(**fields.pop("question")),
            cache=CachePolicy(**fields.pop("cache")),
            embedding=None if embedding is None else np.frombuffer(base64.b64decode(embedding), dtype="<f4").tolist(),
            **fields,
        )
    except (orjson.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"not a run: {error}") from error
    if not isinstance(run.trace_id, str) or not isinstance(run.deadline, (int, float)):
        raise ValueError("not a run: trace_id must be text and deadline a number")
    return run
