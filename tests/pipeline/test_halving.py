"""An export of the built-in model with one block's numbers beyond FP16, the function the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from safetensors.numpy import load_file, save_file

from resedge import bundle as bundles
from resedge import data
from resedge.artifacts import Artifact, load
from resedge.cli import main
from resedge.export.fold import fold
from resedge.export.halfrange import LIMIT
from resedge.export.halfreport import HalfReport, LogitsInHalf
from resedge.export.onnxfile import write_onnx
from resedge.export.trace import trace
from resedge.pipeline import halving
from resedge.pipeline.explaining import explain
from resedge.pipeline.exporting import export
from resedge.pipeline.options import ExportOptions, Measuring, select
from resedge.pipeline.reporting import Silent
from resedge.pipeline.staging import Site
from resedge.store import Store

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job

LOUDNESS = np.float32(2.0**15)
LOUD = {f"layer.2.{name}" for name in ("conv1", "relu", "conv2", "conv3", "add")}
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@dataclass(frozen=True)
class Loud:
    bundle: Path
    heard: Heard

    @property
    def report(self) -> HalfReport:
        return load(HalfReport, self.bundle / "onnx" / "half.json")

    def graph(self, name: str) -> Artifact:
        return bundles.read(self.bundle).file(f"onnx/{name}.onnx")


def loud_weights(path: Path) -> Path:
    """Make the last block louder, and what reads it quieter: the logits stay as they are."""
    tensors = load_file(data.NOTEBOOK_WEIGHTS)
    for name in ("layer.2.bn.weight", "layer.2.bn.bias"):
        tensors[name] *= LOUDNESS
    for name in ("layer.2.conv2.weight", "linear.weight"):
        tensors[name] /= LOUDNESS
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Loud:
    root, heard = tmp_path_factory.mktemp("loud"), Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESEDGE_HOME", str(root / "home"))
        options = ExportOptions(
            weights=loud_weights(root / "loud.safetensors"),
            data=data_folder,
            batchnorm="split",
            selection=select(["onnxruntime:fp32"], []),
            measuring=Measuring(max_drop=0.5, threads=1),
            out=root / "loud.resedge",
            thorough=False,
        )
        return Loud(export(options, heard).published.bundle.path, heard)


def logits_of(model: Artifact, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"input": images})[0]
    return logits


def test_the_function_is_that_of_the_quiet_model(loud: Loud, job: Job) -> None:
    ours, theirs = (load_file(b / "golden/golden.safetensors") for b in (loud.bundle, job.bundle))
    np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=1e-3, atol=1e-3)


def test_the_run_in_half_names_the_block(loud: Loud) -> None:
    report = loud.report
    assert set(report.overflowing) == LOUD | {"flatten"}
    assert set(report.wide) == LOUD | {"flatten", "linear"}
    assert report.images == halving.HALF_IMAGES
    assert report.all_half.largest_difference is None
    assert report.mixed is not None
    assert report.mixed.agreement == 1.0


@pytest.mark.parametrize("name", ["fp16", "int8.tensorrt"])
def test_the_block_stays_float32_in_both_graphs(loud: Loud, name: str) -> None:
    written = loud.graph(name)
    assert written.meta["wide"] == sorted(LOUD | {"flatten", "linear"})
    graph = onnx.shape_inference.infer_shapes(onnx.load(written.path), strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "Relu", "Add"):
            wide = node.name in LOUD | {"linear"}
            assert kinds[node.output[0]] == (FLOAT if wide else HALF), node.name


@pytest.mark.parametrize("name", ["fp16", "int8.tensorrt"])
def test_both_graphs_say_what_eager_says(loud: Loud, name: str) -> None:
    golden = load_file(loud.bundle / "golden" / "golden.safetensors")
    found = logits_of(loud.graph(name), golden["input"])
    assert np.isfinite(found).all()
    assert (found.argmax(axis=1) == golden["logits"].argmax(axis=1)).mean() > 0.95


@pytest.mark.parametrize(
    ("name", "quiet", "block"), [("fp16", "Half", "Float"), ("int8.tensorrt", "Int8", "Int8")]
)
def test_tensorrt_for_rtx_builds_them(
    loud: Loud,
    name: str,
    quiet: str,
    block: str,
    rtx_layers: Callable[[Artifact], list[tuple[str, list[str]]]],
) -> None:
    convs = [inputs[0] for kind, inputs in rtx_layers(loud.graph(name)) if kind == "correlation"]
    assert len(convs) > 6  # some it may fuse otherwise
    assert convs == [quiet] * (len(convs) - 3) + [block] * 3


def test_what_stays_float32_is_said_with_its_magnitude(loud: Loud) -> None:
    (said,) = (note for note in loud.heard.notes if "stay FP32 in the graphs for TensorRT" in note)
    assert said.startswith("7 of 17 nodes stay FP32")
    document = json.loads((loud.bundle / "calibration" / "ranges.json").read_text())
    largest = max(map(abs, document["extremes"]["layer.2.relu.out"]))
    assert largest > LIMIT
    assert f"layer.2.relu reaches {largest:,.0f}" in said
    assert not [text for text in loud.heard.warnings if "TensorRT" in text]


def test_explain_names_them_and_says_that_nothing_is_to_be_done(loud: Loud) -> None:
    done = CliRunner().invoke(main, ["explain", str(loud.bundle)])
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "beyond half of FP16's 65,504: layer.2.conv1 reaches" in text
    assert "linear reads or feeds such numbers" in text
    assert (
        "7 of 17 nodes stay FP32 in onnx/fp16.onnx and onnx/int8.tensorrt.onnx, nothing is to be done" in text
    )


def test_a_model_that_loses_nothing_has_one_line(job: Job) -> None:
    found = explain(job.bundle).half
    assert found is not None
    assert (found.wide, found.graphs) == ((), ("onnx/fp16.onnx", "onnx/int8.tensorrt.onnx"))
    lines = CliRunner().invoke(main, ["explain", str(job.bundle)]).stdout.splitlines()
    assert not [line for line in lines if line.startswith("beyond")]
    assert [line for line in lines if line.startswith("FP16: nothing overflows")]


def test_a_bundle_from_before_still_opens(job: Job, tmp_path: Path) -> None:
    old = tmp_path / "old.resedge"
    shutil.copytree(job.bundle, old)
    (old / "onnx" / "half.json").unlink()
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != "onnx/half.json"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert explain(old).half is None
    done = CliRunner().invoke(main, ["explain", str(old)])
    assert done.exit_code == 0, done.output
    assert "FP16" not in done.stdout


def test_numbers_that_even_float32_nodes_do_not_save_give_no_graphs(loud: Loud, tmp_path: Path) -> None:
    heard = Heard()
    site = Site(Store(tmp_path / "cache"), "machine", 1, heard)
    broken = dataclasses.replace(loud.report, mixed=LogitsInHalf(0.0, None))
    fp32 = loud.graph("fp32")
    assert halving.half_graphs(site, fp32, fp32, broken, ()) == ()
    assert heard.warnings == [
        "no graphs for TensorRT: FP16 gives infinity or NaN on 8 images, even with 7 of 17 nodes in FP32"
    ]


@pytest.mark.parametrize(
    ("work", "expected"), [(10**9, 8), (2 * (8 * 3 * 9 * 64 + 40), 2), (1, 1)], ids=["small", "two", "large"]
)
def test_a_large_network_is_tried_on_fewer_images(
    work: int, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )
    images = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    graph = fold(trace(net, (3, 8, 8)), images).graph
    monkeypatch.setattr(halving, "HALF_WORK", work)
    model = write_onnx(graph, (3, 8, 8), tmp_path / "fp32.onnx")
    assert halving.try_in_half(graph, model, images).images == expected
