"""The two Q/DQ schemes: what numbers an activation becomes, which inputs of a graph are quantised.

`tensorrt` follows NVIDIA's placement for explicit quantisation; `cpu` is what OpenVINO and ONNX
Runtime turn into integer kernels. Both leave biases and the tensor between a Conv and its Relu
alone. Placement and checker read the same statement of the rules, `activation_sites`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from resedge.calibration.graph import is_constant
from resedge.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

WEIGHTED_OPS: Final = frozenset({"Conv", "Gemm", "MatMul"})
_POOLING_OPS: Final = frozenset({"MaxPool", "GlobalAveragePool"})
_SPATIAL_AXES: Final = ({2, 3}, {-2, -1})
_RESHAPING_OPS: Final = frozenset({"Flatten", "Reshape"})
_PASSING_OPS: Final = frozenset({"MaxPool"}) | _RESHAPING_OPS


@dataclass(frozen=True)
class Scheme:
    """How activations are quantised; weights are int8, symmetric, per output channel in both.

    `low` and `high` bound the quantised integers; `symmetric` puts the zero point at 0;
    `both_add_inputs` quantises the main path of a residual Add as well as its shortcut;
    `half_scales` keeps every scale a normal FP16 number, so that the graph loses nothing in FP16.
    """

    name: str
    dtype: str
    low: int
    high: int
    symmetric: bool
    both_add_inputs: bool
    half_scales: bool


SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType(
    {
        "cpu": Scheme("cpu", "uint8", 0, 255, False, True, False),
        "tensorrt": Scheme("tensorrt", "int8", -127, 127, True, False, True),
    }
)


@dataclass(frozen=True)
class Site:
    """One input of one node that a scheme wants quantised, and the tensor whose range it takes."""

    node: ir.Node
    index: int
    value: ir.Value
    origin: ir.Value


def scheme_named(name: str) -> Scheme:
    """Return the scheme of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in SCHEMES:
        raise UsageError(
            f"{name!r} is not a quantisation scheme.", cure=f"Known: {', '.join(sorted(SCHEMES))}."
        )
    return SCHEMES[name]


def activation_sites(graph: ir.Graph, scheme: Scheme, kept: AbstractSet[str] = frozenset()) -> Iterator[Site]:
    """Yield every activation input that the scheme quantises, in the graph's order.

    These are the data inputs of Conv, Gemm, MatMul with a constant matrix, MaxPool,
    GlobalAveragePool and ReduceMean over height and width, and the inputs of a residual Add: both,
    or the shortcut only. Behind a Flatten or Reshape it is that node's input which is quantised:
    the values are the same, and only so do runtimes fuse the requantisation with the node before
    and move one byte a value. A weighted node whose name is in `kept` stays float and wants nothing.
    """
    for node in graph:
        if node.name in kept and is_weighted(node):
            continue
        for index in _quantised_indices(node, scheme):
            reader, place = _before_reshaping(node, index)
            value = reader.inputs[place]
            if value is not None and not is_constant(value):
                yield Site(reader, place, value, range_origin(value))


def is_weighted(node: ir.Node) -> bool:
    """Say whether a node multiplies an activation by a weight (a MatMul may have none)."""
    if node.op_type == "MatMul":
        return not is_constant(node.inputs[0]) and _weight_is_constant(node)
    return node.op_type in WEIGHTED_OPS


def weight_axis(node: ir.Node) -> int:
    """Return the axis of the output channels in a weighted node's second input."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1


def range_origin(value: ir.Value) -> ir.Value:
    """Return the tensor whose values `value` only selects or rearranges.

    What leaves a MaxPool, Flatten or Reshape takes the range of what entered, so that both sides
    have one scale and the node can run on the integers themselves.
    """
    producer = value.producer()
    while producer is not None and producer.op_type in _PASSING_OPS:
        source = producer.inputs[0]
        assert source is not None  # these operators have a data input
        value, producer = source, source.producer()
    return value


def shortcut_index(add: ir.Node) -> int:
    """Return a residual Add's shortcut input: the shorter way to the nearest common ancestor.

    Where both ways are equally long the second input is the main path and the first the shortcut,
    as in NVIDIA ModelOpt's `build_non_residual_input_map`.
    """
    first, second = (_distances(value) for value in add.inputs if value is not None)
    shared = [value for value in first if value in second]
    ancestor = min(shared, key=lambda value: first[value] + second[value])
    return 1 if first[ancestor] > second[ancestor] else 0


def is_residual_add(node: ir.Node) -> bool:
    """Say whether an Add joins two activations of one ancestor (a bias is a constant)."""
    if node.op_type != "Add" or any(is_constant(value) for value in node.inputs):
        return False
    first, second = (_distances(value) for value in node.inputs if value is not None)
    return not first.keys().isdisjoint(second)


def _quantised_indices(node: ir.Node, scheme: Scheme) -> tuple[int, ...]:
    if is_weighted(node) or node.op_type in _POOLING_OPS or _is_spatial_mean(node):
        return (0,)
    if is_residual_add(node):
        return (0, 1) if scheme.both_add_inputs else (shortcut_index(node),)
    return ()


def _before_reshaping(node: ir.Node, index: int) -> tuple[ir.Node, int]:
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in _RESHAPING_OPS:
        node, index, source = producer, 0, producer.inputs[0]
        producer = source.producer() if source is not None else None
    return node, index


def _weight_is_constant(node: ir.Node) -> bool:
    """Look through a weight's DequantizeLinear, so that a finished graph reads as a plain one."""
    weight = node.inputs[1]
    producer = weight.producer() if weight is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        return is_constant(producer.inputs[0])
    return is_constant(weight)


def _is_spatial_mean(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean" or len(node.inputs) < 2:
        return False
    axes = node.inputs[1]
    if axes is None or axes.const_value is None:
        return False
    return set(axes.const_value.numpy().ravel().tolist()) in _SPATIAL_AXES


def _distances(value: ir.Value) -> dict[ir.Value, int]:
    """Count the nodes from a tensor to each of its ancestors, itself included, the shortest way."""
    distances = {value: 0}
    front = [value]
    while front:
        reached = []
        for tensor in front:
            producer = tensor.producer()
            for parent in producer.inputs if producer is not None else ():
                if parent is not None and not is_constant(parent) and parent not in distances:
                    distances[parent] = distances[tensor] + 1
                    reached.append(parent)
        front = reached
    return distances
