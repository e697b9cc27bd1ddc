"""Which layer of an engine brings in its error: each compared with the FP32 graph, and alone.

The FP32 graph is computed node by node twice. Once on the images, which gives what a layer's output should
be. And once with each layer on what the engine's own layer was given: what differs then is this layer's
error alone, and one that only passes through it is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from resedge.artifacts import Artifact
from resedge.calibration.graph import is_constant, label, name_of, read_graph
from resedge.calibration.pixels import PREPARES_KEY
from resedge.calibration.schemes import RESHAPING_OPS, is_weighted
from resedge.calibration.walk import Tensor, Walk, decibels
from resedge.calibration.watchpoints import IntegerGrid, Watchpoint, integers_read, weighted_readers
from resedge.errors import GraphRefused
from resedge.protocols import Array, Float32Array

if TYPE_CHECKING:
    import onnx_ir as ir

Cause = Literal["not finite", "range", "steps", "layer"]

_HALF: Final = 3.0  # dB


@dataclass(frozen=True)
class LayerError:
    """A layer of an engine against the FP32 graph; ratios of signal to noise in dB, None if not finite.

    `tensor` is the output's name in the FP32 graph. `nodes` make it of what can be seen before it, but for
    those that an earlier layer has; the engine's input has none. `sqnr` is the output against the FP32
    graph's, `alone` against that of the same layer in FP32 on the engine's own inputs: of two layers with a
    node in common both have its error. Where the output is integers, `rounding` is what they make of that,
    `cut_off` the fraction of its values that lie beyond them, and `cut_energy` the fraction of the
    rounding's error that is in those. `weighted` are the nodes with a quantised weight; `readers` those that
    read the integers, () where not all of them have a weight.
    """

    tensor: str
    nodes: tuple[str, ...]
    sqnr: float | None
    alone: float | None
    rounding: float | None
    cut_off: float | None
    cut_energy: float | None
    weighted: tuple[str, ...]
    readers: tuple[str, ...]

    @property
    def name(self) -> str:
        """What a reader calls it: its nodes, or the tensor that is the engine's input."""
        return " + ".join(self.nodes) or self.tensor

    @property
    def cause(self) -> Cause:
        """What makes most of the layer's own error: its output's range or steps, or all the rest."""
        if self.alone is None:
            return "not finite"
        if self.rounding is None or self.rounding > self.alone + _HALF:
            return "layer"
        return "range" if self.cut_energy is not None and self.cut_energy > 0.5 else "steps"

    @property
    def keep(self) -> tuple[str, ...]:
        """The layers that take the layer's own error away if they are kept float."""
        return self.readers if self.cause in ("range", "steps") else self.weighted


