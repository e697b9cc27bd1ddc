from __future__ import annotations

import struct
import sys
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resedge.errors import GraphRefused, RuntimeUnavailable
from resedge.gate import check_onnx, parse_onnx
from resedge.gate.onnx_fields import MAX_FIELDS

Change = Callable[[onnx.ModelProto], object]


def _constant(name: str, *shape: int, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def small() -> onnx.ModelProto:
    """A net of one convolution, as the exporter writes it."""
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["c"], "conv", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "resedge",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [_constant("weight", 4, 3, 3, 3), _constant("bias", 4)],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 19)])


def _after(model: onnx.ModelProto, op_type: str, *constants: onnx.TensorProto) -> None:
    """Put a node in front of the convolution, with further constants as its inputs."""
    names = [tensor.name for tensor in constants]
    model.graph.initializer.extend(constants)
    node = helper.make_node(op_type, ["input", *names], ["grown"], "grower")
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = "grown"


def _integers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _bomb(model: onnx.ModelProto) -> None:
    """Have a constant grow by computation, which a runtime does when it loads the graph."""
    _only(model, "Expand", _integers("to", 1, 3, 1 << 11, 1 << 11), source=_constant("one", 1, 1, 1, 1))


def _only(
    model: onnx.ModelProto, op_type: str, *constants: onnx.TensorProto, source: onnx.TensorProto
) -> None:
    _after(model, op_type, *constants)
    model.graph.initializer.append(source)
    model.graph.node[0].input[0] = source.name


def _outside(model: onnx.ModelProto, location: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def _loop(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("body", model.graph))


def _function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(
        helper.make_function("own", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 19)])
    )


def test_a_small_net_passes() -> None:
    check_onnx(small().SerializeToString(), "net.onnx")


def test_old_exporters_list_weights_among_the_inputs() -> None:
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, [4]))
    check_onnx(model.SerializeToString(), "net.onnx")


