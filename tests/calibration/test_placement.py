from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resedge.artifacts import Artifact, Ranges, encode, sha256_bytes, sha256_json
from resedge.calibration.placement import place
from resedge.errors import GraphRefused, StaleArtifact, UsageError
from resedge.protocols import Float32Array

BOTH = ("cpu", "tensorrt")
RtxLayers = Callable[[Artifact], list[tuple[str, list[str]]]]

# The tensors that have a Q/DQ pair, in the order of the file, and the inputs that read them.
NOTEBOOK_TENSORRT = {
    "input": "layer.0.conv1 layer.0.conv3",
    "layer.0.relu.out": "layer.0.conv2",
    "layer.0.conv3.out": "layer.0.add:1",
    "layer.0.add.out": "layer.1.conv1 layer.1.conv3",
    "layer.1.relu.out": "layer.1.conv2",
    "layer.1.conv3.out": "layer.1.add:1",
    "layer.1.add.out": "layer.2.conv1 layer.2.conv3",
    "layer.2.relu.out": "layer.2.conv2",
    "layer.2.conv3.out": "layer.2.add:1",
    "layer.2.add.out": "flatten",
}
NOTEBOOK_CPU = NOTEBOOK_TENSORRT | {
    "layer.0.conv2.out": "layer.0.add",
    "layer.1.conv2.out": "layer.1.add",
    "layer.2.conv2.out": "layer.2.add",
}
BASIC_TENSORRT = {
    "input": "conv1",
    "relu.out": "maxpool",
    "maxpool.out": "layer1.add:1 layer1.conv1",
    "layer1.relu1.out": "layer1.conv2",
    "layer1.relu2.out": "layer2.conv1 layer2.downsample",
    "layer2.relu1.out": "layer2.conv2",
    "layer2.downsample.out": "layer2.add:1",
    "layer2.relu2.out": "avgpool",
    "avgpool.out": "flatten",
}
BASIC_CPU = BASIC_TENSORRT | {
    "layer1.conv2.out": "layer1.add",
    "layer2.conv2.out": "layer2.add",
}
BOTTLENECK_TENSORRT = {
    "input": "conv1",
    "relu.out": "maxpool",
    "maxpool.out": "layer1.conv1 layer1.downsample",
    "layer1.relu1.out": "layer1.conv2",
    "layer1.relu2.out": "layer1.conv3",
    "layer1.downsample.out": "layer1.add:1",
    "layer1.relu3.out": "layer2.add layer2.conv1",
    "layer2.relu1.out": "layer2.conv2",
    "layer2.relu2.out": "layer2.conv3",
    "layer2.relu3.out": "avgpool",
    "avgpool.out": "flatten",
}
BOTTLENECK_CPU = BOTTLENECK_TENSORRT | {
    "layer1.conv3.out": "layer1.add",
    "layer2.conv3.out": "layer2.add:1",
}
EXPECTED = {
    ("notebook", "tensorrt"): (NOTEBOOK_TENSORRT, 10, 20),
    ("notebook", "cpu"): (NOTEBOOK_CPU, 13, 23),
    ("basic", "tensorrt"): (BASIC_TENSORRT, 9, 16),
    ("basic", "cpu"): (BASIC_CPU, 11, 18),
    ("bottleneck", "tensorrt"): (BOTTLENECK_TENSORRT, 11, 20),
    ("bottleneck", "cpu"): (BOTTLENECK_CPU, 13, 22),
}


def _graph(model: Artifact) -> onnx.GraphProto:
    return onnx.load(model.path).graph


def _initialiser(model: Artifact, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    return numpy_helper.to_array(next(t for t in _graph(model).initializer if t.name == name))


def _readers(graph: onnx.GraphProto, tensor: str) -> str:
    found = [
        node.name + (f":{index}" if index else "")
        for node in graph.node
        for index, name in enumerate(node.input)
        if name == tensor
    ]
    return " ".join(sorted(found))


@pytest.mark.parametrize(("name", "scheme"), EXPECTED)
def test_pairs_stand_where_the_scheme_puts_them(
    placed: dict[tuple[str, str], Artifact], name: str, scheme: str
) -> None:
    graph = _graph(placed[name, scheme])
    expected, quantise, dequantise = EXPECTED[name, scheme]
    pairs = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {tensor: _readers(graph, f"{tensor}.dequantized") for tensor in pairs} == expected
    assert len(pairs) == quantise
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) == dequantise


