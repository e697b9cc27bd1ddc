"""The gate of ONNX: what a graph must be before a native parser sees its bytes.

It must be the graph of a ResNet, float or with Q/DQ, as the exporters write it, in one file. Parsers crash on
graphs with too few inputs, and a valid file of 176 bytes can ask for gigabytes: so operators are those of a
list, every tensor's size must follow from the graph, and what can be computed from constants alone must not
be much larger than the constants are.

The order is part of it. The bytes are walked first, so that parsing them costs what their number of fields
allows; then the message is read, then the limits, then `onnx.checker`, and only what it accepts goes through
shape inference. Sizes are those for one image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from resedge.errors import GraphRefused, RuntimeUnavailable
from resedge.gate.onnx_fields import check_fields
from resedge.gate.onnx_sizes import MAX_RANK, brief, check_sizes, inputs

if TYPE_CHECKING:
    import onnx

MAX_NODES: Final = 20_000
MAX_INITIALIZERS: Final = 20_000
IR_VERSIONS: Final = range(6, 13)
OPSETS: Final = range(11, 24)
DOMAINS: Final = frozenset({"", "ai.onnx"})
OPERATORS: Final = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul"),
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu"),
        *("Selu", "Sigmoid", "Softmax", "Softplus", "Tanh"),
        *("Abs", "Add", "Div", "Exp", "Floor", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal"),
        *("Sqrt", "Sub", "Sum"),
        *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"),
        *("ReduceMax", "ReduceMean", "ReduceSum"),
        *("Concat", "Constant", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Resize", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
        *("Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"),
    }
)
_POSITIVE: Final = frozenset({"dilations", "group", "kernel_shape", "num_groups", "num_outputs", "strides"})
_LARGEST_SETTING: Final = 1 << 16
_NAMED_AT_MOST: Final = 5
_STORED_IN: Final = {  # data types by number: bytes an element in raw_data, and the field for single numbers
    1: (4, "float_data"),
    2: (1, "int32_data"),
    3: (1, "int32_data"),
    6: (4, "int32_data"),
    7: (8, "int64_data"),
    9: (1, "int32_data"),
    10: (2, "int32_data"),
    11: (8, "double_data"),
    16: (2, "int32_data"),
}


def parse_onnx(data: bytes, where: str) -> onnx.ModelProto:
    """Parse an ONNX file whose size and number of fields are within the limits.

    Args:
        data: The whole file.
        where: Named in errors, such as the file's path.

    Raises:
        GraphRefused: No ONNX file, a damaged one, one beyond the limits, or one with parts that no ResNet
            has: control flow, functions, training information, sparse tensors.
        RuntimeUnavailable: The onnx library is not installed.
    """
    check_fields(data, where)
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise RuntimeUnavailable(
            "is an ONNX file, and the library that reads it is not installed.",
            where=where,
            cure="Try: pip install 'resedge[export]'",
        ) from error
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise GraphRefused("is no ONNX file, or a damaged one.", where=where) from error
    if not model.graph.node:
        raise GraphRefused("is no ONNX file, or one without nodes.", where=where)
    return model


def check_onnx(data: bytes, where: str) -> None:
    """Check that an ONNX file is the graph of a ResNet within the limits of this module.

    Args:
        data: The whole file; these bytes and no others may then go to a parser.
        where: Named in errors, such as the file's path.

    Raises:
        GraphRefused: A limit or a rule is broken; the node or tensor is named.
        RuntimeUnavailable: The onnx library is not installed.
    """
    model = parse_onnx(data, where)
    _check_versions(model, where)
    _check_counts(model.graph, where)
    for tensor in model.graph.initializer:
        _check_tensor(tensor, where)
    for node in model.graph.node:
        _check_node(node, where)
    _check_by_library(data, where)
    check_sizes(model, where)


def _check_versions(model: onnx.ModelProto, where: str) -> None:
    if model.ir_version not in IR_VERSIONS:
        raise GraphRefused(f"has IR version {model.ir_version}, known are {_span(IR_VERSIONS)}.", where=where)
    domains = [entry.domain for entry in model.opset_import]
    if len(domains) != 1 or domains[0] not in DOMAINS:
        named = ", ".join(repr(domain) for domain in domains[:_NAMED_AT_MOST])
        raise GraphRefused(
            f"uses the operator sets {named or 'of nobody'}; known is ai.onnx alone.", where=where
        )
    if model.opset_import[0].version not in OPSETS:
        version = model.opset_import[0].version
        raise GraphRefused(f"has opset {version}, known are {_span(OPSETS)}.", where=where)


def _span(versions: range) -> str:
    return f"{versions[0]} to {versions[-1]}"


def _check_counts(graph: onnx.GraphProto, where: str) -> None:
    for what, count, most in (
        ("nodes", len(graph.node), MAX_NODES),
        ("constants", len(graph.initializer), MAX_INITIALIZERS),
    ):
        if count > most:
            raise GraphRefused(f"has {count:,} {what}, more than {most:,}.", where=where)
    given = inputs(graph)
    if len(given) != 1 or not graph.output:
        raise GraphRefused(
            f"has {len(given)} inputs and {len(graph.output)} outputs; a classifier has one input.",
            where=where,
        )


def _check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Check that a constant is in the file, with exactly the bytes that its shape asks for."""
    named = f"{where}: constant {tensor.name!r:.80}"
    if tensor.external_data or tensor.data_location:
        raise GraphRefused(
            f"lies in another file{_place_outside(tensor)}; a graph must be one file.", where=named
        )
    if tensor.data_type not in _STORED_IN:
        raise GraphRefused(f"has the data type {tensor.data_type}, which no ResNet needs.", where=named)
    if len(tensor.dims) > MAX_RANK or any(size < 0 for size in tensor.dims):
        raise GraphRefused(f"has the shape {list(tensor.dims)!r:.60}.", where=named)
    elements, (width, field) = math.prod(tensor.dims), _STORED_IN[tensor.data_type]
    stored = len(tensor.raw_data) / width if tensor.raw_data else len(getattr(tensor, field))
    if stored != elements:
        raise GraphRefused(
            f"has the shape {list(tensor.dims)} and {stored:g} numbers in the file.", where=named
        )


