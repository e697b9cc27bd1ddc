"""Writes calibrated ranges into a graph as QuantizeLinear / DequantizeLinear pairs.

Tensor X of the FP32 graph gives `X.quantized` and `X.dequantized`, with initialisers `X.scale` and
`X.zero_point`; nodes bear the name of their output. All readers of one tensor share its pair. A
weight is stored as int8 and has a DequantizeLinear alone. Pixels have a grid of their own, on which
all of them are, whatever range was calibrated.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Artifact, Ranges, encode, sha256_bytes, sha256_json
from resedge.calibration.graph import is_constant, label, name_of, read_graph, write_graph
from resedge.calibration.grids import Grid, activation_grid, quantise_weight
from resedge.calibration.pixels import Pixels, pixels_of, read_bytes
from resedge.calibration.rules import KEPT_KEY, check_qdq
from resedge.calibration.schemes import (
    Scheme,
    Site,
    activation_sites,
    is_weighted,
    scheme_named,
    weight_axis,
)
from resedge.errors import GraphRefused, StaleArtifact, UsageError
from resedge.files import write_bytes

if TYPE_CHECKING:
    import onnx_ir as ir


def place(
    model: Artifact,
    ranges: Ranges,
    scheme: str,
    out: Path,
    *,
    pair_safe: bool = False,
    kept: AbstractSet[str] = frozenset(),
    wide: AbstractSet[str] = frozenset(),
) -> Artifact:
    """Write the Q/DQ graph of an FP32 model.

    Args:
        model: FP32 ONNX, opset 19, BatchNorm folded.
        ranges: Of this very graph.
        scheme: "cpu" or "tensorrt", see `resedge.calibration.schemes`.
        out: The file to write.
        pair_safe: Limit the weights so that no pair of products leaves 16 bits, for a CPU that adds
            them there (`resedge.calibration.saturation`).
        kept: Names of nodes with a weight that stay float. The file lists them under `rules.KEPT_KEY`.
        wide: Names of nodes that stay FP32 should the graph become FP16: a scale that none but they use
            need not be an FP16 number, and some cannot be.

    Returns:
        An artifact of kind "onnx/int8.cpu" or "onnx/int8.tensorrt", checked by `check_qdq`.

    Raises:
        UsageError: Unknown scheme, or a name in `kept` is no node with a weight.
        StaleArtifact: The ranges are another graph's, or a tensor has none.
        GraphRefused: The graph cannot be quantised by this scheme; nothing is written.
    """
    chosen = scheme_named(scheme)
    _refuse_stale(model, ranges)
    quantised = read_graph(model.read(), str(model.path))
    _refuse_quantised(quantised.graph)
    _refuse_unknown(quantised.graph, kept)
    pixels = pixels_of(model)
    _quantise_activations(quantised.graph, ranges, chosen, kept, wide, pixels)
    _quantise_weights(quantised.graph, chosen, pair_safe, kept, wide)
    if pixels and chosen.dtype == "uint8":
        read_bytes(quantised.graph, pixels)
    if kept:
        quantised.metadata_props[KEPT_KEY] = json.dumps(sorted(kept))
    data = write_graph(quantised)
    check_qdq(data, scheme)
    write_bytes(out, data)
    return Artifact(
        path=out,
        sha256=sha256_bytes(data),
        kind=f"onnx/int8.{scheme}",
        inputs=model.inputs,
        outputs=model.outputs,
        parents=(model.sha256, sha256_json(encode(ranges))),
        meta={
            **{"scheme": scheme, "method": ranges.method, "pair_safe": pair_safe, "kept": sorted(kept)},
            **({"pixels": encode(pixels)} if pixels else {}),
        },
    )


def _refuse_stale(model: Artifact, ranges: Ranges) -> None:
    if ranges.graph_sha256 != model.sha256:
        raise StaleArtifact(
            f"the ranges belong to graph {ranges.graph_sha256[:12]}, this one is {model.sha256[:12]}.",
            where=str(model.path),
            cure="Calibrate this graph.",
        )


def _refuse_unknown(graph: ir.Graph, kept: AbstractSet[str]) -> None:
    known = {node.name for node in graph if is_weighted(node)}
    if unknown := sorted(kept - known):
        raise UsageError(f"{', '.join(unknown)}: no node with a weight is called so.")


def _refuse_quantised(graph: ir.Graph) -> None:
    for node in graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise GraphRefused(
                "is in the graph already.", where=label(node), cure="Start from the FP32 graph."
            )


def _quantise_activations(
    graph: ir.Graph,
    ranges: Ranges,
    scheme: Scheme,
    kept: AbstractSet[str],
    wide: AbstractSet[str],
    pixels: Pixels | None,
) -> None:
    pairs: dict[ir.Value, ir.Value] = {}
    sites = tuple(activation_sites(graph, scheme, kept))  # before the graph changes
    narrow = {origin for site in sites if site.node.name not in wide for origin in site.origins}
    for site in sites:
        if site.value not in pairs:
            theirs = scheme if narrow.intersection(site.origins) else _in_float(scheme)
            if pixels and name_of(site.value) == pixels.tensor:
                grid = pixels.grid(theirs)
            else:
                grid = activation_grid(*_range_of(site, ranges), theirs)
            pairs[site.value] = _insert_pair(graph, site, grid, theirs)
        site.node.replace_input_with(site.index, pairs[site.value])


def _insert_pair(graph: ir.Graph, site: Site, grid: Grid, scheme: Scheme) -> ir.Value:
    """Put Q and DQ behind a tensor's producer, and return what DQ gives."""
    value, name = site.value, name_of(site.value)
    scale = _initialiser(graph, f"{name}.scale", np.asarray(grid.scale))
    zero_point = _initialiser(graph, f"{name}.zero_point", np.asarray(grid.zero_point, dtype=scheme.dtype))
    quantise = _node("QuantizeLinear", [value, scale, zero_point], f"{name}.quantized")
    integers = quantise.outputs[0]
    dequantise = _node("DequantizeLinear", [integers, scale, zero_point], f"{name}.dequantized")
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantise, dequantise])
    else:
        graph.insert_after(producer, [quantise, dequantise])
    return dequantise.outputs[0]


