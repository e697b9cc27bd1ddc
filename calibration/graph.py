"""ONNX bytes to a graph that can be walked and changed, and back, the same bytes every time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resedge.errors import GraphRefused

if TYPE_CHECKING:
    import onnx_ir as ir


def read_graph(data: bytes, where: str) -> ir.Model:
    """Parse an ONNX file.

    Args:
        data: The file's bytes; the weights are inside.
        where: Named in the error.

    Raises:
        GraphRefused: The bytes are no ONNX model.
    """
    import onnx
    import onnx_ir as ir
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return ir.from_proto(onnx.load_model_from_string(data))
    except (DecodeError, ValueError, TypeError) as error:
        raise GraphRefused(f"is not an ONNX model ({error}).", where=where) from error


def write_graph(model: ir.Model) -> bytes:
    """Serialise a model; equal models give equal bytes."""
    import onnx_ir as ir

    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def is_constant(value: ir.Value | None) -> bool:
    """Say whether a tensor is fixed in the file (initialiser, Constant node) or left out."""
    if value is None or value.is_initializer():
        return True
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"


def name_of(value: ir.Value | None) -> str:
    """Return a tensor's name, "" for an input that is left out."""
    return (value.name or "") if value is not None else ""


def label(node: ir.Node) -> str:
    """Return how a message names a node, such as "Conv layer.0.conv1"."""
    return f"{node.op_type} {node.name or name_of(node.outputs[0])}"