def _place_outside(tensor: onnx.TensorProto) -> str:
    """Name the file that a constant lies in, and say so where that is outside the graph's folder."""
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    if not locations:
        return ""
    path = PurePosixPath(locations[0])
    leaves = path.is_absolute() or ".." in path.parts or "\\" in locations[0]
    return f", {locations[0]!r:.80}" + (", outside its folder" if leaves else "")


def _check_node(node: onnx.NodeProto, where: str) -> None:
    named = f"{where}: node {node.name or node.op_type!r:.80}"
    if node.domain not in DOMAINS:
        raise GraphRefused(f"is of the domain {node.domain!r:.80}; known is ai.onnx alone.", where=named)
    if node.op_type not in OPERATORS:
        raise GraphRefused(f"is a {node.op_type:.80}, which no ResNet needs.", where=named)
    for attribute in node.attribute:
        for tensor in _tensors(attribute):
            _check_tensor(tensor, f"{named}, attribute {attribute.name:.40}")
        low = 1 if attribute.name in _POSITIVE else -_LARGEST_SETTING
        if node.op_type != "Constant" and any(
            not low <= value <= _LARGEST_SETTING for value in _integers(attribute)
        ):
            raise GraphRefused(f"has {attribute.name:.40} beyond what a ResNet needs.", where=named)


def _tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _integers(attribute: onnx.AttributeProto) -> Iterator[int]:
    if attribute.type == attribute.INT:
        yield attribute.i
    yield from attribute.ints


def _check_by_library(data: bytes, where: str) -> None:
    import onnx

    try:
        onnx.checker.check_model(data)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise GraphRefused(f"is not valid ONNX: {brief(error)}", where=where) from error
