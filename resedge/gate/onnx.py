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
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, Union

from resedge.errors import GraphRefused, RuntimeUnavailable
from resedge.gate.protobuf import fields

if TYPE_CHECKING:
    import onnx

MAX_ONNX_BYTES: Final = 1_500_000_000
MAX_FIELDS: Final = 500_000
MAX_NODES: Final = 20_000
MAX_INITIALIZERS: Final = 20_000
MAX_RANK: Final = 8
MAX_ELEMENTS: Final = 1 << 26  # of one tensor
MAX_ELEMENTS_TOGETHER: Final = 1 << 30  # of all that nodes compute
MAX_GROWTH: Final = 4  # what is computed from constants alone, against the constants
SPARE_ELEMENTS: Final = 1 << 20
IR_VERSIONS: Final = range(6, 13)
OPSETS: Final = range(11, 24)
DOMAINS: Final = frozenset({"", "ai.onnx"})
OPERATORS: Final = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul"),
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu"),
        *("Selu", "Sigmoid", "Softmax", "Softplus", "Tanh"),
        *("Abs", "Add", "Div", "Exp", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub", "Sum"),
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
_SHAPES_ARE_SMALL: Final = 1024  # elements up to which a constant may be a shape, which inference reads
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

# --- the walk of the bytes -----------------------------------------------------------------------


class _Text:
    """A field that is text."""


_Known = Mapping[int, Union["_Known", _Text, str]]  # by field number: its message, or why it is refused

_TEXT: Final = _Text()
_OTHER_TYPE = "a value that is no tensor"
_INNER_GRAPH = "a graph inside a node (control flow)"
_SPARSE = "a sparse tensor"
_DEVICES = "a split over devices"
_ENTRY: Final[_Known] = {1: _TEXT, 2: _TEXT}
_TENSOR: Final[_Known] = {3: "a tensor in segments", 8: _TEXT, 12: _TEXT, 13: _ENTRY, 16: _ENTRY}
_TYPE: Final[_Known] = {
    1: {2: {1: {2: _TEXT, 3: _TEXT}}},
    6: _TEXT,
    **dict.fromkeys((4, 5, 7, 8, 9), _OTHER_TYPE),
}
_VALUE: Final[_Known] = {1: _TEXT, 2: _TYPE, 3: _TEXT, 4: _ENTRY}
_ATTRIBUTE: Final[_Known] = {
    **dict.fromkeys((1, 13, 21), _TEXT),
    **dict.fromkeys((5, 10), _TENSOR),
    **dict.fromkeys((6, 11), _INNER_GRAPH),
    **dict.fromkeys((14, 15), _OTHER_TYPE),
    **dict.fromkeys((22, 23), _SPARSE),
}
_NODE: Final[_Known] = {
    **dict.fromkeys((1, 2, 3, 4, 6, 7, 8), _TEXT),
    5: _ATTRIBUTE,
    9: _ENTRY,
    10: _DEVICES,
}
_GRAPH: Final[_Known] = {
    1: _NODE,
    **dict.fromkeys((2, 10), _TEXT),
    5: _TENSOR,
    **dict.fromkeys((11, 12, 13), _VALUE),
    14: {1: _TEXT, 2: _ENTRY},
    15: _SPARSE,
    16: _ENTRY,
}
_MODEL: Final[_Known] = {
    **dict.fromkeys((2, 3, 4, 6), _TEXT),
    7: _GRAPH,
    8: {1: _TEXT},
    14: _ENTRY,
    20: "training information",
    25: "functions of its own",
    26: _DEVICES,
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


def check_fields(data: bytes, where: str) -> None:
    """Check a file's size and number of fields, its texts, and that it has no part that no ResNet has.

    It takes no library. An empty message is two bytes in a file and a hundred once it is parsed, so this
    comes before anything else.

    Raises:
        GraphRefused: As `parse_onnx`.
    """
    if len(data) > MAX_ONNX_BYTES:
        raise GraphRefused(f"has {len(data):,} bytes, more than {MAX_ONNX_BYTES:,}.", where=where)
    waiting: list[tuple[memoryview, _Known]] = [(memoryview(data), _MODEL)]
    count = 0
    try:
        while waiting:
            message, known = waiting.pop()
            for number, content in fields(message):
                count += 1
                if count > MAX_FIELDS:
                    raise GraphRefused(f"has more than {MAX_FIELDS:,} fields.", where=where)
                inner = known.get(number)
                if isinstance(inner, str):
                    raise GraphRefused(f"has {inner}, which no ResNet needs.", where=where)
                if content is None or inner is None:
                    continue
                if isinstance(inner, _Text):
                    str(content, "utf-8")
                else:
                    waiting.append((content, inner))
    except ValueError as error:  # text that is not UTF-8 is one, too
        raise GraphRefused("is no ONNX file, or a damaged one.", where=where) from error


# --- the rules -----------------------------------------------------------------------------------


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
    _check_sizes(model, where)


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
    inputs = _inputs(graph)
    if len(inputs) != 1 or not graph.output:
        raise GraphRefused(
            f"has {len(inputs)} inputs and {len(graph.output)} outputs; a classifier has one input.",
            where=where,
        )


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are to be given; old exporters list the weights among them."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


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
        raise GraphRefused(f"is not valid ONNX: {_brief(error)}", where=where) from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


# --- sizes ---------------------------------------------------------------------------------------


def _check_sizes(model: onnx.ModelProto, where: str) -> None:
    """Check that every tensor's size follows from the graph, and is bounded. The model is changed."""
    graph = model.graph
    stored = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    computed = _sizes(model, where)
    constant, folded = set(stored), 0
    for node in graph.node:
        for name in filter(None, node.output):
            named, elements = f"{where}: tensor {name!r:.80}", computed.get(name)
            if elements is None:
                raise GraphRefused("has a size that does not follow from the graph.", where=named)
            if elements > MAX_ELEMENTS:
                raise GraphRefused(f"has {elements:,} elements, more than {MAX_ELEMENTS:,}.", where=named)
            if constant.issuperset(filter(None, node.input)):
                constant.add(name)
                folded += elements
    together = sum(computed.values())
    if together > MAX_ELEMENTS_TOGETHER:
        raise GraphRefused(
            f"computes {together:,} numbers, more than {MAX_ELEMENTS_TOGETHER:,}.", where=where
        )
    most = MAX_GROWTH * sum(stored.values()) + SPARE_ELEMENTS
    if folded > most:
        raise GraphRefused(
            f"computes {folded:,} numbers from constants, of which it has {sum(stored.values()):,}.",
            where=where,
        )


def _sizes(model: onnx.ModelProto, where: str) -> dict[str, int]:
    """Infer how many elements each tensor has that nodes compute, for one image.

    Declared sizes are not believed: all but the input's are taken out before.
    """
    import onnx

    _fix_batch(model.graph, where)
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > _SHAPES_ARE_SMALL:
            tensor.ClearField("raw_data")  # which inference would copy
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise GraphRefused(f"has no consistent shapes: {_brief(error)}", where=where) from error
    made = {name for node in inferred.graph.node for name in node.output}
    return {
        value.name: elements
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.name in made and (elements := _elements(value)) is not None
    }


def _fix_batch(graph: onnx.GraphProto, where: str) -> None:
    """Set the batch of the graph's input to one image; its other sizes must be known."""
    (image,) = _inputs(graph)
    sizes = image.type.tensor_type.shape.dim
    if not 2 <= len(sizes) <= MAX_RANK:
        raise GraphRefused(f"has {len(sizes)} dimensions.", where=f"{where}: input {image.name!r:.80}")
    sizes[0].dim_value = 1
    if (elements := _elements(image)) is None or not 0 < elements <= MAX_ELEMENTS:
        raise GraphRefused(
            "has sizes that are free or too large; only the batch may be free.",
            where=f"{where}: input {image.name!r:.80}",
        )


def _elements(value: onnx.ValueInfoProto) -> int | None:
    """Return the number of elements of a tensor, None where its shape is not known in full."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    return None if any(size < 0 for size in sizes) else math.prod(sizes)
