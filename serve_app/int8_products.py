"""Products with weights that an ONNX model stores as int8, computed in int8 instead of float32. See docs/adr/0028.

Works on the form in which the packaged embedding model keeps a weight: an int8 matrix (inputs, outputs), cast to float32
and multiplied by one scale for each output. Other models stay as they are.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

_BLOCK: Final = 32  # inputs that share a scale of their own: more are faster, and move the vectors further
_ZERO: Final = 128  # MatMulNBits counts from 0 to 255
_IN_INT8: Final = 4  # its accuracy_level: the other side is rounded to int8 too, one scale for each block
_DOMAIN: Final = "com.microsoft"


def with_int8_products(file: Path) -> bytes | None:
    """The model with its int8 weights used as such; None when it has none, or keeps them in files beside it.

    Raises what onnx raises for a file that is no model.
    """
    model = onnx.load(str(file), load_external_data=False)
    weights = dict(_weights(model.graph))
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        return None  # a graph within reads by name what no input tells of
    used = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    if not used:
        return None
    for name in dict.fromkeys(node.input[1] for node in used):
        model.graph.initializer.extend(_in_blocks(name, *weights[name]))
    for node in used:
        inputs, outputs = weights[node.input[1]][0].shape
        said = {"K": inputs, "N": outputs, "bits": 8, "block_size": _BLOCK, "accuracy_level": _IN_INT8}
        taken = [node.input[0], *_names(node.input[1])]
        node.CopyFrom(helper.make_node("MatMulNBits", taken, list(node.output), name=node.name, domain=_DOMAIN, **said))
    if all(known.domain != _DOMAIN for known in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    _drop_unused(model.graph)
    return bytes(model.SerializeToString())


def _weights(graph: Any) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Each matrix that is made of a stored int8 one, by name: its values (inputs, outputs) and scales (outputs)."""
    stored = {tensor.name: tensor for tensor in graph.initializer if not tensor.external_data}
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


def _names(weight: str) -> tuple[str, str]:
    return f"{weight}_int8", f"{weight}_scales"


def _in_blocks(name: str, values: np.ndarray, scale: np.ndarray) -> list[Any]:
    """The initializers that MatMulNBits wants: bytes (outputs, blocks, block), scales (outputs x blocks)."""
    inputs, outputs = values.shape
    blocks = -(-inputs // _BLOCK)
    raised = np.full((outputs, blocks * _BLOCK), _ZERO, np.uint8)
    raised[:, :inputs] = (values.T.astype(np.int16) + _ZERO).astype(np.uint8)
    of_values, of_scales = _names(name)
    return [
        numpy_helper.from_array(raised.reshape(outputs, blocks, _BLOCK), of_values),
        numpy_helper.from_array(np.repeat(scale, blocks), of_scales),
    ]


def _drop_unused(graph: Any) -> None:
    """Leave out what made the float32 matrices. The session would compute them first, and keep them."""
    wanted = {node.name for node in graph.output}
    kept: list[Any] = []
    for node in reversed(graph.node):  # a graph lists nodes behind what they read
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