@pytest.mark.parametrize(
    ("change", "where", "reason"),
    [
        (lambda m: setattr(m, "ir_version", 3), "", "has IR version 3, known are 6 to 12"),
        (lambda m: setattr(m.opset_import[0], "version", 9), "", "has opset 9, known are 11 to 23"),
        (lambda m: m.opset_import.add(domain="com.strange", version=1), "", "'com.strange'"),
        (lambda m: setattr(m.graph.node[1], "domain", "com.strange"), "node 'relu'", "of the domain 'com.st"),
        (lambda m: setattr(m.graph.node[1], "op_type", "NonZero"), "node 'relu'", "is a NonZero, which no"),
        (lambda m: _after(m, "ConstantOfShape"), "node 'grower'", "is a ConstantOfShape, which no"),
        (_loop, "", "control flow"),
        (_function, "", "functions of its own"),
        (lambda m: m.training_info.add(), "", "training information"),
        (lambda m: m.graph.sparse_initializer.add(), "", "a sparse tensor"),
        (lambda m: m.graph.input.append(m.graph.input[0]), "", "has 2 inputs"),
        (lambda m: _outside(m, "weights.bin"), "constant 'weight'", "another file, 'weights.bin'; a graph"),
        (lambda m: _outside(m, "../../etc/passwd"), "constant 'weight'", "passwd', outside its folder"),
        (lambda m: _outside(m, "/etc/passwd"), "constant 'weight'", "passwd', outside its folder"),
        (lambda m: m.graph.initializer[0].dims.append(1 << 40), "constant 'weight'", "108 numbers in the"),
        (lambda m: m.graph.initializer[1].dims.__setitem__(0, -4), "constant 'bias'", r"the shape \[-4\]"),
        (lambda m: setattr(m.graph.initializer[1], "data_type", 8), "constant 'bias'", "the data type 8"),
        (lambda m: m.graph.node[0].input.__delitem__(slice(1, 3)), "", "is not valid ONNX"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nothing"), "", "is not valid ONNX"),
        (
            lambda m: m.graph.node[0].attribute[0].ints.__setitem__(0, 0),
            "node 'conv'",
            "has kernel_shape bey",
        ),
        (
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("group", 0)),
            "node 'conv'",
            "has group beyond",
        ),
        (
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("pads", [1 << 20] * 4)),
            "node 'conv'",
            "has pads beyond",
        ),
        (
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("pads", [1 << 14] * 4)),
            "tensor 'c'",
            r"has 4,\d\d\d,\d\d\d,\d\d\d elements",
        ),
        (
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[2].ClearField("dim_value"),
            "input 'input'",
            "sizes that are free or too large",
        ),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 1 << 40),
            "input 'input'",
            "sizes that are free or too large",
        ),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "", "Field 'shape'"),
        (lambda m: _after(m, "Tile", _integers("to", 1, 1, 1 << 12, 1 << 12)), "tensor 'grown'", "elements"),
        (
            lambda m: _after(
                m, "Resize", _constant("roi", 0), _constant("s", 0), _integers("to", 1, 3, 1 << 15, 1 << 15)
            ),
            "tensor 'grown'",
            "elements, more than",
        ),
        (_bomb, "", "computes 46,071,848 numbers from constants"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_its_name(change: Change, where: str, reason: str) -> None:
    model = small()
    change(model)
    with pytest.raises(GraphRefused, match=reason) as refused:
        check_onnx(model.SerializeToString(), "net.onnx")
    assert refused.value.where.startswith("net.onnx" + (f": {where}" if where else ""))


def test_declared_sizes_are_not_believed() -> None:
    model = small()
    _after(model, "Tile", _integers("to", 1, 1, 1 << 12, 1 << 12))
    model.graph.value_info.append(helper.make_tensor_value_info("grown", TensorProto.FLOAT, [1, 3, 8, 8]))
    with pytest.raises(GraphRefused, match="elements, more than"):
        check_onnx(model.SerializeToString(), "net.onnx")


def test_a_size_that_comes_from_the_images_is_refused() -> None:
    model = small()
    _after(model, "Tile", _integers("flat", 1))
    model.graph.node[0].input[1] = "repeats"
    for node in (
        helper.make_node("Concat", ["one"] * 4, ["repeats"], "concat", axis=0),
        helper.make_node("Cast", ["mean.flat"], ["one"], "cast", to=TensorProto.INT64),
        helper.make_node("Reshape", ["mean", "flat"], ["mean.flat"], "reshape"),
        helper.make_node("ReduceMean", ["input"], ["mean"], "mean"),
    ):
        model.graph.node.insert(0, node)
    with pytest.raises(GraphRefused, match="does not follow from the graph"):
        check_onnx(model.SerializeToString(), "net.onnx")


def test_a_file_of_many_empty_messages_is_refused_before_it_is_parsed() -> None:
    node = b"\x0a\x00" * (MAX_FIELDS + 1)
    with pytest.raises(GraphRefused, match="more than 500,000 fields"):
        parse_onnx(b"\x3a" + _varint(len(node)) + node, "net.onnx")


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        b"\x08\x07",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x0b",
        b"\xff" * 40,
        struct.pack("<Q", 7),
        b"\x12\x02\xff\xfe",
    ],
)
def test_what_is_no_onnx_is_refused(data: bytes) -> None:
    with pytest.raises(GraphRefused, match="is no ONNX file"):
        parse_onnx(data, "net.onnx")


def test_a_name_that_is_no_text_is_refused() -> None:
    data = small().SerializeToString().replace(b"GlobalAveragePool", b"Global\xffveragePool")
    with pytest.raises(GraphRefused, match="is no ONNX file, or a damaged one"):
        check_onnx(data, "net.onnx")


def test_without_the_library_the_cure_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RuntimeUnavailable, match=r"resedge\[export\]"):
        check_onnx(small().SerializeToString(), "net.onnx")
