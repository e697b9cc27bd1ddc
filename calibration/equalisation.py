"""Channels of unequal size made alike before they share one scale, by weights that undo it behind them.

Where a tensor is only scaled, added, rectified and pooled between the layers that write it and those that
read it, a channel may be divided by any positive factor if the writers' rows are divided and the readers'
columns multiplied by it: the network computes what it did (Nagel et al., 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction", section 4.1). The factors here weigh the channels' real
activations against the readers' weights, as there, and hold for a whole residual stream at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Artifact, sha256_bytes
from resedge.calibration.graph import is_constant, name_of, read_graph, write_graph
from resedge.calibration.schemes import is_weighted, weight_axis
from resedge.files import write_bytes
from resedge.protocols import Array

if TYPE_CHECKING:
    import onnx_ir as ir

# f(s x) = s f(x) for every s > 0, channel by channel.
_HOMOGENEOUS: Final = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "Relu"}
)
_FLATTENING: Final = frozenset({"Flatten", "Reshape"})
_SCALED: Final = frozenset({"Conv", "Gemm", "MatMul"})
_LARGEST_FACTOR: Final = 256.0  # and its inverse; beyond, a channel is dead rather than small
_TOLERANCE: Final = 1e-4  # of the largest logit, for float32 rounding through all layers

_Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Group:
    """Tensors whose channel c must have one factor, and the layers that write and read them."""

    channels: int
    tensors: tuple[ir.Value, ...]
    writers: tuple[ir.Node, ...]
    readers: tuple[ir.Node, ...]


def equalise(model: Artifact, images: Array, out: Path) -> Artifact | None:
    """Write an FP32 graph of the same function whose channels are of more equal size.

    Args:
        model: FP32 ONNX, BatchNorm folded.
        images: What the graph takes of a few of the calibration images, (N, …). They run one at a time.
        out: The file to write.

    Returns:
        An artifact of the same kind, proved on `images`; `meta["equalised"]` counts the groups of
        tensors. None where no tensor lies between layers that could undo a factor, or where the graph is so
        ill-conditioned that float32 rounding alone moves the logits by more than a ten-thousandth.
    """
    parsed = read_graph(model.read(), str(model.path))
    groups = tuple(_groups(parsed.graph, _shapes(model)))
    if not groups:
        return None
    largest = _largest_by_channel(
        model, {name_of(value) for group in groups for value in group.tensors}, images
    )
    for group in groups:
        _apply(group, _factors(group, largest))
    data = write_graph(parsed)
    if not _computes_the_same(model, data, images):
        return None
    write_bytes(out, data)
    meta = {**model.meta, "equalised": len(groups)}
    return Artifact(out, sha256_bytes(data), model.kind, model.inputs, model.outputs, (model.sha256,), meta)


# --- which tensors share their factors -----------------------------------------------------------


def _groups(graph: ir.Graph, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[_Group]:
    """Yield the groups in the graph's order."""
    leader: dict[ir.Value, ir.Value] = {}
    fixed: set[ir.Value] = {*graph.inputs, *graph.outputs}

    def find(value: ir.Value) -> ir.Value:
        while leader.setdefault(value, value) is not value:
            value = leader[value]
        return value

    for node in graph:
        data = [value for value in node.inputs if value is not None and not is_constant(value)]
        together = [*data, *node.outputs]
        if _keeps_channels(node, data, shapes):
            for value in together[1:]:
                leader[find(value)] = find(together[0])
        elif not _is_scalable(node, shapes):
            fixed.update(together)
    members: dict[ir.Value, list[ir.Value]] = {}
    for value in (value for node in graph for value in node.outputs):
        members.setdefault(find(value), []).append(value)
    barred = {find(value) for value in fixed}
    for head, tensors in members.items():
        writers = tuple(node for value in tensors for node in _writers(value) if _is_scalable(node, shapes))
        readers = tuple(
            use.node for value in tensors for use in value.uses() if _is_scalable(use.node, shapes)
        )
        if head not in barred and writers and readers:
            channels = min(shapes[name_of(value)][1] for value in tensors)
            yield _Group(channels, tuple(tensors), writers, readers)


def _writers(value: ir.Value) -> tuple[ir.Node, ...]:
    node = value.producer()
    return () if node is None else (node,)


