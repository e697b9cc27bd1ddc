"""ONNX bytes to a graph that can be walked and changed, and back, the same bytes every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

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


def run_node(node: ir.Node, inputs: Sequence[npt.NDArray[Any] | None], threads: int) -> npt.NDArray[Any]:
    """Compute one node in ONNX Runtime, with `threads` threads.

    Args:
        node: Of the default domain, with one output.
        inputs: An array for each input, None where the node leaves one out.
        threads: At least 1.

    Raises:
        GraphRefused: ONNX Runtime cannot run it.
    """
    import onnx
    import onnx_ir as ir
    import onnxruntime as ort  # type: ignore[import-untyped]
    from onnxruntime.capi import (  # type: ignore[import-untyped]
        onnxruntime_pybind11_state as failures,
    )

    given = {f"i{index}": array for index, array in enumerate(inputs) if array is not None}
    alone = ir.to_proto(node)
    alone.input[:] = [f"i{index}" if array is not None else "" for index, array in enumerate(inputs)]
    alone.output[:] = ["o"]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in given.items()
    ]
    result = onnx.helper.make_empty_tensor_value_info("o")
    graph = onnx.helper.make_graph([alone], "node", ends, [result])
    opsets = [onnx.helper.make_opsetid("", 19)]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        output: npt.NDArray[Any] = session.run(None, given)[0]
    except (failures.Fail, failures.InvalidGraph, failures.NotImplemented, failures.InvalidArgument) as error:
        reason = str(error).splitlines()[0]
        raise GraphRefused(f"ONNX Runtime cannot run it ({reason}).", where=label(node)) from error
    return output


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