@pytest.mark.parametrize("scheme", BOTH)
def test_names_types_and_metadata(
    placed: dict[tuple[str, str], Artifact], networks: dict[str, Artifact], scheme: str
) -> None:
    model, plain = placed["basic", scheme], networks["basic"]
    graph = _graph(model)
    nodes = {node.name: node for node in graph.node}
    pair = ["relu.out.scale", "relu.out.zero_point"]
    assert list(nodes["relu.out.quantized"].input) == ["relu.out", *pair]
    assert list(nodes["relu.out.dequantized"].input) == ["relu.out.quantized", *pair]
    assert list(nodes["conv1.weight.dequantized"].input) == [
        "conv1.weight.quantized",
        "conv1.weight.scale",
        "conv1.weight.zero_point",
    ]
    assert _initialiser(model, "relu.out.zero_point").dtype == (np.uint8 if scheme == "cpu" else np.int8)
    assert _initialiser(model, "conv1.weight.quantized").dtype == np.int8
    assert _initialiser(model, "conv1.weight.scale").shape == (16,)
    assert _initialiser(model, "conv1.bias").dtype == np.float32
    assert "conv1.weight" not in {tensor.name for tensor in graph.initializer}
    for node in _graph(plain).node:
        assert nodes[node.name].metadata_props == node.metadata_props
    assert [(entry.domain, entry.version) for entry in onnx.load(model.path).opset_import] == [("", 19)]


