"""Products with int8 weights: near what float32 gives, and only where the model is of the form that they are made for."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from serve_app import embeddings
from serve_app.embeddings import OnnxEmbedder
from serve_app.int8_products import with_int8_products
from serve_app.model_files import PACKAGED_EMBEDDER, resolve_embedding
from serve_app.telemetry import logger

INPUTS, OUTPUTS = 40, 12  # not a multiple of a block
NUMBERS = np.random.default_rng(5)
TEXTS = ("Paris", "What is the capital of France?", "How many of the bridges over the river are older than the town? " * 9)


A_BROKEN_NODE = b"\x3a\x03\x0a\x01\xff"  # graph { node } with a node that is none: a file that ends so cannot be parsed


def a_model(folder: Path, scale: np.ndarray, *, shared: bool = False, stored: str = "stored", scaled_by: str = "scale") -> Path:
    """x (1, INPUTS) times a stored int8 matrix; `shared`: the matrix is an output as well. The others are names."""
    values = NUMBERS.integers(-127, 128, (INPUTS, OUTPUTS), np.int8)
    nodes = [
        helper.make_node("Cast", [stored], ["plain"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["plain", scaled_by], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(values, stored), numpy_helper.from_array(scale.astype(np.float32), scaled_by)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, OUTPUTS])]
    if shared:
        outputs.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [INPUTS, OUTPUTS]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, INPUTS])
    graph = helper.make_graph(nodes, "product", [x], outputs, tensors)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def changed(path: Path, change: Callable[[Any], object]) -> Path:
    """The same file, with its graph changed."""
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
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
    taken = helper.make_tensor_value_info("taken", TensorProto.FLOAT, [INPUTS, OUTPUTS])
    branch = helper.make_graph([helper.make_node("Identity", ["weight"], ["taken"])], "branch", [], [taken])

    def branching(graph: Any) -> None:
        graph.initializer.append(numpy_helper.from_array(np.asarray(True), "always"))
        graph.node.append(helper.make_node("If", ["always"], ["same"], then_branch=branch, else_branch=branch))

    assert with_int8_products(changed(a_model(tmp_path, np.ones(())), branching)) is None


@pytest.mark.parametrize("names", [("weight_int8", "weight_scales"), ("weight_scales", "weight_int8")], ids="-".join)
def test_names_that_the_model_uses_itself_are_not_taken(tmp_path: Path, names: tuple[str, str]) -> None:
    path = a_model(tmp_path, NUMBERS.uniform(0.5, 2.0, (OUTPUTS,)), shared=True, stored=names[0], scaled_by=names[1])
    model = with_int8_products(path)
    assert model is not None
    tensors = [tensor.name for tensor in onnx.load_from_string(model).graph.initializer]
    assert len(set(tensors)) == len(tensors) == 4
    x = NUMBERS.standard_normal((1, INPUTS)).astype(np.float32)
    exact, near = result(str(path), x), result(model, x)
    np.testing.assert_allclose(near[0], exact[0], atol=0.02 * np.abs(exact[0]).max())
    np.testing.assert_array_equal(near[1], exact[1])


def test_weights_that_a_caller_may_give_are_left_alone(tmp_path: Path) -> None:
    def listed(graph: Any) -> None:
        for tensor in graph.initializer:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    assert with_int8_products(changed(a_model(tmp_path, np.ones(())), listed)) is None


def test_an_input_keeps_its_default(tmp_path: Path) -> None:
    def with_spare(graph: Any) -> None:
        graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "spare"))
        graph.input.append(helper.make_tensor_value_info("spare", TensorProto.FLOAT, [2]))

    model = with_int8_products(changed(a_model(tmp_path, np.ones(())), with_spare))
    assert model is not None
    assert [given.name for given in onnxruntime.InferenceSession(model).get_inputs()] == ["x"]


@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_a_model_with_any_data_beside_it_is_left_alone(tmp_path: Path, where: str) -> None:
    (tmp_path / "beside.bin").write_bytes(np.ones(OUTPUTS, np.float32).tobytes())
    beside = TensorProto(name="beside", data_type=TensorProto.FLOAT, dims=[OUTPUTS], data_location=TensorProto.EXTERNAL)
    beside.external_data.add(key="location", value="beside.bin")

    def with_sum(graph: Any) -> None:
        if where == "initializer":
            graph.initializer.append(beside)
        else:
            graph.node.append(helper.make_node("Constant", [], ["beside"], value=beside))
        graph.node.append(helper.make_node("Add", ["y", "beside"], ["sum"]))
        graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, OUTPUTS]))

    path = changed(a_model(tmp_path, np.ones(())), with_sum)
    assert with_int8_products(path) is None


@pytest.mark.parametrize("stored", [np.int8, np.float32], ids=["int8", "float32"])
def test_a_file_without_int8_is_not_parsed(tmp_path: Path, stored: type) -> None:
    def storing(graph: Any) -> None:
        graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((INPUTS, OUTPUTS), stored), "stored"))

    path = changed(a_model(tmp_path, np.ones(())), storing)
    path.write_bytes(path.read_bytes() + A_BROKEN_NODE)
    with nullcontext() if stored is np.float32 else pytest.raises(Exception, match="parsing"):
        assert with_int8_products(path) is None


@pytest.mark.parametrize("content", [b"", b"no model", b"\xff" * 100, b"\x3a\x7f\x2a"], ids=["empty", "text", "endless", "cut"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not an ONNX model|empty file"):
        with_int8_products(path)


@pytest.mark.parametrize("broken", [b"no model", None], ids=["a model that cannot be loaded", "no model"])
async def test_where_they_cannot_be_had_the_file_is_used(monkeypatch: pytest.MonkeyPatch, broken: bytes | None) -> None:
    def failing(file: Path) -> bytes:
        if broken is None:
            raise ValueError("a form that nobody knew")
        return broken

    monkeypatch.setattr(embeddings, "with_int8_products", failing)
    files, told, vectors = resolve_embedding(PACKAGED_EMBEDDER), [], []
    sink = logger.add(lambda line: told.append(str(line)), level="WARNING", format="{message}", backtrace=False)
    try:
        for int8_products in (False, True):
            embedder = OnnxEmbedder(files, "m", workers=1, int8_products=int8_products)
            vectors.append(await embedder.embed(TEXTS))
            embedder.close()
    finally:
        logger.remove(sink)
    assert vectors[0] == vectors[1]
    assert len(told) == 1
    assert "embedding_int8_products" in told[0]


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
