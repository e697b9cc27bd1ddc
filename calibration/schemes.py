"""The two Q/DQ schemes: what numbers an activation becomes, which inputs of a graph are quantised.

`tensorrt` follows NVIDIA's placement for explicit quantisation; `cpu` is what OpenVINO and ONNX
Runtime turn into integer kernels. Placement and checker read the same statement of the rules,
`activation_sites`. In both schemes:

* Conv, ConvTranspose, Gemm and MatMul with a constant weight: the weight and the data input. Grouped and
  depthwise Conv too (not ConvTranspose, whose weight has no axis of output channels then), and those on
  a pooled tensor, the gate of squeeze-and-excitation: their pairs are tiny, their weights a quarter of
  the size. The bias stays float, and the tensor between a weighted node and its activation function.
* Pooling, to the mean or the maximum and over whatever window: the input.
* Residual Add: both inputs (`cpu`), or the shortcut alone (`tensorrt`), with which NVIDIA's convolutions
  fuse the addition. An Add that joins something else is arithmetic, and stays float.
* Gate, a Mul of a tensor with factors that a weighted or pooling node made of it: both inputs. The
  gated tensor then has one form for its Mul and its pooling, and the convolution before it writes
  integers (NVIDIA's EfficientNet does so, too). SiLU is a Mul as well, but an activation function.
* Pad and Concat move values and compute nothing: the inputs, if the output is read quantised, with one
  scale on all sides. Otherwise they stay float: a DenseNet joins for a BatchNormalization, which takes
  floats, and all tensors of a block would have to share one scale.
* Everything else is float, known or not: BatchNormalization that could not be folded, group and
  instance normalisation, activation functions, arithmetic with constants.
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

WEIGHTED_OPS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MEANS: Final = frozenset({"AveragePool", "GlobalAveragePool"})
_MAXIMA: Final = frozenset({"GlobalMaxPool", "MaxPool"})
_SPATIAL_AXES: Final = ({2, 3}, {-2, -1})
RESHAPING_OPS: Final = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_OPS_OF_ONE_TENSOR: Final = RESHAPING_OPS | {"CastLike", "Expand", "Pad", "Slice", "Tile"}
_OPS_OF_SHAPES: Final = frozenset({"Shape", "Size"})


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
    """One input of one node that a scheme wants quantised, and the tensors whose range it takes.

    `origin` is the tensor whose values `value` only selects or rearranges. `origins` are those of all
    tensors that must have the scale of `value`: more than one where a Concat joins them.
    """

    node: ir.Node
    index: int
    value: ir.Value
    origin: ir.Value
    origins: tuple[ir.Value, ...]


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

    The head of this file says which these are. Behind a node that only reshapes (Flatten, Reshape,
    Squeeze, Transpose, Unsqueeze) it is that node's input which is quantised: the values are the same,
    and only so do runtimes fuse the requantisation with the node before and move one byte a value. A
    weighted node whose name is in `kept` stays float and wants nothing.
    """
    movers = _quantised_movers(graph, scheme, kept)
    origins = _shared_origins(graph, movers)
    for node in graph:
        for index in _indices(node, scheme, kept, movers):
            reader, place = _before_reshaping(node, index)
            value = reader.inputs[place]
            if value is not None and not is_constant(value):
                origin = range_origin(value)
                yield Site(reader, place, value, origin, origins.get(value, (origin,)))


def is_weighted(node: ir.Node) -> bool:
    """Say whether a node multiplies an activation by a constant weight that can be quantised.

    Of a grouped ConvTranspose it cannot: no axis of the weight is that of the output channels.
    """
    if node.op_type not in WEIGHTED_OPS or len(node.inputs) < 2:
        return False
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) > 1:
        return False
    return not is_constant(node.inputs[0]) and _is_stored(node.inputs[1])


