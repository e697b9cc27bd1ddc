"""FP16 written into the graph: half tensors inside, the ends as they were, nothing left to a builder's flag.

The image is cast once, the logits are cast back, and every constant that takes part in the arithmetic is
half. A Q/DQ graph keeps its int8 weights; its scales become half, which opset 19 is the first to allow.
BatchNormalization keeps float32 parameters, which its definition allows beside a half input: a running
variance may lie outside what half can hold. What prepares frames stays float32: 255 times a mean has more
digits than half.

A node whose numbers half cannot hold stays *wide*: float32 throughout, with a Cast where it meets half.
Runtimes fuse a DequantizeLinear with the node that reads it, so a Q/DQ pair has the precision of its
readers, and what is cast is the tensor in front of the pair.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from resedge.artifacts import Artifact, sha256_bytes
from resedge.errors import GraphRefused, UsageError
from resedge.export.frames import prepares
from resedge.export.halfrange import LARGEST, RESHAPING, SMALLEST_NORMAL, magnitude, stays_float
from resedge.export.onnxfile import MODULE_KEY, OPSET, serialise
from resedge.files import write_bytes
from resedge.protocols import Array

if TYPE_CHECKING:
    import onnx_ir as ir

WIDE_KEY: Final = "resedge.wide"  # of a model's metadata: the JSON list of the nodes that stay float32
_SCALED = {"QuantizeLinear", "DequantizeLinear"}
_OF_ANY_TYPE = {"Shape", "Size"}
_TYPED = {"Cast", "Constant", "ConstantOfShape", "If", "Loop", "Scan"}


def write_half(model: Artifact, out: Path, wide: AbstractSet[str] = frozenset()) -> Artifact:
    """Write the strongly typed FP16 form of a float32 ONNX graph, plain or with Q/DQ nodes.

    Args:
        model: An opset 19 graph whose floating-point tensors are float32; it may take frames of bytes.
        out: The file to write.
        wide: Names of nodes that stay float32. A Flatten or its like has the precision of what reads it,
            since nothing may stand between a pair and what is behind the Flatten; one that both precisions
            read becomes two. The file lists them all under `WIDE_KEY`, Q/DQ nodes excepted.

    Returns:
        Kind "onnx/fp16" for "onnx/fp32", any other kind (a Q/DQ scheme's) kept; the same inputs and
        outputs. `meta["underflowed"]` counts the weights that are
        not zero in float32 and zero in half, `meta["wide"]` lists the nodes that stay float32.

    Raises:
        UsageError: A name in `wide` is none of a node, or that of a Q/DQ node.
        GraphRefused: A constant of a half node is above 65504 in magnitude, a scale of one is below
            6.1e-5, or the graph is not of that form; the tensor is named.
        StaleArtifact, InputRefused: `model` cannot be read, or `out` cannot be written.
        MachineFailure: The disk is full.
    """
    import onnx
    import onnx_ir as ir

    # Within what a translation decomposed no type is declared, and between Q and DQ neither.
    halved = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load_from_string(model.read())))
    _check_form(halved, model)
    _check_names(halved.graph, wide)
    _drop_constant_casts(halved.graph)
    kept = _settle(halved.graph, wide | {str(node.name) for node in halved.graph if prepares(node)})
    underflowed = _halve_constants(halved.graph, kept)
    for node in halved.graph:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and node not in kept:
                value.dtype = ir.DataType.FLOAT16
    _cast_borders(halved.graph, kept)
    names = sorted(str(node.name) for node in kept if node.op_type not in _SCALED)
    if names:
        halved.metadata_props[WIDE_KEY] = json.dumps(names)
    data = serialise(halved)
    write_bytes(out, data)
    return Artifact(
        path=out.absolute(),
        sha256=sha256_bytes(data),
        kind="onnx/fp16" if model.kind == "onnx/fp32" else model.kind,
        inputs=model.inputs,
        outputs=model.outputs,
        parents=(*model.parents, model.sha256),
        meta={**model.meta, "nodes": len(halved.graph), "underflowed": underflowed, "wide": names},
    )


def _check_form(model: ir.Model, artifact: Artifact) -> None:
    """Refuse what the conversion below does not know, rather than write a graph that is half right."""
    import onnx_ir as ir

    graph, where = model.graph, str(artifact.path)
    if model.opset_imports.get("") != OPSET:
        raise GraphRefused(f"has opset {model.opset_imports.get('')}, needed is {OPSET}.", where=where)
    ends = (*graph.inputs, *graph.outputs)
    given = (ir.DataType.FLOAT, ir.DataType.UINT8)
    if len(ends) != 2 or ends[0].dtype not in given or ends[1].dtype != ir.DataType.FLOAT:
        raise GraphRefused("needed is one float32 or uint8 input and one float32 output.", where=where)
    for node in graph:
        # These carry a type of their own, in an attribute or a subgraph.
        typed = node.op_type in _TYPED or (
            node.op_type == "CastLike" and not _is_stored_float(node.inputs[0])
        )
        if typed and not prepares(node):
            raise GraphRefused(f"a {node.op_type} has no FP16 form here.", where=node.name or where)
    for value in graph.initializers.values():
        if value.dtype in (ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            raise GraphRefused(f"is {value.dtype}, needed is float32.", where=value.name or where)


def _check_names(graph: ir.Graph, wide: AbstractSet[str]) -> None:
    known = {str(node.name) for node in graph if node.op_type not in _SCALED}
    if unknown := sorted(wide - known):
        raise UsageError(
            f"{', '.join(unknown)}: no node is called so that can stay float32.",
            where=str(graph.name),
            cure="Q/DQ nodes have the precision of what reads them.",
        )


def _drop_constant_casts(graph: ir.Graph) -> None:
    """Let nodes read a constant themselves that a CastLike gave the type of an activation.

    In a float32 graph it computes nothing, and a constant takes the precision of its readers anyway.
    """
    for node in tuple(graph):
        if node.op_type == "CastLike":
            for reader, index in tuple(node.outputs[0].uses()):
                reader.replace_input_with(index, node.inputs[0])
            graph.remove(node, safe=True)


def _is_stored_float(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    return value is not None and value.const_value is not None and value.dtype == ir.DataType.FLOAT


def _settle(graph: ir.Graph, wide: AbstractSet[str]) -> set[ir.Node]:
    """Return the nodes that stay float32, in place.

    A Q, a DQ, and a Flatten or its like have the precision of what reads them, and become two where both
    precisions do: a Cast behind one would part the pair from the node that it is fused with.
    """
    kept = set()
    for node in reversed(tuple(graph)):  # readers first
        uses = node.outputs[0].uses()
        among = [(reader, index) for reader, index in uses if reader in kept]
        if not uses or node.op_type not in _SCALED | RESHAPING:
            if node.name in wide:
                kept.add(node)
        elif among:
            kept.add(node if len(among) == len(uses) else _twin(graph, node, among))
    return kept


def _twin(graph: ir.Graph, node: ir.Node, uses: list[tuple[ir.Node, int]]) -> ir.Node:
    """Put a copy of a node beside it, for some of its readers."""
    import onnx_ir as ir

    (original,) = node.outputs
    kind = None if original.dtype is None else ir.TensorType(original.dtype)  # a type is changed in place
    output = ir.Value(name=f"{original.name}.float", type=kind, shape=original.shape)
    attributes = tuple(node.attributes.values())
    twin = ir.Node("", node.op_type, node.inputs, attributes, outputs=[output], name=f"{node.name}.float")
    twin.metadata_props.update(node.metadata_props)
    for user, index in uses:
        user.replace_input_with(index, output)
    graph.insert_after(node, twin)
    return twin


def _halve_constants(graph: ir.Graph, kept: AbstractSet[ir.Node]) -> int:
    """Make float32 constants half where half nodes read them; return how many values underflowed to zero."""
    import onnx_ir as ir

    underflowed = 0
    for value in tuple(graph.initializers.values()):
        tensor = value.const_value
        narrow_uses = [
            (node, index) for node, index in value.uses() if node not in kept and not stays_float(node, index)
        ]
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not narrow_uses:
            continue
        wide = tensor.numpy()
        scale = any(node.op_type in _SCALED and index == 1 for node, index in narrow_uses)
        _check_range(wide, str(value.name), scale=scale)
        narrow = wide.astype(np.float16)
        underflowed += int(((narrow == 0) & (wide != 0)).sum())
        if len(narrow_uses) == len(value.uses()):
            value.const_value = ir.tensor(narrow, name=value.name)
            value.dtype = ir.DataType.FLOAT16
        else:
            _add_constant(graph, f"{value.name}.half", narrow, narrow_uses)
    return underflowed


def _add_constant(graph: ir.Graph, name: str, numbers: Array, uses: list[tuple[ir.Node, int]]) -> None:
    import onnx_ir as ir

    tensor = ir.tensor(numbers, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(numbers.shape), const_value=tensor
    )
    graph.register_initializer(value)
    for node, index in uses:
        node.replace_input_with(index, value)


def _check_range(wide: Array, name: str, *, scale: bool) -> None:
    largest = magnitude(wide)
    if not largest <= LARGEST:
        raise GraphRefused(
            f"holds {largest:.4g}, FP16 ends at {LARGEST:.0f}.",
            where=name,
            cure="Keep the node that reads it in float32, or deploy this model in fp32.",
        )
    smallest = float(wide.min(initial=np.inf))
    if scale and smallest < SMALLEST_NORMAL:
        raise GraphRefused(
            f"is a scale of {smallest:.4g}, FP16 holds scales from {SMALLEST_NORMAL:.4g} on.",
            where=name,
            cure="Calibrate with images that reach this layer; a channel of zeros needs a larger scale.",
        )


def _cast_borders(graph: ir.Graph, kept: AbstractSet[ir.Node]) -> None:
    """Give each tensor that the other precision reads one Cast, which all of its readers share."""
    nodes = tuple(graph)
    (image,) = graph.inputs
    if narrow := [(n, index) for n, index in image.uses() if n not in kept and n.op_type not in _OF_ANY_TYPE]:
        graph.insert_before(nodes[0], _cast_for(image, narrow, half=True))
    for node in nodes:
        for value in node.outputs:
            _cast_output(graph, node, value, kept)


def _cast_output(graph: ir.Graph, node: ir.Node, value: ir.Value, kept: AbstractSet[ir.Node]) -> None:
    """Cast what a node writes for those that read it in the other precision, a caller among them."""
    import onnx_ir as ir

    wide = node in kept
    others = [
        (reader, index)
        for reader, index in value.uses()
        if (reader in kept) != wide and reader.op_type not in _OF_ANY_TYPE
    ]
    if value.is_graph_output() and not wide:
        name = value.name
        value.name = f"{name}.half"
        cast = _cast(value, str(name), ir.DataType.FLOAT)
        _redirect(others, cast)
        graph.outputs[0] = cast.outputs[0]
        if others:
            graph.insert_after(node, cast)
        else:
            graph.append(cast)
    elif others and _is_float(value):
        graph.insert_after(node, _cast_for(value, others, half=wide))


def _is_float(value: ir.Value) -> bool:
    import onnx_ir as ir

    if value.dtype is None:
        raise GraphRefused("has no type that can be inferred.", where=str(value.name))
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _cast_for(value: ir.Value, readers: list[tuple[ir.Node, int]], *, half: bool) -> ir.Node:
    import onnx_ir as ir

    name = f"{value.name}.half" if half else f"{value.name}.float"
    cast = _cast(value, name, ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
    _redirect(readers, cast)
    return cast


def _redirect(readers: list[tuple[ir.Node, int]], cast: ir.Node) -> None:
    for node, index in readers:
        node.replace_input_with(index, cast.outputs[0])


def _cast(value: ir.Value, name: str, dtype: ir.DataType) -> ir.Node:
    """Return a Cast of `value` whose output is called `name`."""
    import onnx_ir as ir

    output = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    node = ir.Node(
        "", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[output], name=f"{name}.cast"
    )
    node.metadata_props[MODULE_KEY] = ""
    return node
