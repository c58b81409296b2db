"""Text to vectors with ONNX Runtime, off the event loop.

One text at a time, on one thread: so a text has the same vector alone and in any batch, which the cache relies on.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from serve_app.errors import BadRequest, Overloaded
from serve_app.int8_products import with_int8_products
from serve_app.model_files import EmbeddingFiles, ModelError, resolve_embedding
from serve_app.settings import Settings
from serve_app.telemetry import logger

_MAX_PENDING: Final = 16_384  # texts waiting for a worker
_TINY: Final = 1e-12


class OnnxEmbedder:
    """A transformer that gives a vector per token, pooled and normalised as its configuration says. Close it when done.

    `int8_products`: weights that the file stores as int8 are used as such, which is faster and takes half the memory. Where
    that fails, a warning says so and the file is used as it is.
    Raises ModelError for a model whose inputs or outputs it does not understand.
    """

    def __init__(
        self, files: EmbeddingFiles, model_id: str, *, workers: int = 2, cache_size: int = 2048, int8_products: bool = True
    ) -> None:
        try:
            self._session: Any = (_int8_session(files.model) if int8_products else None) or _session(str(files.model))
            self._tokenizer: Any = Tokenizer.from_file(str(files.tokenizer))
        except Exception as error:
            raise ModelError(f"{files.model.parent}: the embedding model cannot be loaded: {error}") from error
        self._files = files
        self._inputs = _known_inputs(self._session, files)
        self._output = _token_vectors(self._session, files)
        # The file's own truncation and padding are for training.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._head, self._tail = _special_ids(self._tokenizer)
        self._prompt_ids = list(self._tokenizer.encode(files.prompt, add_special_tokens=False).ids) if files.prompt else []
        self._unknown = _unknown_id(self._tokenizer)
        self._vocabulary = self._tokenizer.get_vocab_size()
        self._model_id = model_id
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()  # as float32: a list of floats takes eight times the room
        self._cache_size = cache_size
        self._in_flight: dict[bytes, asyncio.Future[list[float]]] = {}
        self._pending = 0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="embed")
        self._dimensions = len(self._vector(self._framed(self._tokenizer.encode("a", add_special_tokens=False).ids)))

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
        return self._files.max_tokens

    async def embed(self, texts: Sequence[str], *, unit: bool = True) -> list[list[float]]:
        """One vector per text. Raises errors.Overloaded when too many texts wait already.

        `unit`: of length one, whatever the model is meant to give. Otherwise as the model gives them.
        """
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        found = {key: self._recall(key) for key in keys if key in self._cache}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        self._make_room(sum(key not in self._in_flight for key in missing))
        # A text that another caller waits for is not embedded twice, and its vector is kept whoever gives up waiting.
        made = await asyncio.gather(*(asyncio.shield(self._begin(key, text)) for key, text in missing.items()))
        found |= dict(zip(missing, made, strict=True))
        if self._files.normalized or not unit:
            return [found[key] for key in keys]
        return [_of_length_one(found[key]) for key in keys]

    async def embed_ids(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Vectors as the model gives them, for texts as ids of its tokenizer. Raises BadRequest for an id it does not have."""
        for ids in token_ids:
            if any(not 0 <= token < self._vocabulary for token in ids):
                raise BadRequest(f"input: token ids of {self._model_id} are 0 to {self._vocabulary - 1}", param="input")
        self._make_room(len(token_ids))
        return list(await asyncio.gather(*(self._submit(self._vector, self._framed(ids)) for ids in token_ids)))

    def count_tokens(self, text: str) -> int:
        """Tokens of the whole text, the two special ones included; more than `max_tokens` means it would be cut."""
        return len(self._tokenizer.encode(text))

    def has_unknown(self, text: str) -> bool:
        """Whether the text has a token the model does not know: its vector then says little."""
        return self._unknown is not None and self._unknown in self._tokenizer.encode(text).ids

    def close(self) -> None:
        """Drop what waits and end the workers."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._cache.clear()

    def _make_room(self, texts: int) -> None:
        if self._pending + texts > _MAX_PENDING:
            raise Overloaded(f"{self._pending} texts wait for an embedding already; try again in 1 s", retry_after_s=1)

    def _begin(self, key: bytes, text: str) -> "asyncio.Future[list[float]]":
        if key not in self._in_flight:
            self._in_flight[key] = self._submit(self._embed_text, text)
            self._in_flight[key].add_done_callback(lambda done: self._embedded(key, done))
        return self._in_flight[key]

    def _embedded(self, key: bytes, done: "asyncio.Future[list[float]]") -> None:
        del self._in_flight[key]
        if not done.cancelled() and done.exception() is None:
            self._remember(key, done.result())

    def _submit(self, work: Callable[[Any], list[float]], argument: Any) -> "asyncio.Future[list[float]]":
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, argument)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: object) -> None:
        self._pending -= 1

    def _embed_text(self, text: str) -> list[float]:
        return self._vector(self._framed(self._tokenizer.encode(text, add_special_tokens=False).ids))

    def _framed(self, ids: Sequence[int]) -> list[int]:
        ids = list(ids)
        if self._head and ids[: len(self._head)] == self._head:
            ids = ids[len(self._head) :]  # a caller that counted in the special tokens
        if self._tail and ids[-len(self._tail) :] == self._tail:
            ids = ids[: -len(self._tail)]
        room = self._files.max_tokens - len(self._head) - len(self._tail)
        return [*self._head, *(self._prompt_ids + ids)[:room], *self._tail]

    def _vector(self, ids: Sequence[int]) -> list[float]:
        tokens = np.asarray([ids], dtype=np.int64)
        count = tokens.shape[1]
        feed = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "token_type_ids": np.zeros_like(tokens),
            "position_ids": np.arange(count, dtype=np.int64)[None, :],
        }
        hidden = self._session.run([self._output], {name: feed[name] for name in self._inputs})[0][0]
        match self._files.pooling:
            case "mean":
                pooled = hidden.mean(axis=0)
            case "cls":
                pooled = hidden[0]
            case "max":
                pooled = hidden.max(axis=0)
            case "lasttoken":
                pooled = hidden[-1]
        vector: list[float] = pooled.astype(np.float32).tolist()
        return _of_length_one(vector) if self._files.normalized else vector

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
    return OnnxEmbedder(
        resolve_embedding(settings.embedding_source, settings.embedding_sha256),
        settings.embedding_model,
        workers=settings.embedding_workers,
        cache_size=settings.embedding_cache_size,
        int8_products=settings.embedding_int8_products,
    )


def _int8_session(file: Path) -> Any | None:
    """A session with int8 products; None where there is nothing to gain, or where it cannot be had."""
    try:
        model = with_int8_products(file)
        return None if model is None else _session(model)
    except Exception as error:  # noqa: BLE001 - what only makes it faster must not be what keeps a model from use
        logger.opt(exception=error).warning(
            "the embedding model cannot be used with int8 products, its file is used as it is; "
            "set embedding_int8_products to false to skip the attempt",
            file=str(file),
        )
        return None


def _session(model: str | bytes) -> Any:
    """A session of a file, by its path, or of a model's bytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # two threads gain nothing on texts of this length
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _of_length_one(vector: Sequence[float]) -> list[float]:
    raw = np.asarray(vector, np.float32)
    unit: list[float] = (raw / max(float(np.linalg.norm(raw)), _TINY)).tolist()
    return unit


