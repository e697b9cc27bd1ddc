"""Networks that descend from the ResNet, from torch to the finished Q/DQ graph and into the runtimes."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from resedge.artifacts import Artifact, Ranges
from resedge.calibration.emulation import emulated
from resedge.calibration.equalisation import equalise
from resedge.calibration.histograms import collect
from resedge.calibration.layers import layers_of
from resedge.calibration.layerwise import adjust, apply
from resedge.calibration.placement import place
from resedge.calibration.ranges import minmax
from resedge.calibration.rules import check_qdq
from resedge.errors import GraphRefused, StaleArtifact
from resedge.export.half import write_half
from resedge.protocols import Float32Array, NoProgress

BOTH = ("cpu", "tensorrt")
DEFINITIONS = Path(__file__).with_name("architectures.py")

# The inputs that read a pair in the scheme tensorrt, input 0 unless another number follows the node.
TENSORRT = {
    "gates": """stem.0 body.0.main.0.0 body.0.main.1.0 body.0.gate.scale.0 body.0.gate.scale.1
        body.0.gate.scale.3 body.0.gate.mul body.0.gate.mul:1 body.0.add:1
        body.1.main.0.0 body.1.main.1.0 body.1.gate.scale.0 body.1.gate.scale.1
        body.1.gate.scale.3 body.1.gate.mul body.1.gate.mul:1 body.1.add:1
        body.2.main.0.0 body.2.main.1.0 body.2.gate.scale.globalaveragepool body.2.gate.scale.flatten
        body.2.gate.scale.fc2 body.2.gate.mul body.2.gate.scale.unsqueeze body.2.add:1
        body.3.main.0.0 body.3.main.1.0 body.3.gate.scale.pool body.3.gate.scale.squeeze
        body.3.gate.mul body.3.gate.mul:1 body.3.add:1 pool flatten""",
    # No BatchNormalization reads a pair, and the trunk stays float for it.
    "preact": """stem body.0.conv1 body.0.conv2 body.0.add:1
        body.1.conv1 body.1.conv2 body.1.shortcut body.1.add:1 pool flatten""",
    "blurpool": """stem.0 body.0.0 body.0.1.pad body.0.1.conv
        body.1.main.0.0 body.1.main.1.pad body.1.main.1.conv body.1.main.2.0
        body.1.shortcut.0.pad body.1.shortcut.0.conv body.1.shortcut.1.0 body.1.add:1 pool flatten""",
    # Neither Concat: both are read by a BatchNormalization.
    "dense": "stem.0 body.0.convs.0 body.0.convs.1 body.1.2 body.1.3 pool flatten",
    "concat": """stem.0 body.0.branches.0.0 body.0.branches.1.0 body.0.branches.2.0 body.0.branches.2.1.0
        body.0.concat body.0.concat:1 body.0.concat:2 body.1.0 body.2.convs.0.0 body.2.convs.1.0
        body.2.concat body.2.concat:1 body.2.concat:2 body.2.joined.0 pool flatten""",
    # No Add of a normalisation's bias, which reads its dtype from an activation.
    "groupnorm": """stem.0 body.0.main.0.0 body.0.main.1.0 body.0.add:1
        body.1.main.0.0 body.1.main.1.0 body.1.shortcut.0 body.1.add:1 pool flatten""",
    "pools": """stem.0.0 stem.1 body.0.main.0.0 body.0.main.1.0 body.0.shortcut.0 body.0.shortcut.1.0
        body.0.add:1 pool.mean pool.max pool.concat pool.concat:1 flatten head.4""",
    "depthwise": """stem.0 body.0.main.0.0 body.0.main.1.0 body.0.main.2.0 body.0.add:1
        body.1.main.0.0 body.1.main.1.0 body.1.main.2.0 body.1.add:1 pool flatten""",
    # No Mul of a SiLU.
    "silu": "stem.0 body.0.main.0.0.0 body.0.main.0.1.0 body.0.add:1 pool flatten",
    "transposed": "stem.0 body.0.0 body.1 pool flatten",
}
# Beyond these the scheme cpu has the main path of every residual Add, its input 0 here.
CPU_TOO = {
    name: " ".join(site.removesuffix(":1") for site in sites.split() if site.endswith(".add:1"))
    for name, sites in TENSORRT.items()
}
FLOAT_WEIGHTS = {"transposed": {"body.3"}}  # a grouped ConvTranspose: no axis of output channels
FLOAT_IN_OPENVINO = {"transposed": {"Deconvolution": 1}}  # the same
PAIRS = ("QuantizeLinear", "DequantizeLinear")
GRAPHS = [(name, scheme) for name in TENSORRT for scheme in BOTH]


def _images(number: int, seed: int) -> Float32Array:
    """Return images that differ in colour and contrast, so that the logits do."""
    random = np.random.default_rng(seed)
    colour = random.uniform(-1.5, 1.5, (number, 3, 1, 1))
    contrast = random.uniform(0.2, 1, (number, 1, 1, 1))
    noise = random.uniform(-2, 2, (number, 3, 16, 16))
    return (colour + contrast * noise).astype(np.float32)


@pytest.fixture(scope="session")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Every network as its folded FP32 graph, by the product's own export."""
    import torch

    from resedge.export.fold import fold
    from resedge.export.onnxfile import write_onnx
    from resedge.export.trace import trace

    folder = tmp_path_factory.mktemp("architectures")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    build = runpy.run_path(str(DEFINITIONS))["build"]
    written = {}
    for name in TENSORRT:
        folded = fold(trace(build(name), (3, 16, 16)), _images(2, seed=3))
        written[name] = write_onnx(folded.graph, (3, 16, 16), folder / f"{name}.onnx")
    torch.set_num_threads(threads)
    return written


