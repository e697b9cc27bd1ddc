"""What half can hold: the nodes of a graph whose numbers leave it, and the weights that lose digits in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from resedge.artifacts import Artifact
from resedge.errors import GraphRefused
from resedge.export.halfreport import WeightsInHalf
from resedge.protocols import Array, Float32Array

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST: Final = float(np.finfo(np.float16).max)  # 65504
SMALLEST_NORMAL: Final = float(np.finfo(np.float16).smallest_normal)  # 6.1e-5
LIMIT: Final = LARGEST / 2  # of an activation: an image in service may go further than those that were seen
RESHAPING: Final = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_PASSING = RESHAPING | {"MaxPool"}


def wide_nodes(model: Artifact, largest: Mapping[str, float]) -> frozenset[str]:
    """Return the nodes that `write_half` must keep float32, by the magnitudes of their tensors.

    These are the nodes that write or read a tensor beyond `LIMIT`, half of FP16's largest number: what was
    seen is a sample, and an image in service may reach further. A reader is one of them, since it would
    read infinity. What leaves a Relu, MaxPool, Flatten or its like has entered it, and all but Relu pass the
    largest number on, so a tensor that is not named is judged by one beside it. A node with a constant
    above 65504, which needs no margin, is wide too.

    Args:
        model: The plain float32 graph.
        largest: Maps a tensor's name to the largest magnitude seen in it; tensors may be missing.

    Raises:
        GraphRefused: A tensor that is named is not in the graph.
        StaleArtifact, InputRefused: `model` cannot be read.
    """
    import onnx
    import onnx_ir as ir

    graph = ir.from_proto(onnx.load_from_string(model.read())).graph
    written = {value.name for node in graph for value in node.outputs}
    if unknown := sorted(largest.keys() - written - {value.name for value in graph.inputs}):
        raise GraphRefused("is no tensor of the graph.", where=unknown[0])
    beyond = {name for name, magnitude in largest.items() if not magnitude <= LIMIT}
    _spread(graph, beyond)
    found = set()
    for node in graph:
        tensors = {str(value.name) for value in (*node.inputs, *node.outputs) if value is not None}
        if tensors & beyond or _has_large_constant(node):
            found.add(str(node.name))
    return frozenset(found)


def weights_in_half(model: Artifact) -> tuple[WeightsInHalf, ...]:
    """Return what half does to the constants of each node that computes with some, in the graph's order.

    Args:
        model: The plain float32 graph. Infinite constants, such as a Pad's filling, do not count.

    Raises:
        StaleArtifact, InputRefused: `model` cannot be read.
    """
    import onnx
    import onnx_ir as ir

    graph = ir.from_proto(onnx.load_from_string(model.read())).graph
    parts = {str(node.name): [array.ravel() for array in _constants(node)] for node in graph}
    return tuple(_weights(name, np.concatenate(arrays)) for name, arrays in parts.items() if arrays)


def stays_float(node: ir.Node, index: int) -> bool:
    """Say whether a node's input is float32 even where the node is half.

    BatchNormalization may keep its parameters so, and Resize must keep its region and scales.
    """
    return index > 0 and node.op_type in ("BatchNormalization", "Resize")


def magnitude(numbers: Array) -> float:
    """Return the largest magnitude of an array, 0 of an empty one."""
    return float(np.abs(numbers).max(initial=0.0))


def _weights(name: str, numbers: Float32Array) -> WeightsInHalf:
    finite = numbers[np.isfinite(numbers)]
    with np.errstate(over="ignore"):  # infinite in half: the node is wide
        narrow = np.abs(finite.astype(np.float16))
    zero = (narrow == 0) & (finite != 0)
    subnormal = (narrow > 0) & (narrow < SMALLEST_NORMAL)
    return WeightsInHalf(name, finite.size, magnitude(finite), int(zero.sum()), int(subnormal.sum()))


def _spread(graph: ir.Graph, beyond: set[str]) -> None:
    """Add the tensors that must hold the same large numbers as one that is known to, in place."""
    nodes = tuple(graph)
    for node in reversed(nodes):
        if node.op_type in _PASSING | {"Relu"} and node.outputs[0].name in beyond:
            beyond.add(_source_name(node))
    for node in nodes:
        if node.op_type in _PASSING and _source_name(node) in beyond:
            beyond.add(str(node.outputs[0].name))


def _source_name(node: ir.Node) -> str:
    source = node.inputs[0]
    return "" if source is None else str(source.name)


def _has_large_constant(node: ir.Node) -> bool:
    return any(not magnitude(numbers) <= LARGEST for numbers in _constants(node))


def _constants(node: ir.Node) -> Iterator[Float32Array]:
    """Yield the float32 constants that are half where the node is."""
    import onnx_ir as ir

    for index, value in enumerate(node.inputs):
        tensor = None if value is None else value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and not stays_float(node, index):
            yield tensor.numpy()