def test_the_artifact_says_what_it_was_made_from(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    model, ranges = networks["basic"], calibrated["basic"]
    made = place(model, ranges, "tensorrt", tmp_path / "out.onnx", pair_safe=True)
    assert made == Artifact(
        tmp_path / "out.onnx",
        sha256_bytes((tmp_path / "out.onnx").read_bytes()),
        "onnx/int8.tensorrt",
        model.inputs,
        model.outputs,
        (model.sha256, sha256_json(encode(ranges))),
        {"scheme": "tensorrt", "method": "minmax", "pair_safe": True, "kept": []},
    )


@pytest.mark.parametrize("scheme", BOTH)
def test_the_same_bytes_twice(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path, scheme: str
) -> None:
    shuffled = replace(calibrated["basic"], table=dict(reversed(list(calibrated["basic"].table.items()))))
    one = place(networks["basic"], calibrated["basic"], scheme, tmp_path / "one.onnx")
    other = place(networks["basic"], shuffled, scheme, tmp_path / "other.onnx")
    assert one.path.read_bytes() == other.path.read_bytes()


def test_scales_follow_from_the_ranges(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    ranges = replace(calibrated["basic"], table={**calibrated["basic"].table, "input": (-1.0, 2.0)})
    cpu = place(networks["basic"], ranges, "cpu", tmp_path / "cpu.onnx")
    assert _initialiser(cpu, "input.scale") == np.float32(3 / 255)
    assert _initialiser(cpu, "input.zero_point") == 85
    tensorrt = place(networks["basic"], ranges, "tensorrt", tmp_path / "trt.onnx")
    assert _initialiser(tensorrt, "input.scale") == np.float32(np.float16(2 / 127))
    assert _initialiser(tensorrt, "input.zero_point") == 0
    for model in (cpu, tensorrt):  # what only selects or rearranges keeps the grid
        assert _initialiser(model, "maxpool.out.scale") == _initialiser(model, "relu.out.scale")


@pytest.mark.parametrize("pair_safe", [False, True])
def test_weights_are_within_half_a_step(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path, pair_safe: bool
) -> None:
    path = tmp_path / "x.onnx"
    model = place(networks["basic"], calibrated["basic"], "cpu", path, pair_safe=pair_safe)
    integers = _initialiser(model, "layer1.conv1.weight.quantized").astype(int)
    tops = np.abs(integers).reshape(16, -1).max(axis=1)
    sums = np.abs(integers[:, 0::2] + integers[:, 1::2])[integers[:, 0::2] * integers[:, 1::2] > 0]
    assert (sums.max() == 128) if pair_safe else (tops.tolist() == [127] * 16)
    weight = _initialiser(networks["basic"], "layer1.conv1.weight")
    scales = _initialiser(model, "layer1.conv1.weight.scale").reshape(-1, 1, 1, 1)
    assert np.abs((integers * scales - weight) / scales).max() <= 0.5001


def test_other_operators_and_layouts(
    network: type[Any], ranges_of: Callable[[Artifact], Ranges], tmp_path: Path
) -> None:
    """A Gemm and a MatMul with weights (in, out), a mean over height and width, a shared weight."""
    net = network()
    x = net.relu(net.conv("input", "first", 3, 8, 3), "relu0")
    net.weights("shared", (8, 8, 1, 1), 8)
    for i in (1, 2):
        x = net.relu(net.op("Conv", [x, "shared"], f"conv{i}"), f"relu{i}")
    axes = net.constant("axes", np.array([2, 3], np.int64))
    pooled = net.op("ReduceMean", [x, axes], "mean", keepdims=0)
    hidden = net.gemm(pooled, "hidden", 8, 12, transposed=False)
    head = net.op("MatMul", [hidden, net.weights("head.weight", (12, 10), 12)], "head")
    out = net.add(head, net.constant("head.bias", np.ones(10, np.float32)), "bias")
    model = net.save(tmp_path / "plain.onnx", out, 8)
    made = place(model, ranges_of(model), "tensorrt", tmp_path / "made.onnx")
    graph = _graph(made)
    pairs = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert pairs == ["input", "relu0.out", "relu1.out", "relu2.out", "mean.out", "hidden.out"]
    axis = {
        node.name: node.attribute[0].i
        for node in graph.node
        if len(node.input) == 3 and node.op_type == "DequantizeLinear" and node.attribute
    }
    assert axis == {
        "first.weight.dequantized": 0,
        "shared.dequantized": 0,
        "hidden.weight.dequantized": 1,
        "head.weight.dequantized": 1,
    }
    assert _readers(graph, "shared.dequantized") == "conv1:1 conv2:1"
    assert _initialiser(made, "hidden.weight.scale").shape == (12,)
    assert _initialiser(made, "head.weight.scale").shape == (10,)


def test_a_tie_makes_the_second_input_the_main_path(
    network: type[Any], ranges_of: Callable[[Artifact], Ranges], tmp_path: Path
) -> None:
    net = network()
    one, other = net.conv("input", "one", 3, 8, 3), net.conv("input", "other", 3, 8, 3)
    flat = net.op("Flatten", [net.add(one, other, "add")], "flatten")
    model = net.save(tmp_path / "plain.onnx", net.gemm(flat, "linear", 512, 10), 8)
    made = place(model, ranges_of(model), "tensorrt", tmp_path / "made.onnx")
    add = next(node for node in _graph(made).node if node.op_type == "Add")
    assert list(add.input) == ["one.out.dequantized", "other.out"]


def test_ranges_of_another_graph_are_refused(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    with pytest.raises(StaleArtifact, match="the ranges belong to graph"):
        place(networks["basic"], calibrated["notebook"], "cpu", tmp_path / "x.onnx")
    table = {k: v for k, v in calibrated["basic"].table.items() if k != "layer1.relu1.out"}
    incomplete = replace(calibrated["basic"], table=table)
    with pytest.raises(StaleArtifact, match=r"^layer1\.relu1\.out: has no calibrated range"):
        place(networks["basic"], incomplete, "cpu", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_quantised_already_is_refused(
    placed: dict[tuple[str, str], Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    model = placed["basic", "cpu"]
    ranges = replace(calibrated["basic"], graph_sha256=model.sha256)
    with pytest.raises(GraphRefused, match=r"DequantizeLinear|QuantizeLinear"):
        place(model, ranges, "cpu", tmp_path / "x.onnx")


def test_an_unknown_scheme_is_wrong_usage(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    model, ranges = networks["basic"], calibrated["basic"]
    with pytest.raises(UsageError, match=r"'onnx' is not .* cpu, tensorrt"):
        place(model, ranges, "onnx", tmp_path / "x.onnx")


def test_a_weight_that_is_not_finite_is_refused(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    proto = onnx.load(networks["basic"].path)
    weight = next(t for t in proto.graph.initializer if t.name == "fc.weight")
    numbers = numpy_helper.to_array(weight).copy()
    numbers[1, 2] = np.nan
    weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))
    data = proto.SerializeToString()
    (tmp_path / "bad.onnx").write_bytes(data)
    model = replace(networks["basic"], path=tmp_path / "bad.onnx", sha256=sha256_bytes(data))
    ranges = replace(calibrated["basic"], graph_sha256=model.sha256)
    with pytest.raises(GraphRefused, match=r"^fc\.weight: holds NaN"):
        place(model, ranges, "cpu", tmp_path / "x.onnx")


@pytest.mark.parametrize(("name", "scheme"), EXPECTED)
def test_onnxruntime_computes_nearly_what_the_fp32_graph_does(
    placed: dict[tuple[str, str], Artifact],
    networks: dict[str, Artifact],
    images_for: Callable[..., Float32Array],
    run: Callable[[Artifact, Float32Array], Float32Array],
    name: str,
    scheme: str,
) -> None:
    images = images_for(networks[name], 64, seed=2)
    expected, found = run(networks[name], images), run(placed[name, scheme], images)
    assert np.abs(found - expected).mean() < 0.1 * np.abs(expected).mean()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.85


@pytest.mark.parametrize("name", ["notebook", "basic", "bottleneck"])
def test_openvino_runs_the_cpu_graph_in_integers(placed: dict[tuple[str, str], Artifact], name: str) -> None:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(
        str(placed[name, "cpu"].path),
        "CPU",
        {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"},
    )
    ran = {"Convolution": 0, "FullyConnected": 0}
    for operator in compiled.get_runtime_model().get_ops():
        info = operator.get_rt_info()
        kind = info["layerType"].astype(str)
        if kind in ran:
            assert info["runtimePrecision"].astype(str) in ("u8", "i8")
            ran[kind] += 1
    convs = sum(node.op_type == "Conv" for node in _graph(placed[name, "cpu"]).node)
    assert ran == {"Convolution": convs, "FullyConnected": 1}


@pytest.mark.parametrize("name", ["notebook", "basic", "bottleneck"])
def test_tensorrt_rtx_builds_every_conv_in_int8(
    placed: dict[tuple[str, str], Artifact], name: str, rtx_layers: RtxLayers
) -> None:
    model = placed[name, "tensorrt"]
    layers = rtx_layers(model)
    convs = [inputs for kind, inputs in layers if kind == "correlation"]
    assert len(convs) == sum(node.op_type == "Conv" for node in _graph(model).node)
    assert all(inputs == ["Int8"] for inputs in convs)
    assert [inputs for kind, inputs in layers if kind == "gemm"] == [["Int8"]]


@pytest.mark.parametrize("scheme", BOTH)
def test_layers_that_are_kept_stay_float(
    scheme: str, networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    kept = frozenset({"layer.1.conv1", "linear"})
    placed = place(networks["notebook"], calibrated["notebook"], scheme, tmp_path / "k.onnx", kept=kept)
    graph = onnx.load(placed.path).graph
    inputs = {node.name: list(node.input) for node in graph.node}
    assert inputs["layer.1.conv1"][:2] == ["layer.0.add.out", "layer.1.conv1.weight"]
    assert inputs["layer.1.conv3"][0] == "layer.0.add.out.dequantized"  # its other reader
    assert inputs["linear"][1] == "linear.weight"
    assert inputs["flatten"][0] == "layer.2.add.out"  # only the Gemm behind it wanted it quantised
    assert placed.meta["kept"] == ["layer.1.conv1", "linear"]
    assert json.loads(onnx.load(placed.path).metadata_props[0].value) == ["layer.1.conv1", "linear"]


def test_an_unknown_layer_cannot_be_kept(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"layer\.9"):
        place(
            networks["notebook"],
            calibrated["notebook"],
            "cpu",
            tmp_path / "k.onnx",
            kept=frozenset({"layer.9"}),
        )
    assert not (tmp_path / "k.onnx").exists()


def test_scales_that_wide_nodes_alone_use_need_no_fp16_value(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    """layer1.conv1 writes up to 1e8, and the weights behind it are as small."""
    model = onnx.load(networks["basic"].path)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "layer1.conv2.weight")
    small = numpy_helper.to_array(weight) * np.float32(1e-7)
    weight.CopyFrom(numpy_helper.from_array(small, weight.name))
    path = tmp_path / "fp32.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    fp32 = replace(networks["basic"], path=path, sha256=sha256_bytes(path.read_bytes()))
    table = {**calibrated["basic"].table, "layer1.relu1.out": (0.0, 1e8)}
    ranges = replace(calibrated["basic"], table=table, graph_sha256=fp32.sha256)
    with pytest.raises(GraphRefused, match=r"layer1\.relu1\.out\.quantized: its scale is not .* finite"):
        place(fp32, ranges, "tensorrt", tmp_path / "q.onnx")
    made = place(fp32, ranges, "tensorrt", tmp_path / "q.onnx", wide={"layer1.conv2"})
    numbers = {t.name: numpy_helper.to_array(t) for t in onnx.load(made.path).graph.initializer}
    assert numbers["layer1.relu1.out.scale"] == np.float32(1e8 / 127)
    scales, integers = (numbers[f"layer1.conv2.weight.{part}"] for part in ("scale", "quantized"))
    assert np.abs(integers).reshape(16, -1).max(axis=1).min() == 127
    np.testing.assert_allclose(integers * scales.reshape(-1, 1, 1, 1), small, atol=scales.max() / 1.99)
    others = [numbers[name] for name in numbers if name.endswith(".scale") and ".conv2" not in name]
    assert len(others) > 10
    assert all((scale == scale.astype(np.float16)).all() for scale in others if scale.max() < 65504)


def test_a_scale_that_a_half_node_uses_too_stays_an_fp16_number(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    """MaxPool and what reads it share a scale; one of the readers is half."""
    for wide, half in ((frozenset({"maxpool", "layer1.conv1"}), True), (frozenset({"conv1"}), False)):
        made = place(networks["basic"], calibrated["basic"], "tensorrt", tmp_path / "q.onnx", wide=wide)
        numbers = {t.name: numpy_helper.to_array(t) for t in onnx.load(made.path).graph.initializer}
        for name, exact in (("maxpool.out.scale", True), ("relu.out.scale", True), ("input.scale", half)):
            scale = numbers[name]
            assert (scale == scale.astype(np.float16)).all() == exact, name
