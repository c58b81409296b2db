"""The embedding model in four forms: as packaged (int8 storage), in float32, with products in int8 (the default), and
dynamically quantised.

    python bench/embeddings.py [--rounds 40]

Prints milliseconds a text (one thread, one text at a time, rounds interleaved so that all meet the same noise), and what
the form changes: the cosine to float32, decisions at 0.92 that flip over the pairs of bench/data, and how far the
vector of a text moves when it is embedded in a batch of texts of other lengths.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import quantize_dynamic
from tokenizers import Tokenizer

from serve_app.int8_products import with_int8_products
from serve_app.model_files import PACKAGED_EMBEDDER, resolve_embedding

LENGTHS = (16, 64, 256)  # tokens
THRESHOLD = 0.92
PAIRS = [Path(__file__).with_name("data") / f"{name}_pairs.jsonl" for name in ("adversarial", "blind", "own")]


def main() -> None:
    """Make the forms, measure them, print the table."""
    parser = argparse.ArgumentParser(description="forms of the embedding model; see bench/embeddings.py")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    files = resolve_embedding(PACKAGED_EMBEDDER)
    with tempfile.TemporaryDirectory() as folder:
        float32, products, dynamic = (Path(folder) / f"{name}.onnx" for name in ("float32", "products", "dynamic"))
        _make_forms(files.model, float32, dynamic)
        products.write_bytes(with_int8_products(files.model) or b"")
        paths = {"int8 storage": files.model, "float32": float32, "int8 products": products, "dynamic int8": dynamic}
        forms = {name: _session(path) for name, path in paths.items()}
        tokenizer = Tokenizer.from_file(str(files.tokenizer))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        _report(forms, {name: path.stat().st_size / 2**20 for name, path in paths.items()}, tokenizer, options.rounds)


def _make_forms(packaged: Path, float32: Path, dynamic: Path) -> None:
    """The packaged model stores weights as int8 and multiplies in float32: undo the storage, then quantise that anew."""
    model = onnx.load(str(packaged))
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        # A stored weight is an int8 tensor, cast to float and multiplied by its scale.
        if node.op_type == "Cast" and node.input[0] in known and known[node.input[0]].dtype == np.int8:
            known[node.output[0]] = known[node.input[0]].astype(np.float32)
        elif node.op_type == "Mul" and all(name in known for name in node.input):
            weights = known[node.output[0]] = known[node.input[0]] * known[node.input[1]]
            model.graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    alive = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(alive)
    onnx.save(model, str(float32))
    quantize_dynamic(str(float32), str(dynamic))


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _vectors(session: Any, rows: list[list[int]]) -> Any:
    longest = max(map(len, rows))
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    hidden = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})[0]
    mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _report(forms: dict[str, Any], sizes: dict[str, float], tokenizer: Any, rounds: int) -> None:
    word = tokenizer.encode("word", add_special_tokens=False).ids
    head, tail = tokenizer.encode("").ids
    rows = {length: [head, *(word * (length - 2)), tail] for length in LENGTHS}
    taken: dict[tuple[str, int], list[float]] = {}
    for number in range(-2, rounds):
        for name, session in forms.items():
            for length, row in rows.items():
                started = time.perf_counter()
                _vectors(session, [row])
                if number >= 0:  # the first rounds warm up
                    taken.setdefault((name, length), []).append((time.perf_counter() - started) * 1000)
    pairs = [json.loads(line) for path in PAIRS for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [tokenizer.encode(pair[side]).ids for pair in pairs for side in "ab"]
    alone = {name: np.concatenate([_vectors(session, [row]) for row in texts]) for name, session in forms.items()}
    heads = ["form", "MiB", *(f"{n} tokens, ms" for n in LENGTHS), "least cosine to float32", f"flips at {THRESHOLD}"]
    print(f"| {' | '.join([*heads, 'least cosine, batch to alone'])} |")
    print("|---" * (len(LENGTHS) + 5) + "|")
    for name, session in forms.items():
        medians = " | ".join(f"{statistics.median(taken[name, length]):.1f}" for length in LENGTHS)
        vectors, exact = alone[name], alone["float32"]
        agree = ((vectors[::2] * vectors[1::2]).sum(1) >= THRESHOLD) == ((exact[::2] * exact[1::2]).sum(1) >= THRESHOLD)
        batched = np.concatenate([_vectors(session, texts[start : start + 16]) for start in range(0, len(texts), 16)])
        print(
            f"| {name} | {sizes[name]:.0f} | {medians} | {(vectors * exact).sum(1).min():.4f} "
            f"| {int((~agree).sum())} of {len(agree)} | {(batched * vectors).sum(1).min():.4f} |"
        )


if __name__ == "__main__":
    main()
