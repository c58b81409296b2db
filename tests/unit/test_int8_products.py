"""Products with int8 weights: near what float32 gives, and only where the model is of the form that they are made for."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from serve_app.embeddings import OnnxEmbedder
from serve_app.int8_products import with_int8_products
from serve_app.model_files import PACKAGED_EMBEDDER, resolve_embedding

INPUTS, OUTPUTS = 40, 12  # not a multiple of a block
NUMBERS = np.random.default_rng(5)
TEXTS = ("Paris", "What is the capital of France?", "How many of the bridges over the river are older than the town? " * 9)


def a_model(folder: Path, scale: np.ndarray, *, shared: bool = False) -> Path:
    """x (1, INPUTS) times a stored int8 matrix; `shared`: the matrix is an output as well."""
    values = NUMBERS.integers(-127, 128, (INPUTS, OUTPUTS), np.int8)
    nodes = [
        helper.make_node("Cast", ["stored"], ["plain"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["plain", "scale"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(values, "stored"), numpy_helper.from_array(scale.astype(np.float32), "scale")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, OUTPUTS])]
    if shared:
        outputs.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [INPUTS, OUTPUTS]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, INPUTS])
    graph = helper.make_graph(nodes, "product", [x], outputs, tensors)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def result(model: Any, x: np.ndarray) -> Any:
    return onnxruntime.InferenceSession(model).run(None, {"x": x})


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (OUTPUTS,), (1, OUTPUTS)], ids=str)
def test_a_product_is_near_that_in_float32(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = a_model(tmp_path, NUMBERS.uniform(0.5, 2.0, shape))
    model = with_int8_products(path)
    assert model is not None
    assert operators(model) == ["MatMulNBits"]  # and nothing is left of what made the matrix
    x = NUMBERS.standard_normal((1, INPUTS)).astype(np.float32)
    (exact,), (near,) = result(str(path), x), result(model, x)
    assert not np.array_equal(near, exact), "the matrix was not used as int8 at all"
    np.testing.assert_allclose(near, exact, atol=0.02 * np.abs(exact).max())


def test_what_else_reads_the_matrix_still_can(tmp_path: Path) -> None:
    path = a_model(tmp_path, NUMBERS.uniform(0.5, 2.0, (OUTPUTS,)), shared=True)
    model = with_int8_products(path)
    assert model is not None
    x = np.ones((1, INPUTS), np.float32)
    np.testing.assert_array_equal(result(model, x)[1], result(str(path), x)[1])


def test_scales_of_the_inputs_are_left_alone(tmp_path: Path) -> None:
    assert with_int8_products(a_model(tmp_path, NUMBERS.uniform(0.5, 2.0, (INPUTS, 1)))) is None


def test_a_model_with_a_graph_within_is_left_alone(tmp_path: Path) -> None:
    path = a_model(tmp_path, np.ones(()))
    model = onnx.load(path)
    taken = helper.make_tensor_value_info("taken", TensorProto.FLOAT, [INPUTS, OUTPUTS])
    branch = helper.make_graph([helper.make_node("Identity", ["weight"], ["taken"])], "branch", [], [taken])
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "always"))
    model.graph.node.append(helper.make_node("If", ["always"], ["same"], then_branch=branch, else_branch=branch))
    onnx.save(model, path)
    assert with_int8_products(path) is None


async def test_vectors_of_the_packaged_model_hardly_move() -> None:
    files = resolve_embedding(PACKAGED_EMBEDDER)
    model = with_int8_products(files.model)
    assert model is not None
    assert operators(model).count("MatMulNBits") == 36  # six layers: query, key, value, their output, and two behind
    vectors = []
    for int8_products in (False, True):
        embedder = OnnxEmbedder(files, "m", workers=1, int8_products=int8_products)
        try:
            vectors.append(np.asarray(await embedder.embed(TEXTS)))
        finally:
            embedder.close()
    cosines = (vectors[0] * vectors[1]).sum(axis=1)
    assert cosines.min() > 0.998
    assert cosines.max() < 0.999999, "both are of one form"
