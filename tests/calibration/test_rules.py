from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resedge.artifacts import Artifact
from resedge.calibration.rules import check_qdq
from resedge.errors import GraphRefused, StaleArtifact, UsageError

Plant = Callable[[onnx.ModelProto], None]
Placed = dict[tuple[str, str], Artifact]


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    nodes: dict[str, onnx.NodeProto] = {node.name: node for node in model.graph.node}
    return nodes[name]


def _set(model: onnx.ModelProto, name: str, numbers: NDArray[Any]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(numbers), name))


def _get(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def _insert_pair(model: onnx.ModelProto, tensor: str, like: str, *readers: str) -> None:
    """Quantise a tensor for these readers, on the grid of another."""
    grid = [f"{like}.scale", f"{like}.zero_point"]
    pair = [
        helper.make_node("QuantizeLinear", [tensor, *grid], [f"{tensor}.q"], name=f"{tensor}.q"),
        helper.make_node("DequantizeLinear", [f"{tensor}.q", *grid], [f"{tensor}.dq"], name=f"{tensor}.dq"),
    ]
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if tensor in node.output) + 1
    for name in readers:
        _redirect(_node(model, name), tensor, f"{tensor}.dq")
    nodes = [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], *pair, *nodes[at:]])


def _redirect(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        node.input[index] = new if name == old else name


def _drop_node(model: onnx.ModelProto, name: str) -> None:
    model.graph.node.remove(_node(model, name))


# --- what is planted -----------------------------------------------------------------------------


def _opset_18(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def _ir_11(model: onnx.ModelProto) -> None:
    model.ir_version = 11


def _foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    _node(model, "relu.out.quantized").domain = "com.microsoft"


def _integer_operator(model: onnx.ModelProto) -> None:
    _node(model, "layer1.conv2").op_type = "QLinearConv"


def _integers_read_by_relu(model: onnx.ModelProto) -> None:
    _node(model, "layer1.relu1").input[0] = "maxpool.out.quantized"


def _scales_of_a_pair_differ(model: onnx.ModelProto) -> None:
    _node(model, "relu.out.dequantized").input[1] = "input.scale"


def _quantised_twice(model: onnx.ModelProto) -> None:
    _insert_pair(model, "layer1.relu1.out", "input", "layer1.conv2")


def _quantised_result(model: onnx.ModelProto) -> None:
    _node(model, "fc").output[0] = "fc.out"
    _insert_pair(model, "fc.out", "input")
    _node(model, "fc.out.dq").output[0] = "logits"


def _scale(value: float) -> Plant:
    return lambda model: _set(model, "relu.out.scale", np.float32(value))


def _scale_vector(model: onnx.ModelProto) -> None:
    _set(model, "relu.out.scale", np.full(16, 0.1, np.float32))
    _set(model, "relu.out.zero_point", np.zeros(16, _get(model, "relu.out.zero_point").dtype))


def _subnormal_half_scale(model: onnx.ModelProto) -> None:
    _set(model, "relu.out.scale", np.float16(6e-5))


def _scale_of_a_node(model: onnx.ModelProto) -> None:
    identity = helper.make_node("Relu", ["relu.out.scale"], ["computed"], name="computed")
    model.graph.node.insert(0, identity)
    _node(model, "relu.out.quantized").input[1] = "computed"
    _node(model, "relu.out.dequantized").input[1] = "computed"


def _no_zero_point(model: onnx.ModelProto) -> None:
    for name in ("relu.out.quantized", "relu.out.dequantized"):
        del _node(model, name).input[2]


def _zero_point(value: np.generic) -> Plant:
    return lambda model: _set(model, "relu.out.zero_point", np.asarray(value))


def _weight_zero_point(model: onnx.ModelProto) -> None:
    _set(model, "conv1.weight.zero_point", np.ones(16, np.int8))


def _dead_weight_scale(model: onnx.ModelProto) -> None:
    scales = _get(model, "conv1.weight.scale").copy()
    scales[3] = 0
    _set(model, "conv1.weight.scale", scales)


def _float_weight(model: onnx.ModelProto) -> None:
    weight = _get(model, "layer1.conv1.weight.quantized").astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "plain"))
    _node(model, "layer1.conv1").input[1] = "plain"


def _unsigned_weight(model: onnx.ModelProto) -> None:
    weight = _get(model, "layer1.conv1.weight.quantized")
    _set(model, "layer1.conv1.weight.quantized", weight.view(np.uint8))
    _set(model, "layer1.conv1.weight.zero_point", np.zeros(16, np.uint8))


def _weight_axis(model: onnx.ModelProto) -> None:
    _node(model, "layer1.conv1.weight.dequantized").attribute[0].i = 1  # 16 channels on both


