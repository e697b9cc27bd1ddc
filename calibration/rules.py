"""What a Q/DQ graph must be, checked on the finished file.

The rules are those of TensorRT's explicit quantisation (developer guide, "Explicit Quantization";
IQuantizeLayer and IDequantizeLayer in NvInfer.h) and, for the `cpu` scheme, those by which OpenVINO
and ONNX Runtime recognise integer kernels. A file of any origin can be checked, in FP32 or FP16
surroundings, or in FP16 with nodes that stay FP32: a Cast stands where they meet, in front of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Artifact, parse_json
from resedge.calibration.graph import is_constant, label, name_of, read_graph
from resedge.calibration.grids import SMALLEST_HALF_SCALE
from resedge.calibration.pixels import reads_bytes
from resedge.calibration.schemes import (
    RESHAPING_OPS,
    Scheme,
    Site,
    activation_sites,
    is_weighted,
    scheme_named,
    weight_axis,
)
from resedge.errors import GraphRefused

if TYPE_CHECKING:
    import onnx_ir as ir

KEPT_KEY: Final = "resedge.kept"  # of a model's metadata: the JSON list of the nodes that stay float
_OPSET: Final = 19  # the first with FP16 scales, and the last in which TensorRT 10.3 reads them
_NEWEST_IR: Final = 10
_FOREIGN_MARKS: Final = ("QLinear", "Integer", "DynamicQuantize")


def check_qdq(model: Artifact | bytes, scheme: str) -> None:
    """Refuse a graph that is not quantised as the scheme demands.

    Nodes that the file's metadata lists under `KEPT_KEY` must be float throughout.

    Args:
        model: The file, or its bytes.
        scheme: "cpu" or "tensorrt".

    Raises:
        UsageError: Unknown scheme.
        GraphRefused: A rule is broken; the node or tensor and the rule are named.
    """
    chosen = scheme_named(scheme)
    data = model if isinstance(model, bytes) else model.read()
    where = "the graph" if isinstance(model, bytes) else str(model.path)
    parsed = read_graph(data, where)
    _check_versions(parsed, where)
    _check_operators(parsed.graph)
    _check_pairs(parsed.graph)
    _check_grids(parsed.graph, chosen)
    kept = _kept(parsed, where)
    for node in parsed.graph:
        if is_weighted(node) and node.name in kept:
            _check_float_weight(node)
        elif is_weighted(node):
            _check_weight(node)
    _check_sites(parsed.graph, chosen, kept)
    _check_onnx(data, where)


def _check_versions(model: ir.Model, where: str) -> None:
    opset = model.opset_imports.get("")
    if opset != _OPSET:
        raise GraphRefused(f"is of opset {opset}, a Q/DQ graph is of opset {_OPSET}.", where=where)
    if model.ir_version > _NEWEST_IR:
        raise GraphRefused(
            f"is of IR version {model.ir_version}, TensorRT 10.3 reads up to {_NEWEST_IR}.",
            where=where,
        )


def _check_operators(graph: ir.Graph) -> None:
    for node in graph:
        if node.domain not in ("", "ai.onnx"):
            raise GraphRefused(f"is of the foreign domain {node.domain!r}.", where=label(node))
        if any(mark in node.op_type for mark in _FOREIGN_MARKS):
            raise GraphRefused("is an integer operator; this is a Q/DQ graph.", where=label(node))


def _check_pairs(graph: ir.Graph) -> None:
    """One pair a tensor; a Q is read by DQ alone, a DQ reads a Q, stored integers, or a frame's bytes."""
    quantised = set()
    for node in graph:
        if node.op_type == "QuantizeLinear":
            if node.inputs[0] in quantised:
                raise GraphRefused("is quantised twice.", where=name_of(node.inputs[0]))
            quantised.add(node.inputs[0])
            readers = [use.node for use in node.outputs[0].uses()]
            if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
                raise GraphRefused("must be read by DequantizeLinear alone.", where=label(node))
        if node.op_type == "DequantizeLinear":
            _check_source(node)
            if node.outputs[0].is_graph_output():
                raise GraphRefused("a result of the graph is quantised.", where=label(node))
            _check_no_cast(node)


def _check_source(dequantise: ir.Node) -> None:
    source = dequantise.inputs[0]
    producer = source.producer() if source is not None else None
    if producer is None or producer.op_type != "QuantizeLinear":
        if not is_constant(source) and not reads_bytes(source):
            raise GraphRefused("reads what no QuantizeLinear wrote.", where=label(dequantise))
        return
    for index in (1, 2):
        theirs, ours = _numbers(producer, index), _numbers(dequantise, index)
        if theirs.dtype != ours.dtype or not np.array_equal(theirs, ours):
            raise GraphRefused(
                f"its {('scale', 'zero point')[index - 1]} is not that of {label(producer)}.",
                where=label(dequantise),
            )


def _check_no_cast(node: ir.Node) -> None:
    """Runtimes fuse a pair with the node behind it, and with a Cast between them they do not."""
    for reader in (use.node for use in node.outputs[0].uses()):
        if reader.op_type == "Cast":
            raise GraphRefused(
                "stands between DequantizeLinear and what reads it; cast in front of the pair.",
                where=label(reader),
            )
        if reader.op_type in RESHAPING_OPS:
            _check_no_cast(reader)


def _check_grids(graph: ir.Graph, scheme: Scheme) -> None:
    for node in graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        stored = node.op_type == "DequantizeLinear" and is_constant(node.inputs[0])
        _check_scale(node, stored)
        _check_zero_point(node, "int8" if stored else scheme.dtype, stored or scheme.symmetric)


