"""Products with weights that an ONNX model stores as int8, computed in int8 instead of float32. See docs/adr/0028.

Works on the form in which the packaged embedding model keeps a weight: an int8 matrix (inputs, outputs), cast to float32
and multiplied by one scale for each output. Other models stay as they are.
"""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import uses_external_data

_BLOCK: Final = 32  # inputs that share a scale of their own: more are faster, and move the vectors further
_ZERO: Final = 128  # MatMulNBits counts from 0 to 255
_IN_INT8: Final = 4  # its accuracy_level: the other side is rounded to int8 too, one scale for each block
_DOMAIN: Final = "com.microsoft"
_LONGEST_NUMBER: Final = 10  # bytes, of protobuf's numbers with a variable length
_FIXED: Final = {1: 8, 5: 4}  # protobuf's kinds of numbers with a fixed length: bytes


def with_int8_products(file: Path) -> bytes | None:
    """The model with its int8 weights used as such; None when it has none that can be, or keeps any data in files beside it.

    Of a file without int8 weights only the headers are read, however large it is. One with them is read as a whole: this
    takes some six times its size in memory, for a moment. A weight that is an input of the model too, as older exports
    list all of them, is left alone: a caller may give another. Raises ValueError or what onnx raises for a file that is no
    model.
    """
    if not _stores_int8(file):
        return None
    model = onnx.load(str(file), load_external_data=False)
    if not _stands_alone(model):
        return None
    weights = dict(_weights(model.graph))
    used = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    if not used:
        return None
    taken, stored = _names(model.graph), {}
    for name in dict.fromkeys(node.input[1] for node in used):
        tensors = _in_blocks(*weights[name], _new_name(f"{name}_int8", taken), _new_name(f"{name}_scales", taken))
        stored[name] = [tensor.name for tensor in tensors]
        model.graph.initializer.extend(tensors)
    for node in used:
        inputs, outputs = weights[node.input[1]][0].shape
        said = {"K": inputs, "N": outputs, "bits": 8, "block_size": _BLOCK, "accuracy_level": _IN_INT8}
        read = [node.input[0], *stored[node.input[1]]]
        node.CopyFrom(helper.make_node("MatMulNBits", read, list(node.output), name=node.name, domain=_DOMAIN, **said))
    if all(known.domain != _DOMAIN for known in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    _drop_unused(model.graph)
    return bytes(model.SerializeToString())


def _stores_int8(file: Path) -> bool:
    """Whether a tensor that the model stores is of int8. onnx itself would read all of the weights to tell."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(
            kind == onnx.TensorProto.INT8
            for graph in _values(data, range(len(data)), onnx.ModelProto.GRAPH_FIELD_NUMBER)
            for tensor in _values(data, graph, onnx.GraphProto.INITIALIZER_FIELD_NUMBER)
            for kind in _values(data, tensor, onnx.TensorProto.DATA_TYPE_FIELD_NUMBER)
        )


def _values(data: mmap.mmap, message: range, field: int) -> Iterator[Any]:
    """The values of one field of a protobuf message, which lies at `message`: a number, or where it lies. Skips the others."""
    at = message.start
    while at < message.stop:
        tag, at = _varint(data, at)
        value: int | range
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
            case 2:
                length, at = _varint(data, at)
                value, at = range(at, at + length), at + length
            case 1 | 5 as kind:
                value, at = range(at, at + _FIXED[kind]), at + _FIXED[kind]
            case kind:
                raise ValueError(f"not an ONNX model: no protobuf has a field of kind {kind}, as at byte {at}")
        if tag >> 3 == field:
            yield value


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of protobuf's variable length, seven bits a byte, and where it ends."""
    value = 0
    for place, byte in enumerate(data[at : at + _LONGEST_NUMBER]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError(f"not an ONNX model: no number of protobuf at byte {at}")


def _stands_alone(model: Any) -> bool:
    """Whether all data is in the file, and nothing but inputs of nodes tells what is read: a graph within reads by name."""
    nodes = [node for body in (model.graph, *model.functions) for node in body.node]
    said = [attribute for node in nodes for attribute in node.attribute]
    sparse = [*model.graph.sparse_initializer, *(s for a in said for s in (a.sparse_tensor, *a.sparse_tensors))]
    tensors = [*model.graph.initializer, *(t for a in said for t in (a.t, *a.tensors))]
    tensors += [tensor for each in sparse for tensor in (each.values, each.indices)]
    return not any(map(uses_external_data, tensors)) and not any(a.HasField("g") or a.graphs for a in said)


def _weights(graph: Any) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Each matrix that is made of a stored int8 one, by name: its values (inputs, outputs) and scales (outputs)."""
    given = {value.name for value in graph.input}
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in given}
    cast = {
        node.output[0]: stored[node.input[0]]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in stored and stored[node.input[0]].data_type == onnx.TensorProto.INT8
    }
    for node in graph.node:
        if node.op_type == "Mul" and node.input[0] in cast and node.input[1] in stored:
            values, scale = numpy_helper.to_array(cast[node.input[0]]), numpy_helper.to_array(stored[node.input[1]])
            if values.ndim == 2 and scale.dtype == np.float32 and _is_by_output(scale.shape, values.shape[1]):
                yield node.output[0], (values, np.broadcast_to(scale.reshape(-1), values.shape[1:]))


def _is_by_output(scale: Sequence[int], outputs: int) -> bool:
    return tuple(scale) in {(), (1,), (1, 1), (outputs,), (1, outputs)}


def _names(graph: Any) -> set[str]:
    """Every name that the graph gives to a value."""
    told = [*graph.input, *graph.output, *graph.value_info, *graph.initializer, *(s.values for s in graph.sparse_initializer)]
    return {value.name for value in told} | {name for node in graph.node for name in (*node.input, *node.output)}


def _new_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _in_blocks(values: np.ndarray, scale: np.ndarray, of_values: str, of_scales: str) -> list[Any]:
    """The initializers that MatMulNBits wants: bytes (outputs, blocks, block), scales (outputs x blocks)."""
    inputs, outputs = values.shape
    blocks = -(-inputs // _BLOCK)
    raised = np.full((outputs, blocks * _BLOCK), _ZERO, np.uint8)
    raised[:, :inputs] = (values.T.astype(np.int16) + _ZERO).astype(np.uint8)
    return [
        numpy_helper.from_array(raised.reshape(outputs, blocks, _BLOCK), of_values),
        numpy_helper.from_array(np.repeat(scale, blocks), of_scales),
    ]


def _drop_unused(graph: Any) -> None:
    """Leave out what made the float32 matrices. The session would compute them first, and keep them."""
    wanted = {value.name for value in (*graph.output, *graph.input)}  # an initializer may be the default of an input
    for at in reversed(range(len(graph.node))):  # a graph lists nodes behind what they read
        if wanted.intersection(graph.node[at].output):
            wanted.update(graph.node[at].input)
        else:
            del graph.node[at]
    for at in reversed(range(len(graph.initializer))):
        if graph.initializer[at].name not in wanted:
            del graph.initializer[at]