def weight_axis(node: ir.Node) -> int:
    """Return the axis of the output channels in a weighted node's second input."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1


def range_origin(value: ir.Value) -> ir.Value:
    """Return the tensor whose values `value` only selects or rearranges.

    What leaves a MaxPool, Pad, Concat or Reshape takes the range of what entered, so that both sides
    have one scale and the node can run on the integers themselves. A Cast between float types changes no
    range either. Of a Concat it is the first input that is followed; `Site.origins` has them all.
    """
    value = _before_casts(value)
    producer = value.producer()
    while producer is not None and _keeps_values(producer):
        source = producer.inputs[0]
        assert source is not None  # these operators have a data input
        value = _before_casts(source)
        producer = value.producer()
    return value


def shortcut_index(add: ir.Node) -> int:
    """Return a residual Add's shortcut input: the shorter way to the nearest common ancestor.

    Where both ways are equally long the second input is the main path and the first the shortcut,
    as in NVIDIA ModelOpt's `build_non_residual_input_map`.
    """
    first, second = (_distances(value) for value in _parents(add))
    shared = [value for value in first if value in second]
    ancestor = min(shared, key=lambda value: first[value] + second[value])
    return 1 if first[ancestor] > second[ancestor] else 0


def is_residual_add(node: ir.Node) -> bool:
    """Say whether an Add joins two activations of one ancestor (a bias is a constant)."""
    return node.op_type == "Add" and _joins_relatives(node)


def is_gate(node: ir.Node) -> bool:
    """Say whether a Mul scales a tensor by factors that a layer of their own has made of it.

    In an activation function such as SiLU both inputs come from one tensor by arithmetic alone.
    """
    if node.op_type != "Mul" or not _joins_relatives(node):
        return False
    one, other = (_pointwise_sources(value) for value in _parents(node))
    return one.isdisjoint(other)


def _indices(
    node: ir.Node, scheme: Scheme, kept: AbstractSet[str], movers: AbstractSet[ir.Node]
) -> tuple[int, ...]:
    if is_weighted(node):
        return () if node.name in kept else (0,)
    if _is_mean(node) or _is_maximum(node) or (node in movers and node.op_type == "Pad"):
        return (0,)
    if is_gate(node):
        return (0, 1)
    if is_residual_add(node):
        return (0, 1) if scheme.both_add_inputs else (shortcut_index(node),)
    return tuple(range(len(node.inputs))) if node in movers else ()


def _quantised_movers(graph: ir.Graph, scheme: Scheme, kept: AbstractSet[str]) -> set[ir.Node]:
    """Return each Pad and Concat whose output is read quantised, from the last one back."""
    movers: set[ir.Node] = set()
    wanted: set[ir.Value] = set()
    for node in reversed(graph):
        if node.outputs[0] in wanted and (_pads_on_the_grid(node) or _is_joining(node)):
            movers.add(node)
        for index in _indices(node, scheme, kept, movers):
            reader, place = _before_reshaping(node, index)
            if (value := reader.inputs[place]) is not None:
                wanted.add(_before_casts(value))
    return movers


def _shared_origins(graph: ir.Graph, movers: AbstractSet[ir.Node]) -> dict[ir.Value, tuple[ir.Value, ...]]:
    """Return, for each tensor that a quantised Concat ties to others, the origins of them all."""
    groups: dict[ir.Value, dict[ir.Value, None]] = {}  # a group is one dict, which its tensors share
    for node in graph:
        if node not in movers or not _is_joining(node):
            continue
        origins = [range_origin(value) for value in node.inputs if value is not None]
        joined = {origin: None for first in origins for origin in groups.get(first, {first: None})}
        groups.update(dict.fromkeys(joined, joined))
    tied = {}
    for node in graph:
        for value in node.inputs:
            if value is not None and (origin := range_origin(value)) in groups:
                tied[value] = tuple(groups[origin])
    return tied


def _before_reshaping(node: ir.Node, index: int) -> tuple[ir.Node, int]:
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in RESHAPING_OPS:
        node, index, source = producer, 0, producer.inputs[0]
        producer = source.producer() if source is not None else None
    return node, index


def _before_casts(value: ir.Value) -> ir.Value:
    """Look through changes of the float type, so that a graph in FP16 reads as the FP32 one."""
    producer = value.producer()
    while producer is not None and producer.op_type == "Cast":
        source = producer.inputs[0]
        assert source is not None  # of a Cast
        if source.dtype is not None and source.dtype.is_integer():  # a frame's bytes are on no grid
            break
        value, producer = source, source.producer()
    return value


def _is_stored(value: ir.Value | None) -> bool:
    """Look through a weight's Q and DQ, so that a finished graph reads as a plain one."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in ("QuantizeLinear", "DequantizeLinear"):
        value = producer.inputs[0]
        producer = value.producer() if value is not None else None
    return value is not None and is_constant(value)


