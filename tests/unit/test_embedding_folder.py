"""An embedding model from a folder: what its configuration files say is what is done."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer, models

from serve_app.embeddings import OnnxEmbedder
from serve_app.model_files import PACKAGED_EMBEDDER, ModelError, check_sha256, resolve_embedding

PACKAGED = resolve_embedding(PACKAGED_EMBEDDER)
NORMALIZE = {"idx": 2, "type": "sentence_transformers.models.Normalize"}
POOL = {"idx": 1, "type": "sentence_transformers.models.Pooling"}
TEXT = "Where is the river Rhine?"


def written(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def a_folder(folder: Path, *, nested: bool = False) -> Path:
    model = folder / "onnx" / "model.onnx" if nested else folder / "model.onnx"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.symlink_to(PACKAGED.model)
    (folder / "tokenizer.json").symlink_to(PACKAGED.tokenizer)
    return folder


@contextmanager
def opened(folder: Path) -> Iterator[OnnxEmbedder]:
    # As in token_vectors, to which these are held.
    embedder = OnnxEmbedder(resolve_embedding(str(folder)), "own", workers=1, int8_products=False)
    try:
        yield embedder
    finally:
        embedder.close()


def token_vectors(text: str) -> Any:
    """What the model itself gives, special tokens included: (tokens, 384)."""
    tokenizer = Tokenizer.from_file(str(PACKAGED.tokenizer))
    tokenizer.no_padding()
    ids = np.asarray([tokenizer.encode(text).ids], np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return onnxruntime.InferenceSession(str(PACKAGED.model)).run(None, feed)[0][0]


@pytest.mark.parametrize(
    ("mode", "pooled"),
    [
        ("pooling_mode_mean_tokens", lambda hidden: hidden.mean(axis=0)),
        ("pooling_mode_cls_token", lambda hidden: hidden[0]),
        ("pooling_mode_max_tokens", lambda hidden: hidden.max(axis=0)),
        ("pooling_mode_lasttoken", lambda hidden: hidden[-1]),
    ],
)
async def test_token_vectors_are_pooled_as_the_folder_says(tmp_path: Path, mode: str, pooled: Any) -> None:
    written(a_folder(tmp_path), "1_Pooling/config.json", {"word_embedding_dimension": 384, mode: True, "include_prompt": True})
    written(tmp_path, "modules.json", [POOL])
    wanted = pooled(token_vectors(TEXT))
    with opened(tmp_path) as embedder:
        [raw] = await embedder.embed([TEXT], unit=False)
        [unit] = await embedder.embed([TEXT])
    np.testing.assert_allclose(raw, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(unit, wanted / np.linalg.norm(wanted), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("modules", "length_one"), [(None, True), ([POOL, NORMALIZE], True), ([POOL], False)])
async def test_vectors_are_normalised_as_the_folder_says(tmp_path: Path, modules: Any, length_one: bool) -> None:
    a_folder(tmp_path, nested=True)
    if modules is not None:
        written(tmp_path, "modules.json", modules)
    with opened(tmp_path) as embedder:
        [vector] = await embedder.embed([TEXT], unit=False)
    assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-4) == length_one


@pytest.mark.parametrize(
    ("name", "content", "limit"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 12}, 12),
        ("tokenizer_config.json", {"model_max_length": 20}, 20),
        ("tokenizer_config.json", {"model_max_length": 10**30}, 256),
        ("config.json", {"max_position_embeddings": 66, "model_type": "xlm-roberta"}, 64),
        ("config.json", {"max_position_embeddings": 64, "model_type": "bert"}, 64),
    ],
)
async def test_the_longest_text_is_the_folders(tmp_path: Path, name: str, content: Any, limit: int) -> None:
    written(a_folder(tmp_path), name, content)
    with opened(tmp_path) as embedder:
        assert embedder.max_tokens == limit
        fits = "word " * (limit - 2)
        short, cut, shorter = await embedder.embed([fits, fits + "and more", "word " * (limit - 3)])
    assert short == cut
    assert short != shorter


async def test_the_folders_prompt_stands_before_every_text(tmp_path: Path) -> None:
    plain, asked = a_folder(tmp_path / "plain"), a_folder(tmp_path / "asked")
    written(asked, "config_sentence_transformers.json", {"prompts": {"query": "query: "}, "default_prompt_name": "query"})
    with opened(plain) as without, opened(asked) as with_prompt:
        assert await with_prompt.embed([TEXT]) == await without.embed([f"query: {TEXT}"])


def test_a_tokenizer_without_special_tokens_or_unknown_ones_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to(PACKAGED.model)
    Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(str(tmp_path / "tokenizer.json"))
    with opened(tmp_path) as embedder:
        assert (embedder.dimensions, embedder.count_tokens("abab"), embedder.has_unknown("ab")) == (384, 2, False)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_sqrt_len_tokens": True}, "pooling by mean_sqrt_len; known is one of mean"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, "cls and max"),
        ("config.json", [1], "holds a list, not a dict"),
    ],
)
def test_a_folder_that_asks_for_the_unknown_is_refused(tmp_path: Path, name: str, content: Any, told: str) -> None:
    written(a_folder(tmp_path), name, content)
    with pytest.raises(ModelError, match=told):
        resolve_embedding(str(tmp_path))


def test_files_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    (tmp_path / "tokenizer.json").symlink_to(PACKAGED.tokenizer)
    with pytest.raises(ModelError, match=f"{tmp_path}: the embedding model cannot be loaded"):
        OnnxEmbedder(resolve_embedding(str(tmp_path)), "own")


def test_the_hash_of_a_folders_model_is_checked_where_it_is_known(tmp_path: Path) -> None:
    a_folder(tmp_path)
    with pytest.raises(ModelError, match="correct embedding_sha256"):
        resolve_embedding(str(tmp_path), "0" * 64)
    with pytest.raises(ModelError) as refused:
        check_sha256(tmp_path / "model.onnx", "0" * 64)
    real = str(refused.value).split("sha256 is ")[1][:64]
    assert resolve_embedding(str(tmp_path), real).model == tmp_path / "model.onnx"
