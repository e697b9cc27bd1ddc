"""Frames as a camera gives them, taken by the graph itself: what prepares an image becomes its first nodes.

They compute what `resedge.images.prepare` does, in float32: a Cast, which is all that TensorRT lets read
bytes, the layout, the channels in the model's order or their luma, mean and standard deviation. All that is
not zero or one already is there. The layout comes before the arithmetic: a constant for each of three numbers
that lie side by side is slow, one for each plane is not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Artifact, Channels, Preprocessing, TensorSpec, sha256_bytes
from resedge.errors import GraphRefused
from resedge.export.onnxfile import MODULE_KEY, serialise, unique
from resedge.files import write_bytes
from resedge.images.preparing import LUMA
from resedge.protocols import Float32Array

if TYPE_CHECKING:
    import onnx_ir as ir

PREPARES_KEY: Final = "resedge.prepares"  # of a node's metadata: it stands in front of the model
_FULL: Final = 255.0


def take_frames(model: Artifact, preprocessing: Preprocessing, out: Path) -> Artifact:
    """Write a float graph with the preprocessing of its images in front.

    Args:
        model: As `write_onnx` wrote it: "input" is (N, C, H, W) float32.
        preprocessing: What its images go through.
        out: The file to write; it may be the model's own.

    Returns:
        The same kind, its "input" (N, H, W, 3) uint8: RGB, or (N, H, W, 4) RGBA where the model takes alpha.

    Raises:
        GraphRefused: The graph takes images of another shape.
        StaleArtifact, InputRefused: `model` cannot be read, or `out` cannot be written.
        MachineFailure: The disk is full.
    """
    import onnx
    import onnx_ir as ir

    parsed = ir.from_proto(onnx.load_from_string(model.read()))
    (images,) = parsed.graph.inputs
    _demand_shape(images, preprocessing, str(model.path))
    batch = model.inputs[0].shape[0]
    shape = (batch, *preprocessing.frame_shape)
    frames = ir.Value(name=images.name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(shape))
    chain = Chain(parsed.graph, frames)
    _prepare(chain, preprocessing)
    chain.put_before(images)
    parsed.graph.inputs[0] = frames
    data = serialise(parsed)
    write_bytes(out, data)
    return replace(
        model,
        path=out.absolute(),
        sha256=sha256_bytes(data),
        inputs=(TensorSpec(str(frames.name), shape, "uint8"),),
        meta={**model.meta, "nodes": len(parsed.graph)},
    )


def prepares(node: ir.Node) -> bool:
    """Say whether a node is of those that `take_frames` has put in front of a model."""
    return PREPARES_KEY in node.metadata_props


class Chain:
    """Nodes one after the other, each of which reads the one before."""

    def __init__(self, graph: ir.Graph, start: ir.Value) -> None:
        self.nodes: list[ir.Node] = []
        self.end = start
        self._graph = graph
        self._taken = {str(node.name) for node in graph}

    def append(self, op_type: str, *constants: npt.NDArray[Any], **attributes: Any) -> None:  # noqa: ANN401
        """Add a node that reads the chain's end and constants."""
        import onnx_ir as ir

        name = unique(f"frames.{op_type.lower()}", self._taken)
        stored = [self._stored(f"{name}.const.{i}", each) for i, each in enumerate(constants, start=1)]
        node = ir.node(op_type, [self.end, *stored], attributes or None, name=name)
        node.metadata_props.update({MODULE_KEY: "", PREPARES_KEY: "frames"})
        node.outputs[0].name = f"{name}.out"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.nodes.append(node)
        self.end = node.outputs[0]

    def put_before(self, value: ir.Value) -> None:
        """Put the nodes first in the graph, and let all that reads a value read the chain's end."""
        for reader, index in tuple(value.uses()):
            reader.replace_input_with(index, self.end)
        self._graph.insert_before(self._graph[0], self.nodes)

    def _stored(self, name: str, numbers: npt.NDArray[Any]) -> ir.Value:
        import onnx_ir as ir

        tensor = ir.tensor(numbers, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(numbers.shape), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value


def append_planes(chain: Chain, channels: Channels) -> None:
    """Append what makes bytes whole numbers in float32, a plane a channel; grey where a model takes that."""
    import onnx_ir as ir

    chain.append("Cast", to=int(ir.DataType.FLOAT))
    chain.append("Transpose", perm=[0, 3, 1, 2])
    if channels == "L":  # whole numbers below 2**24: float32 is exact in any order
        chain.append("Mul", by_channel(LUMA))
        chain.append("ReduceSum", np.array([1]), keepdims=1)
        chain.append("Add", np.array(1 << 15, np.float32))
        chain.append("Mul", np.array(2.0**-16, np.float32))
        chain.append("Floor")


def by_channel(numbers: npt.ArrayLike) -> Float32Array:
    """Return a number for each channel in the shape that meets planes, (C, 1, 1) float32."""
    return np.asarray(numbers, np.float32).reshape(-1, 1, 1)


def _prepare(chain: Chain, preprocessing: Preprocessing) -> None:
    """Append what makes (N, H, W, 3 or 4) bytes the model's (N, C, H, W) numbers."""
    append_planes(chain, preprocessing.channels)
    if preprocessing.channels == "BGR":
        chain.append("Gather", np.array([2, 1, 0]), axis=1)
    subtracted = _FULL * np.array(preprocessing.mean)
    factors = 1 / (_FULL * np.array(preprocessing.std))
    if subtracted.any():
        chain.append("Sub", by_channel(subtracted))
    if (factors != 1).any():
        chain.append("Mul", by_channel(factors))


def _demand_shape(images: ir.Value, preprocessing: Preprocessing, where: str) -> None:
    shape = () if images.shape is None else tuple(images.shape)[1:]
    if shape != preprocessing.input_shape:
        raise GraphRefused(
            f"takes images of the shape {shape}, its preprocessing gives {preprocessing.input_shape}.",
            where=where,
        )
