"""Where to look into a running engine: the tensors at the borders of what a runtime fuses, by its graph.

In a Q/DQ graph these are the integers that QuantizeLinear gives: they pass from one integer kernel to the
next, while the floats before them exist only if they are asked for. A tensor that stays float is looked at
where it is read; what an activation function alone reads belongs to that function's layer, and what a
reshape gives is no news.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Artifact
from resedge.calibration.graph import is_constant, label, name_of, read_graph
from resedge.calibration.schemes import RESHAPING_OPS, is_weighted
from resedge.calibration.walk import Tensor
from resedge.errors import GraphRefused
from resedge.protocols import Float32Array

if TYPE_CHECKING:
    import onnx_ir as ir

_ACTIVATIONS: Final = frozenset(
    {"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh"}
)
_NOT_COMPUTING: Final = RESHAPING_OPS | {"Constant", "DequantizeLinear", "QuantizeLinear"}


@dataclass(frozen=True, eq=False)
class IntegerGrid:
    """The scale, float32, and the zero point of a QuantizeLinear, and the type of its integers."""

    scale: Tensor
    zero_point: Tensor

    def reals(self, integers: npt.NDArray[np.generic]) -> Float32Array:
        """Return what integers of this grid stand for."""
        steps = integers.astype(np.float64) - self._zero
        reals: Float32Array = (steps * self._step).astype(np.float32)
        return reals

    def nearest(self, numbers: Float32Array) -> Float32Array:
        """Return the reals of the grid that are nearest to numbers."""
        ends = np.iinfo(self.zero_point.dtype)
        places = np.rint(numbers.astype(np.float64) / self._step) + self._zero
        return self.reals(np.clip(places, ends.min, ends.max))

    def cuts_off(self, numbers: Float32Array) -> npt.NDArray[np.bool_]:
        """Say of each number whether it lies beyond the grid's ends by more than half a step."""
        ends = np.iinfo(self.zero_point.dtype)
        low, high = ((end - self._zero) * self._step for end in (ends.min - 0.5, ends.max + 0.5))
        outside: npt.NDArray[np.bool_] = (numbers < low) | (numbers > high)
        return outside

    @property
    def _step(self) -> float:
        return float(self.scale.item())

    @property
    def _zero(self) -> int:
        return int(self.zero_point.item())


@dataclass(frozen=True, eq=False)
class Watchpoint:
    """A tensor of an engine's graph.

    `tensor` is its name in the FP32 graph, `name` in the engine's; they differ where it holds integers,
    those of `grid`. `kind` says by which operators it is made and read. An `instead` is to be looked at
    where the integers of the same tensor cannot be seen.
    """

    tensor: str
    name: str
    grid: IntegerGrid | None
    kind: str
    instead: bool


def watchpoints(graph: Artifact) -> tuple[Watchpoint, ...]:
    """Return where to look into an engine that was built from a graph, FP32 or Q/DQ, in the graph's order.

    Raises:
        GraphRefused: It is no graph, or a scale or a zero point in it is not fixed.
    """
    parsed = read_graph(graph.read(), str(graph.path)).graph
    found: list[Watchpoint] = []
    for value in (*parsed.inputs, *(output for node in parsed for output in node.outputs)):
        producer = value.producer()
        if value.is_graph_output() or (producer is not None and producer.op_type in _NOT_COMPUTING):
            continue
        readers = [node for node, _ in value.uses()]
        if any(node.op_type == "DequantizeLinear" for node in readers):  # bytes of a frame: they are exact
            continue
        quantise = next((node for node in readers if node.op_type == "QuantizeLinear"), None)
        floats = [node for node in readers if node.op_type != "QuantizeLinear"]
        if quantise is not None:
            found.append(_integers(value, quantise))
        if producer is not None and (quantise is not None or not _belongs_to_reader(floats)):
            found.append(Watchpoint(name_of(value), name_of(value), None, _kind(value), not floats))
    return tuple(found)


def integers_read(value: ir.Value | None) -> ir.Value | None:
    """Return the integers that a reader of `value` gets, None where it gets floats or a constant."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or is_constant(producer.inputs[0]):
        return None
    return producer.inputs[0]


def weighted_readers(graph: ir.Graph, integers: str) -> tuple[str, ...]:
    """Return the names of the layers that read a tensor of integers, () if anything without a weight does.

    Once these layers are kept float, the tensor is not quantised any more.
    """
    found: list[str] = []
    front = [node for node in graph if integers in map(name_of, node.inputs)]
    while front:
        node = front.pop(0)
        if node.op_type == "DequantizeLinear" or node.op_type in RESHAPING_OPS:
            front += [reader for reader, _ in node.outputs[0].uses()]
        elif is_weighted(node):
            found.append(node.name or "")
        else:
            return ()
    return tuple(found)


def _integers(value: ir.Value, quantise: ir.Node) -> Watchpoint:
    scale, zero_point = (_fixed(quantise, index) for index in (1, 2))
    integers = quantise.outputs[0]
    grid = IntegerGrid(scale, zero_point)
    return Watchpoint(name_of(value), name_of(integers), grid, _kind(integers), instead=False)


def _fixed(node: ir.Node, index: int) -> Tensor:
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None or value.const_value is None:
        raise GraphRefused(f"input {index} is not a constant in the file.", where=label(node))
    return value.const_value.numpy()


def _belongs_to_reader(readers: list[ir.Node]) -> bool:
    """Say whether a tensor is the inside of a layer: its one reader is an activation function."""
    return len(readers) == 1 and readers[0].op_type in _ACTIVATIONS


def _kind(value: ir.Value) -> str:
    """Return by which operators a tensor is made and read, Q and DQ looked through but said."""
    producer, readers = value.producer(), [node for node, _ in value.uses()]
    source = producer.inputs[0] if producer is not None else None
    if producer is not None and producer.op_type == "QuantizeLinear" and source is not None:
        producer = source.producer()
        readers = [reader for node in readers for reader, _ in node.outputs[0].uses()]
    made = producer.op_type if producer is not None else "input"
    return f"{made} to {', '.join(sorted({node.op_type for node in readers}))}"
