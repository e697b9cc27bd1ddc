"""A graph computed node by node in float, and how far another computation of it is off, in decibels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from resedge.calibration.graph import label, run_node
from resedge.errors import GraphRefused
from resedge.protocols import Array, Float32Array

if TYPE_CHECKING:
    import onnx_ir as ir

Tensor = npt.NDArray[Any]

_EXACT: Final = 200.0  # dB, of what does not differ at all


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of a signal's energy to a noise's, -200 to 200 dB."""
    if not noise:
        return _EXACT
    return min(10 * math.log10(signal / noise), _EXACT) if signal else -_EXACT


def signal_to_noise(expected: Float32Array, given: Float32Array) -> float:
    """Return how many decibels the difference of two arrays lies below the first, see `decibels`."""
    signal = _energy(expected)
    return decibels(signal, _energy(expected, given))


def _energy(expected: Float32Array, given: Float32Array | None = None) -> float:
    """Return the sum of squares of an array or of a difference, image by image: a float64 copy is large."""
    found = 0.0
    for i in range(len(expected)):
        one = expected[i] if given is None else expected[i] - given[i]
        found += float(np.square(one, dtype=np.float64).sum())
    return found


class Walk:
    """A graph computed node by node over a set of images; a tensor is held until its last reader."""

    def __init__(self, graph: ir.Graph, images: Array, threads: int) -> None:
        self.nodes = tuple(graph)
        self._threads = threads
        self._left = Counter(value for node in graph for value in node.inputs if value is not None)
        self._tensors: dict[ir.Value, Tensor] = {graph.inputs[0]: images}
        self._remaining = iter(self.nodes)

    def input_and_output_of(self, name: str) -> tuple[Float32Array, Float32Array]:
        """Compute up to the node of that name and return its first input and its output."""
        for node in self._remaining:
            inputs = self.inputs_of(node)
            output = self.compute(node, inputs)
            self.keep(node, output)
            if node.name == name:
                assert inputs[0] is not None  # of a node with a weight
                return inputs[0], output
        raise GraphRefused("is not in the FP32 graph, or not in this order.", where=name)

    def inputs_of(self, node: ir.Node) -> list[Tensor | None]:
        """Return a node's inputs; None is one that is left out."""
        return [self._tensor(value) for value in node.inputs]

    def held(self, value: ir.Value) -> Tensor:
        """Return a tensor that was kept and has readers left, or none at all."""
        return self._tensors[value]

    def constant(self, node: ir.Node, index: int) -> Tensor:
        """Return an input of a node that is fixed in the file."""
        value = node.inputs[index]
        if value is None or value.const_value is None:
            raise GraphRefused(f"input {index} is not a constant in the file.", where=label(node))
        return value.const_value.numpy()

    def compute(self, node: ir.Node, inputs: Sequence[Tensor | None]) -> Tensor:
        """Run one node in ONNX Runtime."""
        return run_node(node, inputs, self._threads)

    def keep(self, node: ir.Node, output: Tensor) -> None:
        """Hold a node's output for its readers, and let go of what it was the last to read."""
        self._tensors[node.outputs[0]] = output
        for value in node.inputs:
            if value is None:
                continue
            self._left[value] -= 1
            if not self._left[value]:
                self._tensors.pop(value, None)

    def _tensor(self, value: ir.Value | None) -> Tensor | None:
        if value is None:
            return None
        return self._tensors[value] if value.const_value is None else value.const_value.numpy()
