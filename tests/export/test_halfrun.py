from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, fx, nn

from resedge.artifacts import Artifact, Ranges, canonical_json, decode, encode
from resedge.calibration.placement import place
from resedge.calibration.rules import check_qdq
from resedge.errors import GraphRefused, InputRefused, NotFinite
from resedge.export.fold import fold
from resedge.export.half import write_half
from resedge.export.halfrange import LIMIT
from resedge.export.halfreport import HalfReport, NodeInHalf
from resedge.export.halfrun import run_half
from resedge.export.onnxfile import write_onnx
from resedge.export.trace import trace
from resedge.protocols import Float32Array

SHAPE = (3, 12, 12)
LOUD = ("block.conv1", "block.relu")
WIDE = ("block.conv1", "block.relu", "block.conv2")
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv2(self.relu(self.conv1(x)))
        main += x
        out: Tensor = self.relu(main)
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.block, self.dropout = nn.Conv2d(3, 8, 3, padding=1), Block(), nn.Dropout(0.5)
        self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.flatten(self.average(self.block(self.conv(x))), 1)
        out: Tensor = self.fc(self.dropout(pooled))
        return out


def net(loudness: float) -> Net:
    """Return the same function for any loudness, a power of two: one conv is louder, the next one quieter."""
    module = Net().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for parameter in module.block.conv1.parameters():
            parameter.mul_(loudness)
        module.block.conv2.weight /= loudness
    return module


@dataclass(frozen=True)
class Case:
    graph: fx.GraphModule
    model: Artifact


@pytest.fixture(scope="module")
def sample() -> Float32Array:
    return np.random.default_rng(8).standard_normal((6, *SHAPE)).astype(np.float32)


def case(module: nn.Module, folder: Path, images: Float32Array) -> Case:
    graph = fold(trace(module, SHAPE), images).graph
    return Case(graph, write_onnx(graph, SHAPE, folder / "fp32.onnx"))


