"""The normalisation of frames folded into the first convolution, so that INT8 graphs read pixels as they are.

    conv((p / 255 - m) / s, W) + b      is      conv(x, W') + conv(1, t) + b,      x = (p - 128) / 64
    W' = W 64 / (255 s)                 t = sum over channels of W' (128 - 255 m) / 64

with m and s of each channel. x lies on one grid of 8 bits, int8 with zero point 0 as well as uint8 with zero
point 128, so that quantising it rounds nothing. Padding is zero after normalisation, which is a pixel of the
mean, and not of 128: t must count within the image alone. Without padding it is a constant and goes to the
bias. With padding x gets one more channel, the same number everywhere within the image, of which t are the
weights; what a convolution pads it with is zero, there as everywhere. 64 is a power of two, so it is exact,
and leaves the weights and their scales about as large as they were.

One more channel is taken beside three: kernels for integers read channels in fours, and measured it costs no
more than it saves (`benchmarks/peers/frames.py`, docs/int8.md). A fifth was not measured, and is not taken.

The algebra runs in float64 and is kept only if it is proved on real frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Artifact, Preprocessing, sha256_bytes
from resedge.export.frames import Chain, append_planes, prepares
from resedge.export.onnxfile import serialise
from resedge.files import write_bytes
from resedge.images import Frames, ordered

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

PIXELS_KEY: Final = "pixels"  # of an artifact's meta: the tensor that holds x, and its step
CENTRE: Final = 128.0
STEP: Final = 2.0**-6
_LEVELS: Final = 127  # of the further channel at most: the largest number on both grids
_FULL: Final = 255.0
_CHANNELS_READ: Final = 4  # at once, by kernels for integers

_Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PixelFold:
    """The graph on pixels, None where the normalisation is not folded for the reason given.

    `residual` is the largest difference over the largest output of the convolution, in float64.
    """

    graph: Artifact | None
    reason: str = ""
    residual: float = 0.0


@dataclass(frozen=True, eq=False)
class _Folded:
    """A weight and a bias for x, float64, and what its further channel holds, None where there is none."""

    weight: _Float64
    bias: _Float64
    inside: float | None


@dataclass(frozen=True, eq=False)
class _Convolution:
    """The first convolution, and its weight (out, in, height, width) and bias (out,) in float64."""

    node: ir.Node
    weight: _Float64
    bias: _Float64

    @property
    def pads(self) -> tuple[int, ...]:
        """Above, left, below, right."""
        return tuple(self.node.attributes.get_ints("pads", (0, 0, 0, 0)))


def fold_pixels(model: Artifact, preprocessing: Preprocessing, frames: Frames, out: Path) -> PixelFold:
    """Write a graph that takes frames with their normalisation folded, if that can be proved.

    Args:
        model: As `take_frames` wrote it.
        preprocessing: What it was written for.
        frames: Real ones to prove it on, (N, H, W, 3 or 4) uint8.
        out: The file to write.

    Returns:
        The same kind, input and output; `meta["pixels"]` names the tensor that is to be quantised on the
        grid of pixels.
    """
    from resedge.export.proof import TOLERANCE

    parsed = _read(model)
    first = _first_convolution(parsed.graph, preprocessing)
    if isinstance(first, str):
        return PixelFold(None, first)
    folded = _folded(first, preprocessing)
    residual = _residual(first, folded, preprocessing, frames)
    if not residual <= TOLERANCE:
        reason = f"the folded convolution differs by {residual:.1e} of its largest output"
        return PixelFold(None, reason, residual)
    return PixelFold(_written(parsed, model, first, folded, preprocessing, out), residual=residual)


def fold_again(model: Artifact, preprocessing: Preprocessing, out: Path) -> Artifact | None:
    """Write what `fold_pixels` wrote of a graph that it was proved on; None where it could not be folded."""
    parsed = _read(model)
    first = _first_convolution(parsed.graph, preprocessing)
    if isinstance(first, str):
        return None
    return _written(parsed, model, first, _folded(first, preprocessing), preprocessing, out)


def _read(model: Artifact) -> ir.Model:
    import onnx
    import onnx_ir as ir

    return ir.from_proto(onnx.load_from_string(model.read()))


def _first_convolution(graph: ir.Graph, preprocessing: Preprocessing) -> _Convolution | str:
    """Return the one convolution that reads prepared frames, or why there is none that could be folded."""
    if preprocessing.channels == "L":
        return "grey is computed from a frame's colours"
    last = [node for node in graph if prepares(node)][-1]
    readers = [node for node, _ in last.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Conv":
        return f"images are read by {', '.join(sorted({node.op_type for node in readers}))}"
    (node,) = readers
    if node.attributes.get_int("group", 1) != 1:
        return "the first convolution is grouped"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "the first convolution's padding is left to the runtime"
    stored = [value for value in node.inputs[1:] if value is not None]
    if any(value.const_value is None or len(value.uses()) > 1 for value in stored):
        return "the first convolution's weight is computed, or shared"
    weight, *bias = (np.asarray(v.const_value.numpy(), np.float64) for v in stored if v.const_value)
    if any(node.attributes.get_ints("pads", (0,))) and weight.shape[1] % _CHANNELS_READ == 0:
        return f"its padding would take a channel beside {weight.shape[1]}"
    if weight.ndim != 4:
        return f"the first convolution has {weight.ndim - 2} dimensions"
    return _Convolution(node, weight, bias[0] if bias else np.zeros(len(weight)))


def _folded(first: _Convolution, preprocessing: Preprocessing) -> _Folded:
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    weight = first.weight / (_FULL * STEP * std[:, None, None])
    constant = (weight * (STEP * (CENTRE - _FULL * mean))[:, None, None]).sum(axis=1)
    weight = _in_frame_order(weight, preprocessing)
    if not any(first.pads):
        return _Folded(weight, first.bias + constant.sum(axis=(1, 2)), None)
    inside = _inside(weight, constant)
    return _Folded(np.concatenate([weight, constant[:, None] / inside], axis=1), first.bias, inside)


def _inside(weight: _Float64, constant: _Float64) -> float:
    """Return what the further channel holds: so much that no scale of a weight grows, and no more.

    Its weights are rounded like others, and what they are off by counts this much at every place.
    """
    largest, needed = (np.abs(each).reshape(len(each), -1).max(axis=1) for each in (weight, constant))
    ratio = (needed / np.maximum(largest, np.finfo(np.float64).tiny)).max()
    return STEP * float(np.clip(np.ceil(ratio / STEP), 1, _LEVELS))


def _residual(
    first: _Convolution,
    folded: _Folded,
    preprocessing: Preprocessing,
    frames: Frames,
) -> float:
    """Return the largest difference of the folded convolution over the largest output, in float64."""
    from resedge.export.proof import relative

    pixels = ordered(frames, preprocessing.channels).astype(np.float64).transpose(0, 3, 1, 2)
    mean, std = (np.array(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    expected = _convolved(first.node, (pixels / _FULL - mean) / std, first.weight, first.bias)
    x = (_in_frame_order(pixels, preprocessing) - CENTRE) * STEP
    if folded.inside is not None:
        x = np.concatenate([x, np.full_like(x[:, :1], folded.inside)], axis=1)
    return relative(_convolved(first.node, x, folded.weight, folded.bias), expected)


def _in_frame_order(channels: _Float64, preprocessing: Preprocessing) -> _Float64:
    """Return a model's input channels, the second axis, in the order that frames have them."""
    return channels[:, ::-1] if preprocessing.channels == "BGR" else channels