class LayerComparison:
    """Collects, batch by batch, what an engine's tensors are off by.

    Args:
        model: The FP32 graph.
        graph: What the engine was built from: the same, or the Q/DQ graph made from it.
        seen: What is watched.
        threads: Of ONNX Runtime.

    Raises:
        GraphRefused: `graph` lacks a node of `model`.
    """

    def __init__(self, model: Artifact, graph: Artifact, seen: Sequence[Watchpoint], threads: int) -> None:
        self._graph = read_graph(model.read(), str(model.path)).graph
        self._engine = read_graph(graph.read(), str(graph.path)).graph
        self._twins = dict(self._nodes_in_both())
        self._threads = threads
        self._grids = {point.name: point.grid for point in seen}
        self._given = {node: self._names_given(node) for node in self._graph}
        self._rows = dict(self._visible(seen))

    def add(self, images: Array, watched: Mapping[str, Array], logits: Float32Array) -> Float32Array:
        """Compare one batch.

        Args:
            images: What the graphs take, (N, …).
            watched: What the engine's tensors held on them, by their names in it.
            logits: The engine's, (N, classes) float32.

        Returns:
            The logits of the FP32 graph, alike.

        Raises:
            GraphRefused: ONNX Runtime cannot run a node of the FP32 graph.
        """
        result = self._graph.outputs[0]
        held = {name: self._reals(name, tensor) for name, tensor in watched.items()}
        held[name_of(result)] = logits
        exact, forced = (Walk(self._graph, images, self._threads) for _ in range(2))
        self._compare(self._graph.inputs[0], images, images, held)
        for node in exact.nodes:
            expected = exact.compute(node, exact.inputs_of(node))
            exact.keep(node, expected)
            given = zip(self._given[node], forced.inputs_of(node), strict=True)
            intended = forced.compute(node, [held[name] if name else computed for name, computed in given])
            forced.keep(node, intended)
            self._compare(node.outputs[0], expected, intended, held)
        expected_logits: Float32Array = exact.held(result)
        return expected_logits

    def layers(self) -> tuple[LayerError, ...]:
        """Return the layers that can be seen, in the graph's order."""
        found: list[LayerError] = []
        named: set[ir.Node] = set()
        for value, row in self._rows.items():
            nodes = [node for node in self._computed_as_one(value) if node not in named]
            named.update(nodes)
            found.append(self._layer(value, nodes, row))
        return tuple(found)

    def _nodes_in_both(self) -> Iterator[tuple[ir.Node, ir.Node]]:
        """Yield each node and the one of its name in the engine's graph.

        What prepares frames may have none: an engine whose pixels are integers reads their bytes.
        """
        in_engine = {node.name: node for node in self._engine}
        for node in self._graph:
            if node.name in in_engine:
                yield node, in_engine[node.name]
            elif PREPARES_KEY not in node.metadata_props:
                raise GraphRefused("is not in the graph that the engine was built from.", where=label(node))

    def _names_given(self, node: ir.Node) -> tuple[str | None, ...]:
        """Return for each input of a node the tensor that it gets in the engine, None if that is not seen."""
        if node not in self._twins:
            return (None,) * len(node.inputs)
        found = []
        for value, in_engine in zip(node.inputs, self._twins[node].inputs, strict=True):
            names = (name_of(integers_read(in_engine) or in_engine), name_of(value))
            found.append(next((name for name in names if name in self._grids), None))
        return tuple(found)

    def _visible(self, seen: Sequence[Watchpoint]) -> Iterator[tuple[ir.Value, _Row]]:
        """Yield the tensors that are seen, and the logits; of two forms of one the integers count."""
        names = {point.tensor: point.name for point in sorted(seen, key=lambda point: point.grid is not None)}
        names[name_of(self._graph.outputs[0])] = name_of(self._graph.outputs[0])
        for value in (self._graph.inputs[0], *(node.outputs[0] for node in self._graph)):
            name = names.get(name_of(value))
            if name is not None:
                yield value, _Row(name, self._grids.get(name))

    def _reals(self, name: str, tensor: Array) -> Float32Array:
        grid = self._grids[name]
        return tensor.astype(np.float32) if grid is None else grid.reals(tensor)

    def _compare(
        self, value: ir.Value, expected: Tensor, intended: Tensor, held: Mapping[str, Float32Array]
    ) -> None:
        if value in self._rows:
            row = self._rows[value]
            row.add(expected, intended, held[row.name])

    def _layer(self, value: ir.Value, nodes: Sequence[ir.Node], row: _Row) -> LayerError:
        return LayerError(
            tensor=name_of(value),
            nodes=tuple(node.name or "" for node in nodes),
            sqnr=row.output.decibels,
            alone=row.alone.decibels,
            rounding=row.rounding.decibels if row.grid else None,
            cut_off=row.cut_off / row.numbers if row.numbers else None,
            cut_energy=row.cut_noise / row.rounding.noise if row.rounding.noise else None,
            weighted=tuple(node.name or "" for node in nodes if self._has_quantised_weight(node)),
            readers=weighted_readers(self._engine, row.name) if row.grid else (),
        )

    def _has_quantised_weight(self, node: ir.Node) -> bool:
        return is_weighted(node) and not is_constant(self._twins[node].inputs[1])

    def _computed_as_one(self, value: ir.Value) -> list[ir.Node]:
        """Return the nodes behind a tensor, back to what can be seen; reshapes compute nothing."""
        found: set[ir.Node] = set()
        front = [value.producer()]
        while front:
            node = front.pop()
            if node is None or node in found:
                continue
            found.add(node)
            inputs = zip(node.inputs, self._given[node], strict=True)
            front += [unseen.producer() for unseen, name in inputs if unseen is not None and name is None]
        return [node for node in self._graph if node in found and node.op_type not in RESHAPING_OPS]


@dataclass(eq=False)
class _Ratio:
    """Sums for a ratio of signal to noise; once something was not finite there is none."""

    signal: float = 0.0
    noise: float = 0.0
    finite: bool = True

    def add(self, expected: Tensor, given: Tensor) -> None:
        self.finite = self.finite and bool(np.isfinite(expected).all() and np.isfinite(given).all())
        if self.finite:
            wanted = expected.astype(np.float64)
            self.signal += float(np.square(wanted).sum())
            self.noise += float(np.square(wanted - given).sum())

    @property
    def decibels(self) -> float | None:
        return decibels(self.signal, self.noise) if self.finite else None


@dataclass(eq=False)
class _Row:
    """What is summed up for one tensor; `name` and `grid` are the form in which the engine holds it."""

    name: str
    grid: IntegerGrid | None
    output: _Ratio = field(default_factory=_Ratio)
    alone: _Ratio = field(default_factory=_Ratio)
    rounding: _Ratio = field(default_factory=_Ratio)
    cut_noise: float = 0.0
    cut_off: int = 0
    numbers: int = 0

    def add(self, expected: Tensor, intended: Tensor, given: Tensor) -> None:
        self.output.add(expected, given)
        self.alone.add(intended, given)
        if self.grid is not None and np.isfinite(intended).all():
            nearest, outside = self.grid.nearest(intended), self.grid.cuts_off(intended)
            self.rounding.add(intended, nearest)
            self.cut_noise += float(np.square((intended - nearest)[outside], dtype=np.float64).sum())
            self.cut_off += int(outside.sum())
            self.numbers += intended.size
