"""FP16 written into the graph: half tensors inside, float32 at both ends, nothing left to a builder's flag.

The input is cast once, the logits are cast back, and every constant that takes part in the arithmetic is
half. A Q/DQ graph keeps its int8 weights; its scales become half, which opset 19 is the first to allow.
BatchNormalization keeps float32 parameters, which its definition allows beside a half input: a running
variance may lie outside what half can hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from resedge.artifacts import Artifact, sha256_bytes
from resedge.errors import GraphRefused
from resedge.export.onnxfile import MODULE_KEY, OPSET, serialise
from resedge.files import write_bytes
from resedge.protocols import Array

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST: Final = float(np.finfo(np.float16).max)  # 65504
SMALLEST_SCALE: Final = float(np.finfo(np.float16).smallest_normal)  # 6.1e-5
_SCALED = {"QuantizeLinear", "DequantizeLinear"}


def write_half(model: Artifact, out: Path) -> Artifact:
    """Write the strongly typed FP16 form of a float32 ONNX graph, plain or with Q/DQ nodes.

    Args:
        model: An opset 19 graph whose floating-point tensors are float32.
        out: The file to write.

    Returns:
        Kind "onnx/fp16" for "onnx/fp32", any other kind (a Q/DQ scheme's) kept; the same inputs and
        outputs, in float32. `meta["underflowed"]` counts the weights that are
        not zero in float32 and zero in half.

    Raises:
        GraphRefused: A constant is above 65504 in magnitude, a scale is below 6.1e-5, or the graph is
            not of that form; the tensor is named.
        StaleArtifact, InputRefused: `model` cannot be read, or `out` cannot be written.
        MachineFailure: The disk is full.
    """
    import onnx
    import onnx_ir as ir

    halved = ir.from_proto(onnx.load_from_string(model.read()))
    _check_form(halved, model)
    underflowed = _halve_constants(halved.graph)
    for node in halved.graph:
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = ir.DataType.FLOAT16
    _cast_input(halved.graph)
    _cast_output(halved.graph)
    data = serialise(halved)
    write_bytes(out, data)
    return Artifact(
        path=out.absolute(),
        sha256=sha256_bytes(data),
        kind="onnx/fp16" if model.kind == "onnx/fp32" else model.kind,
        inputs=model.inputs,
        outputs=model.outputs,
        parents=(model.sha256,),
        meta={**model.meta, "nodes": len(halved.graph), "underflowed": underflowed},
    )


def _check_form(model: ir.Model, artifact: Artifact) -> None:
    """Refuse what the conversion below does not know, rather than write a graph that is half right."""
    import onnx_ir as ir

    graph, where = model.graph, str(artifact.path)
    if model.opset_imports.get("") != OPSET:
        raise GraphRefused(f"has opset {model.opset_imports.get('')}, needed is {OPSET}.", where=where)
    ends = (*graph.inputs, *graph.outputs)
    if len(ends) != 2 or any(value.dtype != ir.DataType.FLOAT for value in ends):
        raise GraphRefused("needed is one float32 input and one float32 output.", where=where)
    for node in graph:
        # These carry a type of their own, in an attribute or a subgraph.
        if node.op_type in ("Cast", "CastLike", "Constant", "ConstantOfShape", "If", "Loop", "Scan"):
            raise GraphRefused(f"a {node.op_type} has no FP16 form here.", where=node.name or where)
    for value in graph.initializers.values():
        if value.dtype in (ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            raise GraphRefused(f"is {value.dtype}, needed is float32.", where=value.name or where)


def _halve_constants(graph: ir.Graph) -> int:
    """Make every float32 constant half, in place, and return how many values underflowed to zero."""
    import onnx_ir as ir

    underflowed = 0
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or _is_batchnorm_parameter(value):
            continue
        wide = tensor.numpy()
        scale = any(node.op_type in _SCALED and index == 1 for node, index in value.uses())
        _check_range(wide, str(value.name), scale=scale)
        narrow = wide.astype(np.float16)
        underflowed += int(((narrow == 0) & (wide != 0)).sum())
        value.const_value = ir.tensor(narrow, name=value.name)
        value.dtype = ir.DataType.FLOAT16
    return underflowed


def _is_batchnorm_parameter(value: ir.Value) -> bool:
    return all(node.op_type == "BatchNormalization" and index > 0 for node, index in value.uses())


def _check_range(wide: Array, name: str, *, scale: bool) -> None:
    largest = float(np.abs(wide).max(initial=0.0))
    if not largest <= LARGEST:
        raise GraphRefused(
            f"holds {largest:.4g}, FP16 ends at {LARGEST:.0f}.",
            where=name,
            cure="Deploy this model in fp32, or in int8 on a CPU.",
        )
    smallest = float(wide.min(initial=np.inf))
    if scale and smallest < SMALLEST_SCALE:
        raise GraphRefused(
            f"is a scale of {smallest:.4g}, FP16 holds scales from {SMALLEST_SCALE:.4g} on.",
            where=name,
            cure="Calibrate with images that reach this layer; a channel of zeros needs a larger scale.",
        )


def _cast_input(graph: ir.Graph) -> None:
    import onnx_ir as ir

    wide = graph.inputs[0]
    readers = list(wide.uses())
    cast = _cast(wide, f"{wide.name}.half", ir.DataType.FLOAT16)
    for node, index in readers:
        node.replace_input_with(index, cast.outputs[0])
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph) -> None:
    import onnx_ir as ir

    narrow = graph.outputs[0]
    name = narrow.name
    narrow.name = f"{name}.half"
    cast = _cast(narrow, str(name), ir.DataType.FLOAT)
    graph.append(cast)
    graph.outputs[0] = cast.outputs[0]


def _cast(value: ir.Value, name: str, dtype: ir.DataType) -> ir.Node:
    """Return a Cast of `value` whose output is called `name`."""
    import onnx_ir as ir

    output = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    node = ir.Node(
        "", "Cast", [value], [ir.AttrInt64("to", int(dtype))], outputs=[output], name=f"{name}.cast"
    )
    node.metadata_props[MODULE_KEY] = ""
    return node