def _special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text."""
    framed, bare = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    before = next(n for n in range(len(framed) + 1) if framed[n : n + len(bare)] == bare)
    return framed[:before], framed[before + len(bare) :]


def _unknown_id(tokenizer: Any) -> int | None:
    """The id that stands for what the tokenizer cannot read; None for one that reads bytes, and so everything."""
    name = getattr(tokenizer.model, "unk_token", None) or next((t for t in ("[UNK]", "<unk>") if tokenizer.token_to_id(t)), None)
    return None if name is None else tokenizer.token_to_id(name)


def _known_inputs(session: Any, files: EmbeddingFiles) -> list[str]:
    names = [node.name for node in session.get_inputs()]
    strange = set(names) - {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
    if strange or "input_ids" not in names:
        raise ModelError(
            f"{files.model} takes {', '.join(names)}: not the inputs of a text encoder; export it for feature extraction"
        )
    return names


def _token_vectors(session: Any, files: EmbeddingFiles) -> str:
    """The output with one vector per token: (1, tokens, dimensions)."""
    outputs = {str(node.name): len(node.shape) for node in session.get_outputs()}
    for name in ("last_hidden_state", "token_embeddings", *outputs):
        if outputs.get(name) == 3:
            return name
    raise ModelError(f"{files.model} gives {', '.join(outputs)}: no vector per token; export it for feature extraction")
