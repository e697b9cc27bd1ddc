"""Numbers of a Q/DQ graph fitted layer by layer, on images: biases corrected, weights rounded together.

The FP32 graph and the Q/DQ graph made from it are walked side by side over the same few images. At each
layer with a quantised weight the quantised side has its real input, all earlier layers adjusted. There
the weight may be rounded anew (`resedge.calibration.rounding`), and what the output's mean per channel
is off by goes into the bias (Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction", section 4.2, measured instead of derived).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Artifact, sha256_bytes
from resedge.calibration.graph import is_constant, label, name_of, read_graph, write_graph
from resedge.calibration.rounding import round_together
from resedge.calibration.rules import check_qdq
from resedge.calibration.schemes import is_weighted, weight_axis
from resedge.calibration.walk import Tensor, Walk, signal_to_noise
from resedge.errors import GraphRefused
from resedge.files import write_bytes
from resedge.protocols import Array, Float32Array, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

_LARGEST_TENSOR: Final = 64_000_000  # bytes of one activation over all images of a walk
_MOST_IMAGES: Final = 128


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What one layer of a Q/DQ graph gets.

    `bias` is (output channels,) float32, to be added; `integers` replaces the weight's int8 numbers,
    None leaves them. `sqnr` is the signal to quantisation noise ratio of the layer's output in dB,
    before the adjustment and with all layers before it adjusted.
    """

    bias: Float32Array
    integers: npt.NDArray[np.int8] | None
    sqnr: float


def images_for(model: Artifact) -> int:
    """Return how many images a walk over a graph should hold, 1 to 128: its memory bounds them."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model.read()))
    sizes = [
        math.prod(dimension.dim_value for dimension in value.type.tensor_type.shape.dim[1:])
        for value in (*inferred.graph.value_info, *inferred.graph.input)
    ]
    return min(max(_LARGEST_TENSOR // (4 * int(max(sizes))), 1), _MOST_IMAGES)


def adjust(
    model: Artifact,
    quantised: Artifact,
    images: Array,
    *,
    rounding: bool,
    pair_safe: bool,
    threads: int,
    progress: Progress,
) -> Mapping[str, Adjustment]:
    """Fit the layers of a Q/DQ graph to the FP32 graph that it was made from.

    Args:
        model: The FP32 graph.
        quantised: Made from it by `resedge.calibration.placement.place`.
        images: What the graphs take of calibration images, (N, …); see `images_for`.
        rounding: Whether weights are rounded anew, too.
        pair_safe: As `quantised` was placed.
        threads: Of ONNX Runtime.
        progress: Advanced by one a layer; the caller starts and finishes it.

    Returns:
        An adjustment for each layer with a quantised weight, by the node's name.

    Raises:
        GraphRefused: `quantised` has other nodes than `model`, or ONNX Runtime cannot run one.
    """
    float_walk = Walk(read_graph(model.read(), str(model.path)).graph, images, threads)
    walk = Walk(read_graph(quantised.read(), str(quantised.path)).graph, images, threads)
    found: dict[str, Adjustment] = {}
    for node in walk.nodes:
        inputs = walk.inputs_of(node)
        output = walk.compute(node, inputs)
        if _is_adjustable(node):
            intended, expected = float_walk.input_and_output_of(node.name or "")
            if expected.shape != output.shape:
                raise GraphRefused("has another shape in the FP32 graph.", where=label(node))
            sqnr = signal_to_noise(expected, output)
            integers = _rounded(walk, float_walk, node, inputs[0], intended, pair_safe) if rounding else None
            if integers is not None:
                scales = walk.constant(_dequantise_of(node), 1)
                output = walk.compute(node, [inputs[0], _dequantised(integers, scales, node), *inputs[2:]])
            bias = _mean_by_channel(expected - output)
            output += bias.reshape([-1 if axis == 1 else 1 for axis in range(output.ndim)])
            found[node.name or ""] = Adjustment(bias, integers, sqnr)
            progress.advance(1)
        walk.keep(node, output)
    return found


def apply(quantised: Artifact, adjustments: Mapping[str, Adjustment], out: Path) -> Artifact:
    """Write a Q/DQ graph with its layers adjusted.

    Args:
        quantised: As it was placed; layers that are float in it stay as they are.
        adjustments: By the node's name, see `adjust`.
        out: The file to write.

    Returns:
        An artifact of the same kind, checked by `check_qdq`; `meta["adjusted"]` says what was.

    Raises:
        GraphRefused: An adjustment does not fit its node.
    """
    import onnx_ir as ir

    model = read_graph(quantised.read(), str(quantised.path))
    graph = model.graph
    for node in tuple(graph):
        adjustment = adjustments.get(node.name or "")
        if adjustment is None or not _is_adjustable(node):
            continue
        if adjustment.integers is not None:
            stored = _dequantise_of(node).inputs[0]
            assert stored is not None  # `check_qdq` has seen it
            stored.const_value = ir.tensor(adjustment.integers, name=stored.name)
        _add_to_bias(graph, node, adjustment.bias)
    data = write_graph(model)
    check_qdq(data, str(quantised.meta["scheme"]))
    write_bytes(out, data)
    rounding = any(adjustment.integers is not None for adjustment in adjustments.values())
    return replace(
        quantised,
        path=out,
        sha256=sha256_bytes(data),
        parents=(*quantised.parents, quantised.sha256),
        meta={**quantised.meta, "adjusted": "rounding and bias" if rounding else "bias"},
    )


def _is_adjustable(node: ir.Node) -> bool:
    """Say whether a node has a quantised weight and a place for a bias (a MatMul has none)."""
    if node.op_type == "Gemm" and any(
        node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta")
    ):
        return False
    return is_weighted(node) and node.op_type != "MatMul" and not is_constant(node.inputs[1])


def _rounded(
    walk: Walk,
    float_walk: Walk,
    node: ir.Node,
    activation: Tensor | None,
    intended: Float32Array,
    pair_safe: bool,
) -> npt.NDArray[np.int8] | None:
    """Round a layer's weight anew; None where it is shared between layers or `round_together` declines."""
    dequantise = _dequantise_of(node)
    original = next(other for other in float_walk.nodes if other.name == node.name)
    if len(dequantise.outputs[0].uses()) > 1 or activation is None:
        return None
    weight, scales = float_walk.constant(original, 1), walk.constant(dequantise, 1)
    return round_together(weight, scales, activation, intended, node, pair_safe=pair_safe)