def _check_scale(node: ir.Node, stored: bool) -> None:
    scale = _numbers(node, 1)
    if scale.dtype not in (np.float32, np.float16):
        raise GraphRefused(f"its scale is {scale.dtype}, not float.", where=label(node))
    smallest = SMALLEST_HALF_SCALE if scale.dtype == np.float16 else 0.0
    if not np.isfinite(scale).all() or not (scale > 0).all() or not (scale >= smallest).all():
        raise GraphRefused("its scale is not positive, finite and (in FP16) normal.", where=label(node))
    if scale.ndim and not stored:
        raise GraphRefused("an activation has one scale, a scalar.", where=label(node))


def _check_zero_point(node: ir.Node, dtype: str, zero: bool) -> None:
    zero_point = _numbers(node, 2)
    if zero_point.dtype != dtype:
        raise GraphRefused(
            f"its zero point is {zero_point.dtype}, the scheme has {dtype}.", where=label(node)
        )
    if zero and zero_point.any():
        raise GraphRefused("its zero point is not 0.", where=label(node))


def _kept(model: ir.Model, where: str) -> frozenset[str]:
    """Return the nodes that the file says stay float."""
    text = model.metadata_props.get(KEPT_KEY, "[]")
    names = parse_json(text, f"{where}: {KEPT_KEY}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise GraphRefused(f"its {KEPT_KEY} is not a list of names.", where=where)
    known = {node.name for node in model.graph if is_weighted(node)}
    if unknown := sorted(set(names) - known):
        raise GraphRefused(f"its {KEPT_KEY} names no node with a weight: {', '.join(unknown)}.", where=where)
    return frozenset(names)


def _check_float_weight(node: ir.Node) -> None:
    if not is_constant(node.inputs[1]):
        raise GraphRefused("is listed as kept float, but its weight is quantised.", where=label(node))


def _check_weight(node: ir.Node) -> None:
    """An int8 tensor with one scale an output channel, and a bias that stays float."""
    import onnx_ir as ir

    weight = node.inputs[1]
    dequantise = weight.producer() if weight is not None else None
    if dequantise is None or dequantise.op_type != "DequantizeLinear":
        raise GraphRefused("its weight is not quantised.", where=label(node))
    if not is_constant(dequantise.inputs[0]):
        raise GraphRefused("its weight is not stored as integers.", where=label(node))
    integers, scale = _numbers(dequantise, 0), _numbers(dequantise, 1)
    axis = dequantise.attributes.get_int("axis", 1)
    if integers.dtype != np.int8:
        raise GraphRefused(f"its weight is {integers.dtype}, not int8.", where=label(node))
    if axis != weight_axis(node) or scale.shape != (integers.shape[axis],):
        raise GraphRefused(
            f"its weight needs one scale for each index of axis {weight_axis(node)}.",
            where=label(node),
        )
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    if bias is not None and (not is_constant(bias) or bias.dtype not in floats):
        raise GraphRefused("its bias is not a float constant.", where=label(node))


def _check_sites(graph: ir.Graph, scheme: Scheme, kept: frozenset[str]) -> None:
    """Take the activations' pairs away, ask the scheme where they belong, and compare."""
    found = _remove_pairs(graph)
    sites = tuple(activation_sites(graph, scheme, kept))
    wanted = {(site.node, site.index) for site in sites}
    for node in graph:
        for index in range(len(node.inputs)):
            if ((node, index) in found) == ((node, index) in wanted):
                continue
            state, rule = ("is", "does not") if (node, index) in found else ("is not", "does")
            raise GraphRefused(
                f"input {index} {state} quantised, which the scheme {scheme.name!r} {rule} demand.",
                where=label(node),
            )
    _check_shared_grids(sites, found)


def _check_shared_grids(sites: tuple[Site, ...], found: Mapping[tuple[ir.Node, int], ir.Node]) -> None:
    """What only selects, moves or joins values has one grid on all its sides."""
    first: dict[ir.Value, tuple[Site, ir.Node]] = {}
    for site in sites:
        quantise = found[site.node, site.index]
        for origin in site.origins:
            other, theirs = first.setdefault(origin, (site, quantise))
            if any(not np.array_equal(_numbers(theirs, i), _numbers(quantise, i)) for i in (1, 2)):
                raise GraphRefused(
                    f"input {site.index} has not the scale and zero point of input {other.index} of"
                    f" {label(other.node)}, whose values it shares.",
                    where=label(site.node),
                )


def _remove_pairs(graph: ir.Graph) -> dict[tuple[ir.Node, int], ir.Node]:
    """Return what holds the grid of each input that read a pair: Q, or where bytes are read DQ."""
    found = {}
    for node in tuple(graph):
        if node.op_type != "DequantizeLinear" or is_constant(node.inputs[0]):
            continue
        source = node.inputs[0]
        assert source is not None
        producer, holder = source.producer(), node
        if producer is not None and producer.op_type == "QuantizeLinear":
            holder, source = producer, producer.inputs[0]
        for reader, index in tuple(node.outputs[0].uses()):
            found[reader, index] = holder
            reader.replace_input_with(index, source)
    return found


def _check_onnx(data: bytes, where: str) -> None:
    import onnx

    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GraphRefused(f"is not valid ONNX ({reason}).", where=where) from error


def _numbers(node: ir.Node, index: int) -> npt.NDArray[Any]:
    """Return a constant input's numbers, or refuse the node."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        part = ("integers", "scale", "zero point")[index]
        raise GraphRefused(f"its {part} is not a constant in the file.", where=label(node))
    numbers: npt.NDArray[Any] = value.const_value.numpy()
    return numbers