def _is_mean(node: ir.Node) -> bool:
    return node.op_type in _MEANS or (node.op_type == "ReduceMean" and _is_spatial(node))


def _is_maximum(node: ir.Node) -> bool:
    if node.op_type not in _MAXIMA and not (node.op_type == "ReduceMax" and _is_spatial(node)):
        return False
    source = _before_casts(node.inputs[0]).producer() if node.inputs[0] is not None else None
    # What "same" padding puts around a maximum may be minus infinity, which no grid holds.
    return source is None or source.op_type != "Pad" or _pads_on_the_grid(source)


def _is_spatial(node: ir.Node) -> bool:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or axes.const_value is None:
        return False
    return set(axes.const_value.numpy().ravel().tolist()) in _SPATIAL_AXES


def _keeps_values(node: ir.Node) -> bool:
    """Say whether all that a node gives is among what it is given, or zero."""
    if node.op_type in RESHAPING_OPS or _is_maximum(node):
        return True
    return _pads_on_the_grid(node) or _is_joining(node)


def _is_joining(node: ir.Node) -> bool:
    return node.op_type == "Concat" and not any(is_constant(value) for value in node.inputs)


def _pads_on_the_grid(node: ir.Node) -> bool:
    """Say whether a Pad repeats values of its input, or puts zeros, which every grid holds."""
    if node.op_type != "Pad":
        return False
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    filling = node.inputs[2] if len(node.inputs) > 2 else None
    return filling is None or (filling.const_value is not None and not filling.const_value.numpy().any())


def _joins_relatives(node: ir.Node) -> bool:
    """Say whether both inputs of a node are activations, with an ancestor in common."""
    if len(_parents(node)) != 2:
        return False
    first, second = (_distances(value) for value in _parents(node))
    return not first.keys().isdisjoint(second)


def _pointwise_sources(value: ir.Value) -> set[ir.Value]:
    """Return the tensors of which `value` is a function by arithmetic alone, itself included."""
    found, front = set(), [value]
    while front:
        tensor = front.pop()
        found.add(tensor)
        producer = tensor.producer()
        if producer is not None and not (
            is_weighted(producer) or _is_mean(producer) or _is_maximum(producer)
        ):
            front += [parent for parent in _parents(producer) if parent not in found]
    return found


def _distances(value: ir.Value) -> dict[ir.Value, int]:
    """Count the nodes from a tensor to each of its ancestors, itself included, the shortest way."""
    distances = {value: 0}
    front = [value]
    while front:
        reached = []
        for tensor in front:
            producer = tensor.producer()
            for parent in _parents(producer) if producer is not None else ():
                if parent not in distances:
                    distances[parent] = distances[tensor] + 1
                    reached.append(parent)
        front = reached
    return distances


def _parents(node: ir.Node) -> list[ir.Value]:
    """Return the activations that a node computes with; shapes and types of others do not count."""
    if node.op_type in _OPS_OF_SHAPES:
        return []
    inputs = node.inputs[:1] if node.op_type in _OPS_OF_ONE_TENSOR else node.inputs
    tensors = (_before_casts(value) for value in inputs if value is not None)
    return [value for value in tensors if not is_constant(value)]
