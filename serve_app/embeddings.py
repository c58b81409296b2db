"""Text to vectors with ONNX Runtime, off the event loop.

One text at a time, on one thread: so a text has the same vector alone and in any batch, which the cache relies on.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from serve_app.errors import BadRequest, Overloaded
from serve_app.model_files import resolve_embedding
from serve_app.settings import Settings

_MAX_TOKENS: Final = 256
_MAX_PENDING: Final = 16_384  # texts waiting for a worker
_TINY: Final = 1e-12


class OnnxEmbedder:
    """A sentence-transformers model of the BERT family: mean pooling, L2 norm. Close it when done."""

    def __init__(
        self, model_path: Path, tokenizer_path: Path, model_id: str, *, workers: int = 2, cache_size: int = 2048
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # two threads gain nothing on texts of this length
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer_path))
        # The file's own truncation and padding are for training.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._first, self._last = self._tokenizer.encode("").ids
        self._unknown = self._tokenizer.token_to_id("[UNK]")
        self._vocabulary = self._tokenizer.get_vocab_size()
        self._model_id = model_id
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()  # as float32: a list of floats takes eight times the room
        self._cache_size = cache_size
        self._pending = 0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="embed")
        self._dimensions = len(self._vector([self._first, self._last]))

    @property
    def model_id(self) -> str:
        """The id in /v1/models and /v1/embeddings."""
        return self._model_id

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._dimensions

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that count, the two special ones included; `embed` leaves out what is beyond."""
        return _MAX_TOKENS

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text. Raises errors.Overloaded when too many texts wait already."""
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._cache}
        found = {key: self._recall(key) for key in keys if key not in missing}
        made = await self._run([(self._embed_text, text) for text in missing.values()])
        for key, vector in zip(missing, made, strict=True):
            found[key] = vector
            self._remember(key, vector)
        return [found[key] for key in keys]

    async def embed_ids(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """The same for texts given as token ids of this model's tokenizer. Raises BadRequest for an id it does not have."""
        for ids in token_ids:
            if any(not 0 <= token < self._vocabulary for token in ids):
                raise BadRequest(f"input: token ids of {self._model_id} are 0 to {self._vocabulary - 1}", param="input")
        return await self._run([(self._vector, self._framed(ids)) for ids in token_ids])

    def count_tokens(self, text: str) -> int:
        """Tokens of the whole text, the two special ones included; more than `max_tokens` means it would be cut."""
        return len(self._tokenizer.encode(text))

    def has_unknown(self, text: str) -> bool:
        """Whether the text has a token the model does not know: its vector then says little."""
        return self._unknown in self._tokenizer.encode(text).ids

    def close(self) -> None:
        """Drop what waits and end the workers."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._cache.clear()

    async def _run(self, jobs: Sequence[tuple[Any, Any]]) -> list[list[float]]:
        if self._pending + len(jobs) > _MAX_PENDING:
            raise Overloaded(f"{self._pending} texts wait for an embedding already; try again in 1 s", retry_after_s=1)
        loop = asyncio.get_running_loop()
        self._pending += len(jobs)
        try:
            return list(await asyncio.gather(*(loop.run_in_executor(self._pool, work, argument) for work, argument in jobs)))
        finally:
            self._pending -= len(jobs)

    def _embed_text(self, text: str) -> list[float]:
        return self._vector(self._framed(self._tokenizer.encode(text, add_special_tokens=False).ids))

    def _framed(self, ids: Sequence[int]) -> list[int]:
        inner = [token for token in ids if token not in (self._first, self._last)]
        return [self._first, *inner[: _MAX_TOKENS - 2], self._last]

    def _vector(self, ids: Sequence[int]) -> list[float]:
        tokens = np.asarray([ids], dtype=np.int64)
        feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
        hidden = self._session.run(None, {name: feed[name] for name in self._inputs})[0][0]
        mean = hidden.mean(axis=0)
        unit: list[float] = (mean / max(float(np.linalg.norm(mean)), _TINY)).tolist()
        return unit

    def _recall(self, key: bytes) -> list[float]:
        self._cache.move_to_end(key)
        return list(np.frombuffer(self._cache[key], np.float32).tolist())

    def _remember(self, key: bytes, vector: list[float]) -> None:
        if self._cache_size == 0:
            return
        self._cache[key] = np.asarray(vector, np.float32).tobytes()
        self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)


def load_embedder(settings: Settings) -> OnnxEmbedder:
    """The configured embedder. Raises model_files.ModelError when its files are missing or damaged. Takes about a second."""
    files = resolve_embedding(settings.embedding_source)
    return OnnxEmbedder(
        files.model,
        files.tokenizer,
        settings.embedding_model,
        workers=settings.embedding_workers,
        cache_size=settings.embedding_cache_size,
    )