def _dequantise_of(node: ir.Node) -> ir.Node:
    weight = node.inputs[1]
    producer = weight.producer() if weight is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        raise GraphRefused("its weight is not quantised.", where=label(node))
    return producer


def _dequantised(integers: npt.NDArray[np.int8], scales: Tensor, node: ir.Node) -> Float32Array:
    along = [-1 if axis == weight_axis(node) else 1 for axis in range(integers.ndim)]
    product: Float32Array = integers.astype(np.float32) * scales.reshape(along)
    return product


def _mean_by_channel(difference: Float32Array) -> Float32Array:
    others = tuple(axis for axis in range(difference.ndim) if axis != 1)
    means: Float32Array = difference.mean(axis=others, dtype=np.float64).astype(np.float32)
    return means


def _add_to_bias(graph: ir.Graph, node: ir.Node, correction: Float32Array) -> None:
    """Give a node a bias of its own, the old one plus the correction."""
    import onnx_ir as ir

    old = node.inputs[2] if len(node.inputs) > 2 else None
    numbers = correction
    if old is not None:
        if old.const_value is None:
            raise GraphRefused("its bias is not a constant in the file.", where=label(node))
        numbers = (old.const_value.numpy().astype(np.float64) + correction).astype(np.float32)
    name = f"{name_of(node.outputs[0])}.corrected_bias"
    tensor = ir.tensor(numbers, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)
    if old is not None and not old.uses() and not old.is_graph_output():
        graph.initializers.pop(name_of(old), None)