def _range_of(site: Site, ranges: Ranges) -> tuple[float, float]:
    """Return the range that holds those of all tensors with which a site must share its scale."""
    names = [name_of(origin) for origin in site.origins]
    for name in names:
        if name not in ranges.table:
            raise StaleArtifact("has no calibrated range.", where=name, cure="Calibrate this graph.")
    lows, highs = zip(*(ranges.table[name] for name in names), strict=True)
    return min(lows), max(highs)


def _in_float(scheme: Scheme) -> Scheme:
    return replace(scheme, half_scales=False)


def _quantise_weights(
    graph: ir.Graph, scheme: Scheme, pair_safe: bool, kept: AbstractSet[str], wide: AbstractSet[str]
) -> None:
    stored: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in tuple(graph):
        if not is_weighted(node) or node.name in kept:
            continue
        weight, axis = node.inputs[1], weight_axis(node)
        if weight is None or weight.const_value is None or not is_constant(weight):
            raise GraphRefused("its weight is not in the file.", where=label(node))
        if (weight, axis) not in stored:
            narrow = any(use.node.name not in wide for use in weight.uses())
            theirs = scheme if narrow else _in_float(scheme)
            stored[weight, axis] = _insert_weight(graph, node, weight, axis, theirs, pair_safe)
        node.replace_input_with(1, stored[weight, axis])
    for weight in dict.fromkeys(weight for weight, _ in stored):
        if not weight.uses():
            graph.initializers.pop(name_of(weight), None)


def _insert_weight(
    graph: ir.Graph, reader: ir.Node, weight: ir.Value, axis: int, scheme: Scheme, pair_safe: bool
) -> ir.Value:
    """Store a weight as int8 with a DQ before its first reader, and return what DQ gives."""
    assert weight.const_value is not None
    name, numbers = name_of(weight), weight.const_value.numpy()
    if not np.isfinite(numbers).all():
        raise GraphRefused("holds NaN or infinity.", where=name)
    quantised = quantise_weight(numbers, axis, scheme, pair_safe=pair_safe)
    inputs = [
        _initialiser(graph, f"{name}.quantized", quantised.integers),
        _initialiser(graph, f"{name}.scale", quantised.scales),
        _initialiser(graph, f"{name}.zero_point", np.zeros(len(quantised.scales), np.int8)),
    ]
    dequantise = _node("DequantizeLinear", inputs, f"{name}.dequantized", axis=axis)
    graph.insert_before(reader, dequantise)
    return dequantise.outputs[0]


def _node(op_type: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Node:
    """Make a node of one output that bears the node's name."""
    import onnx_ir as ir

    node = ir.node(op_type, inputs, attributes or None, name=name)
    node.outputs[0].name = name
    return node


def _initialiser(graph: ir.Graph, name: str, numbers: npt.NDArray[Any]) -> ir.Value:
    import onnx_ir as ir

    if name in graph.initializers:
        raise GraphRefused("a tensor of this name is in the graph already.", where=name)
    tensor = ir.tensor(numbers, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(numbers.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
