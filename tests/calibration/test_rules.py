from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resedge.artifacts import Artifact, Ranges
from resedge.calibration.placement import place
from resedge.calibration.rules import check_qdq
from resedge.errors import GraphRefused, StaleArtifact, UsageError
from resedge.export.half import write_half

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


# --- FP16 surroundings with nodes that stay FP32 -------------------------------------------------

STEM = frozenset({"conv1", "relu", "maxpool"})
BLOCK = frozenset({"layer1.conv1", "layer1.relu1", "layer1.conv2"})
MIXED = [
    ("basic", frozenset({"conv1"})),
    ("basic", STEM),
    ("basic", BLOCK),
    ("basic", frozenset({"layer1.add"})),
    ("basic", frozenset({"layer2.downsample", "layer2.add"})),
    ("basic", frozenset({"avgpool", "fc"})),
    ("bottleneck", frozenset({"layer1.add", "layer1.relu3", "layer2.conv1"})),
    ("notebook", frozenset({"layer.0.conv1", "layer.0.relu", "layer.0.conv2", "linear"})),
]


@pytest.mark.parametrize(("network", "wide"), MIXED, ids=["-".join((n, min(w))) for n, w in MIXED])
def test_fp16_surroundings_with_wide_nodes_pass(
    placed: Placed, network: str, wide: frozenset[str], tmp_path: Path
) -> None:
    written = write_half(placed[network, "tensorrt"], tmp_path / "half.onnx", wide)
    assert sum(node.op_type == "Cast" for node in onnx.load(written.path).graph.node) > 1
    check_qdq(written, "tensorrt")


def _cast_before(model: onnx.ModelProto, reader: str, index: int, kind: int) -> None:
    """Cast what a node reads, between the pair and the node."""
    node = _node(model, reader)
    source = node.input[index]
    cast = helper.make_node("Cast", [source], [f"{source}.cast"], name=f"{source}.cast", to=kind)
    node.input[index] = f"{source}.cast"
    model.graph.node.insert([n.name for n in model.graph.node].index(reader), cast)


def _cast_behind_a_pair(model: onnx.ModelProto) -> None:
    _cast_before(model, "layer1.conv2", 0, TensorProto.FLOAT)


def _cast_behind_a_weight(model: onnx.ModelProto) -> None:
    _cast_before(model, "layer1.conv2", 1, TensorProto.FLOAT)


def _cast_behind_a_flatten(model: onnx.ModelProto) -> None:
    _cast_before(model, "fc", 0, TensorProto.FLOAT16)


def _pair_missing_behind_a_cast(model: onnx.ModelProto) -> None:
    _node(model, "layer1.conv1").input[0] = "maxpool.out.float"
    _drop_node(model, "maxpool.out.quantized.float")
    _drop_node(model, "maxpool.out.dequantized.float")


def _another_grid_for_the_other_precision(model: onnx.ModelProto) -> None:
    _set(model, "maxpool.out.scale", np.float32(0.5))  # the half pair has its own copy of it


def _pair_on_a_cast_that_nothing_wants(model: onnx.ModelProto) -> None:
    _insert_pair(model, "layer1.conv2.out.half", "maxpool.out", "layer1.add")
    for name in ("layer1.conv2.out.half.q", "layer1.conv2.out.half.dq"):
        _node(model, name).input[1] = "maxpool.out.scale.half"


BROKEN_IN_HALF: list[tuple[Plant, str]] = [
    (_cast_behind_a_pair, r"^Cast layer1\.relu1\.out\.dequantized\.cast: stands between"),
    (_cast_behind_a_weight, r"^Cast layer1\.conv2\.weight\.dequantized\.cast: stands between"),
    (_cast_behind_a_flatten, r"^Cast flatten\.out\.cast: stands between"),
    (_pair_missing_behind_a_cast, r"^Conv layer1\.conv1: input 0 is not quantised"),
    (_another_grid_for_the_other_precision, r"^Conv layer1\.conv1: input 0 has not the scale"),
    (_pair_on_a_cast_that_nothing_wants, r"^Add layer1\.add: input 0 is quantised"),
]


@pytest.mark.parametrize(
    ("plant", "message"), BROKEN_IN_HALF, ids=[plant.__name__ for plant, _ in BROKEN_IN_HALF]
)
def test_each_rule_broken_across_a_cast_is_refused(
    placed: Placed, plant: Plant, message: str, tmp_path: Path
) -> None:
    model = onnx.load(write_half(placed["basic", "tensorrt"], tmp_path / "half.onnx", BLOCK).path)
    check_qdq(model.SerializeToString(), "tensorrt")
    plant(model)
    with pytest.raises(GraphRefused, match=message):
        check_qdq(model.SerializeToString(), "tensorrt")


def test_a_maximum_over_minus_infinity_stays_float_across_a_cast(
    network: type[Any], ranges_of: Callable[[Artifact], Ranges], tmp_path: Path
) -> None:
    net = network()
    pads = net.constant("pads", np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64))
    lowest = net.constant("lowest", np.float32(-np.inf))
    padded = net.op("Pad", [net.conv("input", "conv", 3, 8, 3), pads, lowest], "pad")
    pooled = net.op("MaxPool", [padded], "pool", kernel_shape=[3, 3], strides=[2, 2])
    flat = net.op("Flatten", [net.conv(pooled, "next", 8, 8, 3)], "flatten")
    model = net.save(tmp_path / "plain.onnx", net.gemm(flat, "linear", 8 * 4 * 4, 10), 8)
    made = place(model, ranges_of(model), "tensorrt", tmp_path / "made.onnx")
    check_qdq(write_half(made, tmp_path / "half.onnx", {"pad"}), "tensorrt")


def test_bytes_that_are_no_onnx_are_refused() -> None:
    with pytest.raises(GraphRefused, match="is not an ONNX model"):
        check_qdq(b"\xff\x00 not a model", "cpu")


def test_a_file_that_has_changed_is_refused(placed: Placed) -> None:
    with pytest.raises(StaleArtifact):
        check_qdq(replace(placed["basic", "cpu"], sha256="0" * 64), "cpu")


def test_an_unknown_scheme_is_wrong_usage(placed: Placed) -> None:
    with pytest.raises(UsageError, match="'gpu' is not a quantisation scheme"):
        check_qdq(placed["basic", "cpu"], "gpu")