def _keeps_channels(node: ir.Node, data: list[ir.Value], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Say whether a node gives each channel the factor that its inputs' same channel has."""
    known = [shapes.get(name_of(value), ()) for value in (*data, *node.outputs)]
    if len(node.outputs) != 1 or any(len(shape) < 2 or shape[1] < 1 for shape in known):
        return False
    same = len({shape[1] for shape in known}) == 1
    if node.op_type == "Add":
        return len(data) == 2 and same
    if node.op_type in ("ReduceMean", "ReduceMax"):
        return len(data) == 1 and same and _reduces_space(node, len(known[0]))
    if node.op_type in _FLATTENING:  # (N, C, H, W) to (N, C H W): a channel's places stay together
        return len(known[1]) == 2 and known[1][1] == math.prod(known[0][1:])
    return node.op_type in _HOMOGENEOUS and same


def _reduces_space(node: ir.Node, rank: int) -> bool:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or axes.const_value is None:
        return False
    return {int(axis) % rank for axis in axes.const_value.numpy().ravel()} == set(range(2, rank))


def _is_scalable(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Say whether a node's weight and bias can take factors: they are its own, and its only factors."""
    if not is_weighted(node) or node.op_type not in _SCALED:
        return False
    plain = all(node.attributes.get_float(name, 1.0) == 1 for name in ("alpha", "beta"))
    own = all(value is None or len(value.uses()) == 1 for value in node.inputs[1:])
    flat = node.op_type == "Conv" or len(shapes.get(name_of(node.inputs[0]), ())) == 2
    return (
        plain and own and flat and all(value is None or value.is_initializer() for value in node.inputs[1:])
    )


def _shapes(model: Artifact) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor; a length that is not fixed is 0."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model.read())).graph
    return {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }


# --- the factors ---------------------------------------------------------------------------------


def _factors(group: _Group, largest: Mapping[str, _Float64]) -> _Float64:
    """Return what each channel is divided by, (channels,): 1 in the geometric mean, 1 for a dead one."""
    read = {name_of(node.inputs[0]) for node in group.readers}
    seen = [largest[name] for name in sorted(read)]
    activations = np.max([x.reshape(group.channels, -1).max(axis=1) for x in seen], axis=0)
    weights = np.max([_relative(node, group.channels) for node in group.readers], axis=0)
    alive = (activations > 0) & (weights > 0)
    factors = np.ones(group.channels)
    if alive.any():
        wanted = np.sqrt(activations[alive] / weights[alive])
        factors[alive] = wanted / np.exp(np.log(wanted).mean())
    return np.clip(factors, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)


def _relative(reader: ir.Node, channels: int) -> _Float64:
    """Return how large the weights that meet each channel are in their rows at most, (channels,)."""
    rows = np.abs(_by_group(reader))
    rows /= np.maximum(rows.max(axis=(2, 3), keepdims=True), np.finfo(np.float32).tiny)
    relative: _Float64 = rows.max(axis=1).reshape(channels, -1).max(axis=1)
    return relative


def _by_group(node: ir.Node) -> _Float64:
    """Return a weight as (groups, rows of one, input channels of one, places of the kernel)."""
    weight = _numbers(node, 1).astype(np.float64)
    rows = np.moveaxis(weight, weight_axis(node), 0)
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    return rows.reshape(groups, len(rows) // groups, rows.shape[1], -1)


def _apply(group: _Group, factors: _Float64) -> None:
    for node in group.writers:
        weight = _numbers(node, 1)
        along = [-1 if axis == weight_axis(node) else 1 for axis in range(weight.ndim)]
        _replace(node, 1, weight / factors.reshape(along))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _replace(node, 2, _numbers(node, 2) / factors)
    for node in group.readers:
        by_group = _by_group(node)
        columns = by_group.shape[0] * by_group.shape[2]
        repeated = np.repeat(factors, columns // group.channels)
        scaled = by_group * repeated.reshape(by_group.shape[0], 1, by_group.shape[2], 1)
        axis = weight_axis(node)
        rows = np.moveaxis(_numbers(node, 1), axis, 0)
        _replace(node, 1, np.moveaxis(scaled.reshape(rows.shape), 0, axis))


def _numbers(node: ir.Node, index: int) -> npt.NDArray[Any]:
    value = node.inputs[index]
    assert value is not None  # `_is_scalable` has seen it
    assert value.const_value is not None
    return value.const_value.numpy()


def _replace(node: ir.Node, index: int, numbers: _Float64) -> None:
    import onnx_ir as ir

    value = node.inputs[index]
    assert value is not None
    value.const_value = ir.tensor(np.ascontiguousarray(numbers, np.float32), name=value.name)


# --- running -------------------------------------------------------------------------------------


def _largest_by_channel(model: Artifact, names: Iterable[str], images: Array) -> dict[str, _Float64]:
    """Return the largest magnitude of each channel of the tensors, over the images, (channels,)."""
    parsed = read_graph(model.read(), str(model.path))
    wanted = sorted(set(names))
    values = {name_of(value): value for node in parsed.graph for value in node.outputs}
    parsed.graph.outputs.extend(values[name] for name in wanted if not values[name].is_graph_output())
    run = _opened(write_graph(parsed))
    found = {name: np.zeros(1) for name in wanted}
    for image in images:
        for name, tensor in zip(wanted, run(image[None], wanted), strict=True):
            by_channel = np.abs(tensor).max(axis=(0, *range(2, tensor.ndim)))
            found[name] = np.maximum(found[name], by_channel)
    return found


def _computes_the_same(model: Artifact, equalised: bytes, images: Array) -> bool:
    name = model.outputs[0].name
    before, after = (
        np.concatenate([run(image[None], [name])[0] for image in images])
        for run in (_opened(model.read()), _opened(equalised))
    )
    return float(np.abs(before - after).max()) <= _TOLERANCE * float(np.abs(before).max())


def _opened(data: bytes) -> Any:  # noqa: ANN401 - (images, names of outputs) to arrays
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch, outputs: session.run(outputs, {name: batch})