@pytest.fixture(scope="session")
def ranges(architectures: dict[str, Artifact]) -> dict[str, Ranges]:
    return {name: _calibrated(model) for name, model in architectures.items()}


@pytest.fixture(scope="session")
def quantised(
    architectures: dict[str, Artifact], ranges: dict[str, Ranges], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Artifact]:
    folder = tmp_path_factory.mktemp("quantised")
    return {
        (name, scheme): place(
            architectures[name], ranges[name], scheme, folder / f"{name}.{scheme}.onnx", pair_safe=True
        )
        for name, scheme in GRAPHS
    }


def _calibrated(model: Artifact) -> Ranges:
    histograms = collect(model, [_images(96, seed=1)], NoProgress(), 1)
    return minmax(histograms, graph_sha256=model.sha256, dataset_sha256="0" * 64, images=96)


def _graph(model: Artifact) -> onnx.GraphProto:
    return onnx.load(model.path).graph


def _numbers(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _sites(graph: onnx.GraphProto) -> Iterator[str]:
    """Return the inputs that read an activation's pair."""
    stored = {tensor.name for tensor in graph.initializer}
    pairs = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in stored
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in pairs:
                yield node.name + (f":{index}" if index else "")


def _names(graph: onnx.GraphProto, *op_types: str) -> set[str]:
    return {node.name for node in graph.node if node.op_type in op_types}


@pytest.mark.parametrize(("name", "scheme"), GRAPHS)
def test_pairs_stand_where_the_rules_put_them(
    quantised: dict[tuple[str, str], Artifact], name: str, scheme: str
) -> None:
    expected = TENSORRT[name] if scheme == "tensorrt" else f"{TENSORRT[name]} {CPU_TOO[name]}"
    assert sorted(_sites(_graph(quantised[name, scheme]))) == sorted(expected.split())
    check_qdq(quantised[name, scheme], scheme)


@pytest.mark.parametrize("name", ["gates", "concat", "groupnorm", "pools"])
def test_pairs_stand_there_in_half_too_whatever_node_stays_wide(
    quantised: dict[tuple[str, str], Artifact], name: str, tmp_path: Path
) -> None:
    model = quantised[name, "tensorrt"]
    nodes = [node.name for node in _graph(model).node if node.op_type not in PAIRS]
    for wide in nodes:
        check_qdq(write_half(model, tmp_path / "half.onnx", {wide}), "tensorrt")


@pytest.mark.parametrize(("name", "scheme"), GRAPHS)
def test_every_weight_is_quantised_unless_named(
    quantised: dict[tuple[str, str], Artifact], name: str, scheme: str
) -> None:
    graph = _graph(quantised[name, scheme])
    stored = {tensor.name for tensor in graph.initializer}
    weighted = _names(graph, "Conv", "ConvTranspose", "Gemm", "MatMul")
    floats = {node.name for node in graph.node if node.name in weighted and node.input[1] in stored}
    assert floats == FLOAT_WEIGHTS.get(name, set())


@pytest.mark.parametrize(("name", "scheme"), GRAPHS)
def test_every_scale_is_positive_though_each_layer_has_a_dead_channel(
    quantised: dict[tuple[str, str], Artifact], name: str, scheme: str
) -> None:
    numbers = _numbers(_graph(quantised[name, scheme]))
    scales = [array for key, array in numbers.items() if key.endswith(".scale")]
    dead = [
        array for key, array in numbers.items() if key.endswith(".weight.quantized") and not array[0].any()
    ]
    assert scales
    assert dead
    assert all((array > 0).all() for array in scales)


@pytest.mark.parametrize(("name", "scheme"), GRAPHS)
def test_logits_stay_near_those_of_the_fp32_graph(
    quantised: dict[tuple[str, str], Artifact], architectures: dict[str, Artifact], name: str, scheme: str
) -> None:
    """The noise is held against what the logits tell of the images, not against their means."""
    images = _images(32, seed=2)
    expected = emulated(architectures[name], 1)(images)
    noise = emulated(quantised[name, scheme], 1)(images) - expected
    assert 10 * np.log10((expected - expected.mean(axis=0)).var() / np.square(noise).mean()) > 20


@pytest.mark.parametrize("name", TENSORRT)
def test_equalised_channels_leave_the_logits_as_they_are(
    architectures: dict[str, Artifact], name: str, tmp_path: Path
) -> None:
    """A gate, an activation function or a norm between two layers keeps their channels as they are."""
    model = architectures[name]
    equalised = equalise(model, _images(4, seed=1), tmp_path / "equalised.onnx")
    images = _images(8, seed=2)
    expected = emulated(model, 1)(images)
    given = emulated(equalised or model, 1)(images)
    np.testing.assert_allclose(given, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", TENSORRT)
def test_openvino_runs_every_quantised_layer_in_integers(
    quantised: dict[tuple[str, str], Artifact], name: str
) -> None:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(
        str(quantised[name, "cpu"].path),
        "CPU",
        {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"},
    )
    integer, other = Counter[str](), Counter[str]()
    for operator in compiled.get_runtime_model().get_ops():
        info = operator.get_rt_info()
        kind, precision = info["layerType"].astype(str), info["runtimePrecision"].astype(str)
        if kind in ("Convolution", "Deconvolution", "FullyConnected"):
            (integer if precision in ("u8", "i8") else other)[kind] += 1
        if kind in ("Concatenation", "Pad") and name != "dense":
            assert precision == "u8"
    layers = len(_names(_graph(quantised[name, "cpu"]), "Conv", "ConvTranspose", "Gemm"))
    assert other == FLOAT_IN_OPENVINO.get(name, {})
    assert integer.total() + other.total() == layers


@pytest.mark.parametrize("name", ["gates", "preact", "blurpool", "concat", "pools"])
def test_tensorrt_rtx_builds_every_conv_in_int8(
    quantised: dict[tuple[str, str], Artifact],
    name: str,
    rtx_layers: Callable[[Artifact], list[tuple[str, list[str]]]],
) -> None:
    model = quantised[name, "tensorrt"]
    layers = rtx_layers(model)
    convs = [inputs for kind, inputs in layers if kind == "correlation"]
    assert convs == [["Int8"]] * len(_names(_graph(model), "Conv"))
    assert [inputs for kind, inputs in layers if kind == "maxpool"] in ([], [["Int8"]])


@pytest.mark.parametrize("scheme", BOTH)
def test_what_is_moved_or_joined_has_one_scale(
    quantised: dict[tuple[str, str], Artifact], ranges: dict[str, Ranges], scheme: str
) -> None:
    numbers = _numbers(_graph(quantised["concat", scheme]))
    first = ["body.0.branches.0.2.out", "body.0.branches.1.2.out", "body.0.branches.2.1.2.out"]
    second = ["body.1.2.out", "body.2.convs.0.2.out", "body.2.convs.1.2.out"]
    grids = {}
    for inputs, output in ((first, "body.0.concat.out"), (second, "body.2.concat.out")):
        scales = {float(numbers[f"{tensor}.scale"]) for tensor in (*inputs, output)}
        points = {int(numbers[f"{tensor}.zero_point"]) for tensor in (*inputs, output)}
        assert len(scales) == len(points) == 1
        steps = 255 if scheme == "cpu" else 127
        assert scales.pop() == pytest.approx(
            max(ranges["concat"].table[t][1] for t in inputs) / steps, rel=1e-3
        )
        grids[output] = numbers[f"{output}.scale"]
    assert grids["body.0.concat.out"] != grids["body.2.concat.out"]
    blurred = _numbers(_graph(quantised["blurpool", scheme]))
    assert (
        len({float(blurred[f"{t}.scale"]) for t in ("stem.2.out", "body.0.0.out", "body.0.1.pad.out")}) == 1
    )


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("concat", "body.2.convs.1.2.out", r"^Concat body\.2\.concat: input 2 has not the scale"),
        ("blurpool", "body.1.main.1.pad.out", r"^Conv body\.1\.main\.1\.conv: input 0 has not the scale"),
        ("pools", "stem.1.out", r"^Conv body\.0\.main\.0\.0: input 0 has not the scale"),
        ("pools", "pool.max.out", r"^Concat pool\.concat: input 1 has not the scale"),
    ],
)
def test_another_scale_on_one_side_is_refused(
    quantised: dict[tuple[str, str], Artifact], name: str, tensor: str, message: str
) -> None:
    model = onnx.load(quantised[name, "tensorrt"].path)
    scale = next(item for item in model.graph.initializer if item.name == f"{tensor}.scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(2), scale.name))
    with pytest.raises(GraphRefused, match=message):
        check_qdq(model.SerializeToString(), "tensorrt")


@pytest.mark.parametrize(
    ("name", "node", "index", "message"),
    [
        ("gates", "body.0.gate.mul", 1, r"^Mul body\.0\.gate\.mul: input 1 is not quantised"),
        ("blurpool", "body.0.1.pad", 0, r"^Pad body\.0\.1\.pad: input 0 is not quantised"),
        ("concat", "body.0.concat", 2, r"^Concat body\.0\.concat: input 2 is not quantised"),
        ("pools", "body.0.shortcut.0", 0, r"^AveragePool body\.0\.shortcut\.0: input 0 is not"),
        ("transposed", "body.1", 0, r"^ConvTranspose body\.1: input 0 is not quantised"),
    ],
)
def test_a_float_input_where_the_rules_want_a_pair_is_refused(
    quantised: dict[tuple[str, str], Artifact], name: str, node: str, index: int, message: str
) -> None:
    model = onnx.load(quantised[name, "cpu"].path)
    reader = next(item for item in model.graph.node if item.name == node)
    tensor = reader.input[index].removesuffix(".dequantized")
    readers = sum(f"{tensor}.dequantized" in item.input for item in model.graph.node)
    reader.input[index] = tensor
    if readers == 1:  # or the pair is one that nothing reads, which breaks another rule
        for item in [item for item in model.graph.node if item.name.startswith(f"{tensor}.")]:
            if item.op_type in PAIRS:
                model.graph.node.remove(item)
    with pytest.raises(GraphRefused, match=message):
        check_qdq(model.SerializeToString(), "cpu")


@pytest.mark.parametrize("name", ["preact", "dense", "groupnorm", "silu"])
def test_what_has_no_integer_form_reads_floats(quantised: dict[tuple[str, str], Artifact], name: str) -> None:
    graph = _graph(quantised[name, "cpu"])
    arithmetic = _names(graph, "Mul", "Add") - {"body.0.add", "body.1.add"}
    norms = _names(graph, "BatchNormalization", "InstanceNormalization")
    floats = norms | arithmetic | _names(graph, "Sigmoid", "Relu", "CastLike", "Shape")
    assert norms or name == "silu"
    assert floats.isdisjoint(site.split(":")[0] for site in _sites(graph))


def test_a_concat_before_a_layer_that_is_kept_stays_float(
    architectures: dict[str, Artifact], ranges: dict[str, Ranges], tmp_path: Path
) -> None:
    kept = frozenset({"body.2.joined.0"})
    made = place(architectures["concat"], ranges["concat"], "cpu", tmp_path / "k.onnx", kept=kept)
    sites = set(_sites(_graph(made)))
    assert not {site for site in sites if site.startswith(("body.2.concat", "body.2.joined"))}
    assert {"body.0.concat", "body.2.convs.0.0", "body.2.convs.1.0"} <= sites


def test_a_maximum_over_minus_infinity_stays_float(
    network: type[Any], ranges_of: Callable[[Artifact], Ranges], tmp_path: Path
) -> None:
    """A Pad as TensorFlow's "same" padding needs it before a MaxPool: its output has no range."""
    net = network()
    pads = net.constant("pads", np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64))
    lowest = net.constant("lowest", np.float32(-np.inf))
    padded = net.op("Pad", [net.conv("input", "conv", 3, 8, 3), pads, lowest], "pad")
    pooled = net.op("MaxPool", [padded], "pool", kernel_shape=[3, 3], strides=[2, 2])
    flat = net.op("Flatten", [net.conv(pooled, "next", 8, 8, 3)], "flatten")
    model = net.save(tmp_path / "plain.onnx", net.gemm(flat, "linear", 8 * 4 * 4, 10), 8)
    made = place(model, ranges_of(model), "tensorrt", tmp_path / "made.onnx")
    assert list(_sites(_graph(made))) == ["conv", "next", "flatten"]


def test_a_range_that_is_missing_on_one_side_is_refused(
    architectures: dict[str, Artifact], ranges: dict[str, Ranges], tmp_path: Path
) -> None:
    lost = "body.2.convs.1.2.out"  # read by the Concat alone
    table = {name: ends for name, ends in ranges["concat"].table.items() if name != lost}
    with pytest.raises(StaleArtifact, match=r"^body\.2\.convs\.1\.2\.out: has no calibrated range"):
        place(architectures["concat"], replace(ranges["concat"], table=table), "cpu", tmp_path / "x.onnx")


def test_a_transposed_convolution_is_a_layer_with_output_channels_on_axis_one(
    architectures: dict[str, Artifact], quantised: dict[tuple[str, str], Artifact]
) -> None:
    assert [(layer.name, layer.macs) for layer in layers_of(architectures["transposed"])] == [
        ("stem.0", 3 * 16 * 9 * 16 * 16),
        ("body.0.0", 16 * 32 * 9 * 8 * 8),
        ("body.1", 32 * 16 * 4 * 8 * 8),
        ("head", 8 * 10),
    ]
    graph = _graph(quantised["transposed", "tensorrt"])
    reader = next(node for node in graph.node if node.name == "body.1")
    weight = next(node for node in graph.node if node.output[0] == reader.input[1])
    assert weight.attribute[0].i == 1
    assert _numbers(graph)[weight.input[1]].shape == (16,)


@pytest.mark.parametrize("name", ["gates", "groupnorm", "depthwise", "transposed"])
def test_layers_are_fitted_whatever_lies_between_them(
    architectures: dict[str, Artifact], quantised: dict[tuple[str, str], Artifact], name: str, tmp_path: Path
) -> None:
    model, graph, images = architectures[name], quantised[name, "tensorrt"], _images(8, seed=4)
    found = adjust(model, graph, images, rounding=True, pair_safe=True, threads=1, progress=NoProgress())
    assert found.keys() == {layer.name for layer in layers_of(model)}
    assert [key for key, adjustment in found.items() if adjustment.integers is None] == (
        ["body.1"] if name == "transposed" else []
    )
    fitted = apply(graph, found, tmp_path / "fitted.onnx")
    expected = emulated(model, 1)(images)
    before, after = (np.square(emulated(g, 1)(images) - expected).mean() for g in (graph, fitted))
    assert after < before