@pytest.fixture(scope="module")
def quiet(sample: Float32Array, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(net(1.0), tmp_path_factory.mktemp("quiet"), sample)


@pytest.fixture(scope="module")
def loud(sample: Float32Array, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(net(2.0**17), tmp_path_factory.mktemp("loud"), sample)


@pytest.fixture(scope="module")
def report(loud: Case, sample: Float32Array) -> HalfReport:
    return run_half(loud.graph, loud.model, sample)


@pytest.fixture(scope="module")
def loud_qdq(loud: Case, sample: Float32Array, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The loud graph by the scheme "tensorrt", its ranges by a run of every tensor."""
    model = onnx.load(loud.model.path)
    names = [output for node in model.graph.node for output in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(names, session.run(names, {"input": sample}), strict=True)) | {"input": sample}
    table = {name: (float(min(v.min(), 0)), float(max(v.max(), 0))) for name, v in values.items()}
    ranges = Ranges(table, "minmax", loud.model.sha256, "0" * 64, len(sample))
    return place(loud.model, ranges, "tensorrt", tmp_path_factory.mktemp("qdq") / "q.onnx")


def onnx_logits(model: Artifact, images: Float32Array) -> Float32Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # In FP16 surroundings ONNX Runtime's own rewriting of biases is wrong.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    logits: Float32Array = session.run(["logits"], {"input": images})[0]
    return logits


def entry(report: HalfReport, name: str) -> NodeInHalf:
    (found,) = (node for node in report.nodes if node.name == name)
    return found


def test_a_quiet_graph_may_be_half_everywhere(quiet: Case, sample: Float32Array) -> None:
    found = run_half(quiet.graph, quiet.model, sample)
    assert (found.overflowing, found.wide, found.mixed, found.images) == ((), (), None, 6)
    assert found.final is found.all_half
    assert found.all_half.agreement == 1.0
    assert found.all_half.largest_difference is not None
    assert 0 < found.all_half.largest_difference < 0.05
    assert all(node.finite and node.sqnr is not None and 50 < node.sqnr < 90 for node in found.nodes)


def test_every_node_of_the_onnx_graph_is_judged_in_its_order(report: HalfReport, loud: Case) -> None:
    nodes = [(node.name, node.op_type) for node in onnx.load(loud.model.path).graph.node]
    assert [(node.name, node.op_type) for node in report.nodes] == nodes
    assert "block.relu@1" in dict(nodes)  # the second call, in place, after an addition in place


def test_what_overflows_is_named_and_half_alone_gives_no_numbers(report: HalfReport) -> None:
    assert report.limit == LIMIT == 32752
    assert report.overflowing == LOUD
    assert report.wide == WIDE  # the last of them reads what overflows
    assert {node.name for node in report.nodes if node.largest > LIMIT} == set(LOUD)
    broken = entry(report, "block.conv1")
    assert (broken.finite, broken.sqnr) == (False, None)
    assert report.all_half.largest_difference is None
    assert report.all_half.agreement < 1.0


def test_the_mixed_run_agrees_with_float32(report: HalfReport) -> None:
    assert report.mixed is not None
    assert report.final is report.mixed
    assert report.mixed.agreement == 1.0
    assert report.mixed.largest_difference is not None
    assert 0 < report.mixed.largest_difference < 0.05


def test_the_largest_numbers_are_those_of_float32(
    report: HalfReport, quiet: Case, sample: Float32Array
) -> None:
    calm = run_half(quiet.graph, quiet.model, sample)
    assert entry(report, "block.conv1").largest == 2.0**17 * entry(calm, "block.conv1").largest
    assert entry(report, "fc").largest == entry(calm, "fc").largest
    with torch.no_grad():
        expected = float(net(1.0)(torch.tensor(sample)).abs().max())
    assert entry(report, "fc").largest == pytest.approx(expected, rel=1e-5)


def test_half_is_what_torch_computes_in_half(quiet: Case, sample: Float32Array) -> None:
    with torch.no_grad():
        module = net(1.0)
        expected = module(torch.tensor(sample))
        narrow = module.half()(torch.tensor(sample).half()).float()
    found = run_half(quiet.graph, quiet.model, sample).all_half.largest_difference
    assert found == pytest.approx(float((narrow - expected).abs().max()), rel=0.5)


def test_underflow_is_counted_against_float32(sample: Float32Array, tmp_path: Path) -> None:
    soft = case(net(2.0**-16), tmp_path, sample)
    found = run_half(soft.graph, soft.model, sample)
    assert found.overflowing == ()
    with torch.no_grad():
        hidden = net(2.0**-16).block.conv1(net(1.0).conv(torch.tensor(sample)))
    expected = float(((hidden != 0) & (hidden.abs() < 2.0**-14)).double().mean())
    assert 0.5 < expected < 1
    assert entry(found, "block.conv1").underflow == pytest.approx(expected, abs=1e-3)
    kept = hidden.clamp(min=0)  # a zero that is zero in float32 too has not underflowed
    expected = float(((kept != 0) & (kept < 2.0**-14)).double().mean())
    assert entry(found, "block.relu").underflow == pytest.approx(expected, abs=1e-3)
    assert entry(found, "conv").underflow < 0.01


def test_a_margin_of_two_is_kept(sample: Float32Array, quiet: Case, tmp_path: Path) -> None:
    calm = entry(run_half(quiet.graph, quiet.model, sample), "block.conv1").largest
    beyond = case(net(2.0 ** np.ceil(np.log2(LIMIT / calm))), tmp_path, sample)
    found = run_half(beyond.graph, beyond.model, sample)
    near = entry(found, "block.conv1")
    assert near.finite  # half could still hold it on these images
    assert LIMIT < near.largest < 65504
    assert "block.conv1" in found.overflowing
    assert found.all_half.largest_difference is not None


def test_extremes_of_more_images_count_too(quiet: Case, sample: Float32Array) -> None:
    extremes = {"block.relu.out": (0.0, 50000.0), "fc.out": (-1.0, 1.0)}
    with pytest.raises(GraphRefused, match=r"^fc\.out: is no tensor"):
        run_half(quiet.graph, quiet.model, sample, extremes)
    del extremes["fc.out"]
    found = run_half(quiet.graph, quiet.model, sample, extremes)
    assert found.overflowing == ("block.relu",)
    assert found.wide == WIDE  # what a Relu writes, the conv before it wrote too
    assert entry(found, "block.relu").largest == 50000.0
    assert found.mixed is not None


def test_the_report_survives_json(report: HalfReport) -> None:
    text = canonical_json(encode(report))
    assert decode(HalfReport, json.loads(text), "report") == report


class Gelu(nn.Module):
    """Its ONNX form has several nodes, all of one path, of which one traced node is the source."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.GELU()
        self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x) * 1e5)
        out: Tensor = self.fc(torch.flatten(self.average(y * 1e-5), 1))
        return out


def test_an_operator_of_several_nodes_is_judged_as_one(sample: Float32Array, tmp_path: Path) -> None:
    torch.manual_seed(0)
    several = case(Gelu().eval(), tmp_path, sample)
    found = run_half(several.graph, several.model, sample)
    names = [node.name for node in onnx.load(several.model.path).graph.node]
    assert [node.name for node in found.nodes] == names
    act = [name for name in names if name.startswith("act")]
    assert len(act) > 1
    assert set(act) <= set(found.overflowing)
    assert found.mixed is not None
    assert found.mixed.largest_difference is not None
    written = write_half(several.model, tmp_path / "mixed.onnx", frozenset(found.wide))
    np.testing.assert_allclose(onnx_logits(written, sample), onnx_logits(several.model, sample), atol=2e-2)


class ReadAgain(nn.Module):
    """Writes a Relu over its operand and reads that again; one weight of the conv is beyond half."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.average, self.fc = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)
        with torch.no_grad():
            self.conv.weight[0, 0, 0, 0] = 70000.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x * 2.0**-10)
        z = torch.relu_(y)
        out: Tensor = self.fc(torch.flatten(self.average(y + z), 1))
        return out


def test_what_is_written_over_is_read_as_it_was_written(sample: Float32Array, tmp_path: Path) -> None:
    torch.manual_seed(0)
    again = case(ReadAgain().eval(), tmp_path, sample)
    found = run_half(again.graph, again.model, sample)
    assert (found.overflowing, found.wide) == (("conv",), ("conv",))
    assert found.mixed is not None
    assert found.mixed.largest_difference is not None
    assert found.mixed.largest_difference < 0.05 < entry(found, "relu").largest


class Shifted(nn.Module):
    """Writes over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(1.0)

    def forward(self, x: Tensor) -> Tensor:
        x -= 2.0
        out: Tensor = self.net(x)
        return out


def test_an_input_that_is_written_over_is_the_same_for_both(sample: Float32Array, tmp_path: Path) -> None:
    graph = trace(Shifted().eval(), SHAPE).graph
    model = write_onnx(graph, SHAPE, tmp_path / "fp32.onnx")
    before = sample.copy()
    found = run_half(graph, model, sample)
    assert entry(found, "sub").sqnr is not None
    assert found.all_half.largest_difference is not None
    assert found.all_half.largest_difference < 0.05
    assert (sample == before).all()


class Normalised(nn.Module):
    """A BatchNorm that nothing folds into, with a variance beyond half, on images that half can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.net = nn.BatchNorm2d(3), net(1.0)
        assert self.bn.running_var is not None
        self.bn.running_var.fill_(1e6)
        nn.init.constant_(self.bn.weight, 1000.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.bn(x))
        return out


def test_a_batchnorms_parameters_stay_float32_in_the_run(sample: Float32Array, tmp_path: Path) -> None:
    normalised = case(Normalised().eval(), tmp_path, sample)
    found = run_half(normalised.graph, normalised.model, sample)
    assert found.nodes[0].op_type == "BatchNormalization"
    assert found.nodes[0].sqnr is not None
    assert found.nodes[0].sqnr > 50


def between(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    ends = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle, *ends).eval()


def test_infinity_that_float32_has_too_is_no_fault(sample: Float32Array, tmp_path: Path) -> None:
    padded = case(between(nn.ConstantPad2d(1, -math.inf), nn.MaxPool2d(3)), tmp_path, sample)
    found = run_half(padded.graph, padded.model, sample)
    assert found.overflowing == ()
    assert found.wide == ("1",)  # its filling is no number that half holds
    assert entry(found, "1").finite
    assert entry(found, "1").largest == entry(found, "0").largest
    assert found.mixed is not None
    assert found.mixed.largest_difference is not None


def test_what_torch_has_no_half_form_of_is_rounded_at_both_ends(sample: Float32Array, tmp_path: Path) -> None:
    module = between(nn.LocalResponseNorm(3))
    with pytest.raises(NotImplementedError, match="Half"), torch.no_grad():
        copy.deepcopy(module).half()(torch.tensor(sample).half())
    normed = case(module, tmp_path, sample)
    found = run_half(normed.graph, normed.model, sample)
    assert found.wide == ()
    ratios = [node.sqnr for node in found.nodes if node.name.startswith("1.")]
    assert all(ratio is not None and 50 < ratio < 90 for ratio in ratios)


@pytest.mark.parametrize(
    "middle", [nn.GroupNorm(2, 8), nn.Softplus(), nn.Upsample(scale_factor=2)], ids=lambda m: type(m).__name__
)
def test_its_names_are_those_that_a_graph_is_written_by(
    middle: nn.Module, sample: Float32Array, tmp_path: Path
) -> None:
    quiet = case(between(middle), tmp_path, sample)
    (tensor,) = (n.output[0] for n in onnx.load(quiet.model.path).graph.node if n.name == "0")
    found = run_half(quiet.graph, quiet.model, sample, {tensor: (0.0, 1e5)})
    assert found.overflowing == ("0",)
    assert len(found.wide) > 1
    written = write_half(quiet.model, tmp_path / "mixed.onnx", frozenset(found.wide))
    np.testing.assert_allclose(onnx_logits(written, sample), onnx_logits(quiet.model, sample), atol=5e-3)


def test_a_graph_of_another_model_is_refused(quiet: Case, small_onnx: Artifact, sample: Float32Array) -> None:
    with pytest.raises(InputRefused, match=r"^bn: is in the ONNX graph and not in the traced one"):
        run_half(quiet.graph, small_onnx, sample)


def test_float32_that_overflows_is_refused(quiet: Case, sample: Float32Array) -> None:
    with pytest.raises(NotFinite, match=r"^conv: gives NaN or infinite numbers in float32"):
        run_half(quiet.graph, quiet.model, np.full_like(sample, np.inf))


# --- the graphs that are written from it ---------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(loud: Case, report: HalfReport, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_half(loud.model, tmp_path_factory.mktemp("mixed") / "m.onnx", frozenset(report.wide))


@pytest.fixture(scope="module")
def mixed_qdq(loud_qdq: Artifact, report: HalfReport, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_half(loud_qdq, tmp_path_factory.mktemp("mixed") / "q.onnx", frozenset(report.wide))


def types_of(model: Artifact) -> dict[str, int]:
    """Return the element type of every tensor, as strict inference finds it without the declared ones."""
    parsed = onnx.load(model.path)
    onnx.checker.check_model(parsed, full_check=True)
    declared = {value.name: value.type.tensor_type.elem_type for value in parsed.graph.value_info}
    del parsed.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(parsed, strict_mode=True).graph
    ends = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in ends}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert all(types[name] == kind for name, kind in declared.items())
    return types


def assert_each_node_has_one_precision(model: Artifact, wide: set[str]) -> None:
    types = types_of(model)
    for node in onnx.load(model.path).graph.node:
        floats = {types[name] for name in (*node.input, *node.output)} & {FLOAT, HALF}
        if node.op_type == "Cast":
            assert floats == {FLOAT, HALF}
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert floats == {FLOAT if node.name in wide else HALF}, node.name
        else:
            assert len(floats) == 1, node.name


def test_types_agree_at_every_node(mixed: Artifact, mixed_qdq: Artifact) -> None:
    for model in (mixed, mixed_qdq):
        assert model.meta["wide"] == sorted(WIDE)
        assert_each_node_has_one_precision(model, set(WIDE))


def casts(model: Artifact) -> list[tuple[str, str]]:
    return [(n.input[0], n.output[0]) for n in onnx.load(model.path).graph.node if n.op_type == "Cast"]


def test_there_is_a_cast_where_precision_changes_and_nowhere_else(
    mixed: Artifact, mixed_qdq: Artifact
) -> None:
    expected = [
        ("input", "input.half"),
        ("conv.out", "conv.out.float"),
        ("block.conv2.out", "block.conv2.out.half"),
        ("logits.half", "logits"),
    ]
    assert casts(mixed) == expected
    # The pair on the block's input serves a wide conv and a half addition, and becomes two.
    assert casts(mixed_qdq) == expected


def test_a_pair_is_float_for_a_wide_reader_and_half_for_another(mixed_qdq: Artifact) -> None:
    types = types_of(mixed_qdq)
    readers = {node.name: list(node.input) for node in onnx.load(mixed_qdq.path).graph.node}
    for conv, kind in (("conv", HALF), ("block.conv1", FLOAT), ("block.conv2", FLOAT), ("fc", HALF)):
        data, weight, bias = readers[conv]
        assert {types[data], types[weight], types[bias]} == {kind}
        scale = readers[weight.removesuffix(".float")][1]
        assert types[scale] == kind
    assert readers["conv.out.quantized.float"] == ["conv.out.float", "conv.out.scale", "conv.out.zero_point"]
    assert readers["conv.out.quantized"] == ["conv.out", "conv.out.scale.half", "conv.out.zero_point"]
    # A runtime fuses a pair with the node behind it: a Cast between them would be in its way.
    assert not any(".dequantized" in source for source, _ in casts(mixed_qdq))


def test_the_mixed_quantised_graph_keeps_the_schemes_rules(mixed_qdq: Artifact) -> None:
    check_qdq(mixed_qdq, "tensorrt")


def test_onnx_runtime_reads_the_mixed_graphs(
    loud: Case, mixed: Artifact, loud_qdq: Artifact, mixed_qdq: Artifact, sample: Float32Array
) -> None:
    expected = onnx_logits(loud.model, sample)
    np.testing.assert_allclose(onnx_logits(mixed, sample), expected, atol=0.05)
    quantised = onnx_logits(loud_qdq, sample)
    np.testing.assert_allclose(onnx_logits(mixed_qdq, sample), quantised, atol=0.1)
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("form", ["plain", "qdq"])
def test_tensorrt_rtx_builds_the_mixed_graphs(
    form: str,
    mixed: Artifact,
    mixed_qdq: Artifact,
    rtx_layers: Callable[[Artifact], list[tuple[str, list[str]]]],
) -> None:
    layers = rtx_layers(mixed if form == "plain" else mixed_qdq)
    convs = [inputs for kind, inputs in layers if kind == "correlation"]
    # What stays wide is still INT8 where it is quantised.
    assert convs == ([["Half"], ["Float"], ["Float"]] if form == "plain" else [["Int8"]] * 3)