def _convolved(node: ir.Node, images: _Float64, weight: _Float64, bias: _Float64) -> torch.Tensor:
    import torch

    top, left, bottom, right = node.attributes.get_ints("pads", (0, 0, 0, 0))
    padded = torch.nn.functional.pad(torch.tensor(images.copy()), (left, right, top, bottom))
    return torch.nn.functional.conv2d(
        padded,
        torch.tensor(weight.copy()),
        torch.tensor(bias),
        stride=tuple(node.attributes.get_ints("strides", (1, 1))),
        dilation=tuple(node.attributes.get_ints("dilations", (1, 1))),
    )


# --- the graph -----------------------------------------------------------------------------------


def _written(
    parsed: ir.Model,
    model: Artifact,
    first: _Convolution,
    folded: _Folded,
    preprocessing: Preprocessing,
    out: Path,
) -> Artifact:
    graph = parsed.graph
    (frames,) = graph.inputs
    first.node.replace_input_with(0, frames)
    _remove_preparation(graph)
    chain = Chain(graph, frames)
    append_planes(chain, preprocessing.channels)
    chain.append("Sub", np.array(CENTRE, np.float32))
    chain.append("Mul", np.array(STEP, np.float32))
    if folded.inside is not None:
        chain.append("Pad", np.array([0, 0, 0, 0, 0, 1, 0, 0]), np.array(folded.inside, np.float32))
    first.node.replace_input_with(0, chain.end)
    graph.insert_before(graph[0], chain.nodes)
    _give(graph, first.node, 1, folded.weight)
    _give(graph, first.node, 2, folded.bias)
    data = serialise(parsed)
    write_bytes(out, data)
    return replace(
        model,
        path=out.absolute(),
        sha256=sha256_bytes(data),
        parents=(*model.parents, model.sha256),
        meta={**model.meta, "nodes": len(graph), PIXELS_KEY: {"tensor": str(chain.end.name), "step": STEP}},
    )


def _remove_preparation(graph: ir.Graph) -> None:
    nodes = [node for node in graph if prepares(node)]
    constants = [
        value for node in nodes for value in node.inputs if value is not None and value.is_initializer()
    ]
    graph.remove(nodes, safe=True)
    for value in constants:
        graph.initializers.pop(str(value.name))


def _give(graph: ir.Graph, node: ir.Node, index: int, numbers: _Float64) -> None:
    """Put numbers in the place of a constant input, or add one."""
    import onnx_ir as ir

    old = node.inputs[index] if len(node.inputs) > index else None
    name = f"{node.name}.{'bias' if index == 2 else 'weight'}" if old is None else str(old.name)
    tensor = ir.tensor(np.ascontiguousarray(numbers, np.float32), name=name)
    if old is not None:
        graph.initializers.pop(name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(numbers.shape), const_value=tensor
    )
    graph.register_initializer(value)
    node.resize_inputs(max(index + 1, len(node.inputs)))
    node.replace_input_with(index, value)