def _one_weight_scale(model: onnx.ModelProto) -> None:
    _set(model, "layer1.conv1.weight.scale", np.float32(0.1))
    _set(model, "layer1.conv1.weight.zero_point", np.int8(0))


def _integer_bias(model: onnx.ModelProto) -> None:
    add = [("b.q", np.zeros(16, np.int8)), ("b.s", np.float32(1)), ("b.z", np.int8(0))]
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(n), k) for k, n in add)
    names = [name for name, _ in add]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", names, ["b"], name="b"))
    _node(model, "layer1.conv1").input[2] = "b"


def _float_conv_input(model: onnx.ModelProto) -> None:
    _node(model, "layer1.conv2").input[0] = "layer1.relu1.out"
    _drop_node(model, "layer1.relu1.out.quantized")
    _drop_node(model, "layer1.relu1.out.dequantized")


def _float_gemm_input(model: onnx.ModelProto) -> None:
    _node(model, "flatten").input[0] = "avgpool.out"
    _drop_node(model, "avgpool.out.quantized")
    _drop_node(model, "avgpool.out.dequantized")


def _float_pool_input(model: onnx.ModelProto) -> None:
    _node(model, "maxpool").input[0] = "relu.out"
    _drop_node(model, "relu.out.quantized")
    _drop_node(model, "relu.out.dequantized")


def _float_shortcut(model: onnx.ModelProto) -> None:
    _node(model, "layer1.add").input[1] = "maxpool.out"


def _float_main_path(model: onnx.ModelProto) -> None:
    _redirect(_node(model, "layer2.add"), "layer2.conv2.out.dequantized", "layer2.conv2.out")
    _drop_node(model, "layer2.conv2.out.quantized")
    _drop_node(model, "layer2.conv2.out.dequantized")


def _quantised_main_path(model: onnx.ModelProto) -> None:
    _insert_pair(model, "layer2.conv2.out", "input", "layer2.add")


def _pair_before_relu(model: onnx.ModelProto) -> None:
    _insert_pair(model, "layer1.conv1.out", "input", "layer1.relu1")


def _no_integers_written(model: onnx.ModelProto) -> None:
    cast = helper.make_node("Cast", ["relu.out"], ["relu.out.quantized"], name="cast")
    dtype = _get(model, "relu.out.zero_point").dtype
    cast.attribute.append(helper.make_attribute("to", helper.np_dtype_to_tensor_dtype(dtype)))
    at = [node.name for node in model.graph.node].index("relu.out.quantized")
    _drop_node(model, "relu.out.quantized")
    model.graph.node.insert(at, cast)


def _not_onnx(model: onnx.ModelProto) -> None:
    _node(model, "layer1.relu1").attribute.append(helper.make_attribute("slope", 0.1))


