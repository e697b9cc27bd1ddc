"""Pixels that are the integers of a Q/DQ graph themselves, with nothing to round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from resedge.artifacts import Artifact, Ranges, decode
from resedge.calibration.graph import name_of
from resedge.calibration.grids import Grid
from resedge.calibration.schemes import Scheme

if TYPE_CHECKING:
    import onnx_ir as ir

PREPARES_KEY: Final = "resedge.prepares"  # of a node's metadata: it stands in front of the model
_KEY: Final = "pixels"  # of an artifact's meta
_CENTRE: Final = 128
_LARGEST: Final = 255
_FLOAT_CHAIN: Final = ("Cast", "Transpose", "Sub", "Mul")  # from bytes to the tensor, but for a Pad


@dataclass(frozen=True)
class Pixels:
    """The tensor of an FP32 graph that holds (pixel - 128) * step, and no other numbers."""

    tensor: str
    step: float

    def grid(self, scheme: Scheme) -> Grid:
        """Return the grid that all of them are on."""
        return Grid(np.float32(self.step), 0 if scheme.symmetric else _CENTRE)


def pixels_of(model: Artifact) -> Pixels | None:
    """Return what a graph says of its pixels, None where their normalisation is not folded into it."""
    said = model.meta.get(_KEY)
    return None if said is None else decode(Pixels, said, f"{model.path}: {_KEY}")


def with_range_of_pixels(ranges: Ranges, model: Artifact) -> Ranges:
    """Return ranges in which pixels, where a graph says that it has them, have that of all there can be."""
    pixels = pixels_of(model)
    if pixels is None:
        return ranges
    ends = (-_CENTRE * pixels.step, (_LARGEST - _CENTRE) * pixels.step)
    return replace(ranges, table={**ranges.table, pixels.tensor: ends})


def read_bytes(graph: ir.Graph, pixels: Pixels) -> None:
    """Let DequantizeLinear read the bytes, where QuantizeLinear on a grid of uint8 gives just them.

    What made floats of them goes, in place. Frames whose bytes are not the pixels, grey ones of colours, keep
    it, and so does a graph in which the pixels are not quantised.
    """
    quantise = next((node for node in graph if _quantises(node, pixels)), None)
    if quantise is None:
        return
    chain = _chain_before(quantise)
    (frames,) = graph.inputs
    pad = chain.pop() if chain and chain[-1].op_type == "Pad" else None
    if tuple(node.op_type for node in chain) != _FLOAT_CHAIN or chain[0].inputs[0] is not frames:
        return
    cast, transpose, *arithmetic = chain
    ((dequantise, _),) = quantise.outputs[0].uses()
    transpose.replace_input_with(0, frames)
    if pad is None:
        _put_behind(graph, transpose, dequantise)
    else:
        transpose.outputs[0].type = frames.type
        dequantise.replace_input_with(0, _pad_bytes(graph, pad, transpose.outputs[0], pixels))
    for node in (quantise, *reversed(arithmetic), cast):
        _remove(graph, node)


def reads_bytes(value: ir.Value | None) -> bool:
    """Say whether a tensor holds a frame's bytes: the graph's input, moved, or with a channel added."""
    import onnx_ir as ir

    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in ("Pad", "Transpose"):
        value = producer.inputs[0]
        producer = value.producer() if value is not None else None
    return value is not None and value.is_graph_input() and value.dtype == ir.DataType.UINT8


def _quantises(node: ir.Node, pixels: Pixels) -> bool:
    return node.op_type == "QuantizeLinear" and name_of(node.inputs[0]) == pixels.tensor


def _chain_before(node: ir.Node) -> list[ir.Node]:
    """Return the nodes before one, the first first, each of which is read by the next alone."""
    found: list[ir.Node] = []
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None and len(value.uses()) == 1:
        found.insert(0, producer)
        value = producer.inputs[0]
    return found


def _put_behind(graph: ir.Graph, transpose: ir.Node, dequantise: ir.Node) -> None:
    """Let a DQ read what a Transpose reads, and the Transpose the DQ: so runtimes move one byte a value."""
    readers = tuple(dequantise.outputs[0].uses())
    dequantise.replace_input_with(0, transpose.inputs[0])
    transpose.replace_input_with(0, dequantise.outputs[0])
    for reader, index in readers:
        reader.replace_input_with(index, transpose.outputs[0])
    graph.remove(transpose)
    graph.insert_after(dequantise, transpose)


def _pad_bytes(graph: ir.Graph, pad: ir.Node, bytes_: ir.Value, pixels: Pixels) -> ir.Value:
    """Pad bytes in the place of floats, with the byte that the filling is."""
    import onnx_ir as ir

    old = pad.inputs[2]
    assert old is not None  # its filling is the further channel
    assert old.const_value is not None
    byte = np.rint(old.const_value.numpy() / np.float32(pixels.step)) + _CENTRE
    graph.initializers.pop(name_of(old))
    tensor = ir.tensor(byte.astype(np.uint8), name=old.name)
    filling = ir.Value(
        name=old.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(()), const_value=tensor
    )
    graph.register_initializer(filling)
    pad.replace_input_with(0, bytes_)
    pad.replace_input_with(2, filling)
    pad.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    return pad.outputs[0]


def _remove(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node that nothing reads any more, and the constants that it alone has read."""
    read = [value for value in node.inputs if value is not None and value.is_initializer()]
    graph.remove(node, safe=True)
    for value in read:
        if not value.uses():
            graph.initializers.pop(name_of(value), None)