BROKEN = [
    ("tensorrt", _opset_18, r"^the graph: is of opset 18"),
    ("tensorrt", _ir_11, r"^the graph: is of IR version 11"),
    ("cpu", _foreign_domain, r"^QuantizeLinear relu\.out\.quantized: .*'com\.microsoft'"),
    ("cpu", _integer_operator, r"^QLinearConv layer1\.conv2: is an integer operator"),
    ("cpu", _integers_read_by_relu, r"^QuantizeLinear maxpool\.out\.quantized: must be read"),
    ("cpu", _scales_of_a_pair_differ, r"^DequantizeLinear relu\.out\.dequantized: its scale is"),
    ("tensorrt", _quantised_twice, r"^layer1\.relu1\.out: is quantised twice"),
    ("tensorrt", _quantised_result, r"^DequantizeLinear fc\.out\.dq: a result of the graph"),
    ("tensorrt", _scale(0.0), r"relu\.out\.quantized: its scale is not positive"),
    ("cpu", _scale(-0.1), r"relu\.out\.quantized: its scale is not positive"),
    ("cpu", _scale(np.inf), r"relu\.out\.quantized: its scale is not positive"),
    ("tensorrt", _scale_vector, r"relu\.out\.quantized: an activation has one scale"),
    ("tensorrt", _subnormal_half_scale, r"relu\.out\.quantized: .* \(in FP16\) normal"),
    ("tensorrt", _scale_of_a_node, r"relu\.out\.quantized: its scale is not a constant"),
    ("cpu", _no_zero_point, r"relu\.out\.quantized: its zero point is not a constant"),
    ("tensorrt", _zero_point(np.int8(5)), r"relu\.out\.quantized: its zero point is not 0"),
    ("tensorrt", _zero_point(np.uint8(0)), r"zero point is uint8, the scheme has int8"),
    ("cpu", _zero_point(np.int8(0)), r"zero point is int8, the scheme has uint8"),
    ("cpu", _weight_zero_point, r"conv1\.weight\.dequantized: its zero point is not 0"),
    ("tensorrt", _dead_weight_scale, r"conv1\.weight\.dequantized: its scale is not positive"),
    ("tensorrt", _float_weight, r"^Conv layer1\.conv1: its weight is not quantised"),
    ("tensorrt", _unsigned_weight, r"weight\.dequantized: its zero point is uint8"),
    ("tensorrt", _weight_axis, r"^Conv layer1\.conv1: .* axis 0"),
    ("tensorrt", _one_weight_scale, r"^Conv layer1\.conv1: .* axis 0"),
    ("tensorrt", _integer_bias, r"^Conv layer1\.conv1: its bias is not a float constant"),
    ("tensorrt", _float_conv_input, r"^Conv layer1\.conv2: input 0 is not quantised"),
    ("cpu", _float_gemm_input, r"^Flatten flatten: input 0 is not quantised"),
    ("tensorrt", _float_pool_input, r"^MaxPool maxpool: input 0 is not quantised"),
    ("tensorrt", _float_shortcut, r"^Add layer1\.add: input 1 is not quantised"),
    ("cpu", _float_shortcut, r"^Add layer1\.add: input 1 is not quantised"),
    ("cpu", _float_main_path, r"^Add layer2\.add: input 0 is not quantised"),
    ("tensorrt", _quantised_main_path, r"^Add layer2\.add: input 0 is quantised"),
    ("tensorrt", _pair_before_relu, r"^Relu layer1\.relu1: input 0 is quantised"),
    ("cpu", _pair_before_relu, r"^Relu layer1\.relu1: input 0 is quantised"),
    ("cpu", _no_integers_written, r"relu\.out\.dequantized: reads what no QuantizeLinear wrote"),
    ("cpu", _not_onnx, r"^the graph: is not valid ONNX"),
]


@pytest.mark.parametrize(
    ("scheme", "plant", "message"),
    BROKEN,
    ids=[f"{scheme}-{index}-{plant.__name__}" for index, (scheme, plant, _) in enumerate(BROKEN)],
)
def test_each_broken_rule_is_refused_with_its_place(
    placed: Placed, scheme: str, plant: Plant, message: str
) -> None:
    model = onnx.load(placed["basic", scheme].path)
    check_qdq(model.SerializeToString(), scheme)
    plant(model)
    with pytest.raises(GraphRefused, match=message):
        check_qdq(model.SerializeToString(), scheme)


@pytest.mark.parametrize("name", ["notebook", "basic", "bottleneck"])
def test_what_placement_writes_passes_its_own_scheme_only(placed: Placed, name: str) -> None:
    check_qdq(placed[name, "cpu"], "cpu")
    check_qdq(placed[name, "tensorrt"], "tensorrt")
    with pytest.raises(GraphRefused):
        check_qdq(placed[name, "cpu"], "tensorrt")
    with pytest.raises(GraphRefused):
        check_qdq(placed[name, "tensorrt"], "cpu")


def test_a_plain_graph_is_refused(networks: dict[str, Artifact]) -> None:
    with pytest.raises(GraphRefused, match=r"^Conv conv1: its weight is not quantised"):
        check_qdq(networks["basic"], "tensorrt")


def test_fp16_surroundings_pass(placed: Placed) -> None:
    model = onnx.load(placed["basic", "tensorrt"].path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    del model.graph.value_info[:]
    for node in model.graph.node:
        _redirect(node, "input", "input.half")
    _node(model, "fc").output[0] = "logits.half"
    into = helper.make_node("Cast", ["input"], ["input.half"], name="in", to=TensorProto.FLOAT16)
    out = helper.make_node("Cast", ["logits.half"], ["logits"], name="out", to=TensorProto.FLOAT)
    model.graph.node.insert(0, into)
    model.graph.node.append(out)
    check_qdq(model.SerializeToString(), "tensorrt")


def test_bytes_that_are_no_onnx_are_refused() -> None:
    with pytest.raises(GraphRefused, match="is not an ONNX model"):
        check_qdq(b"\xff\x00 not a model", "cpu")


def test_a_file_that_has_changed_is_refused(placed: Placed) -> None:
    with pytest.raises(StaleArtifact):
        check_qdq(replace(placed["basic", "cpu"], sha256="0" * 64), "cpu")


def test_an_unknown_scheme_is_wrong_usage(placed: Placed) -> None:
    with pytest.raises(UsageError, match="'gpu' is not a quantisation scheme"):
        check_qdq(placed["basic", "cpu"], "gpu")
