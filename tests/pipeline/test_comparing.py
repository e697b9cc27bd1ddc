"""Engines of the built-in model with one layer spoilt: which one is named, in both runtimes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from resedge import bundle as bundles
from resedge.artifacts import Artifact, Ranges, encode, load, sha256_file
from resedge.calibration.placement import place
from resedge.errors import RuntimeUnavailable, UsageError
from resedge.pipeline import extras
from resedge.pipeline.calibrating import RangesDocument
from resedge.pipeline.comparing import Comparison, Subject, compare, compare_engine, float_graph
from resedge.pipeline.reporting import Silent
from resedge.protocols import BuildOptions, RunOptions
from resedge.runtimes.table import runtime

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job

RUNTIMES = ("openvino", "onnxruntime")
SPOILT = 50


@pytest.fixture(scope="module")
def ranges(job: Job) -> Ranges:
    return load(RangesDocument, job.bundle / "calibration" / "ranges.json").schemes["cpu"].ranges


def compared(job: Job, name: str, graph: Artifact, folder: Path) -> Comparison:
    bundle = bundles.read(job.bundle)
    golden = load_file(bundle.file("golden/golden.safetensors").path)
    engine = runtime(name).build(graph, folder, BuildOptions("int8"))
    subject = Subject(engine, graph, float_graph(bundle, bundle.file("onnx/int8.cpu.onnx"), folder))
    images, eager = golden["input"][:16], golden["logits"][:16]
    return compare_engine(subject, images, eager, 20.0, RunOptions(1), Silent())


def placed(job: Job, ranges: Ranges, tensor: str, out: Path, kept: frozenset[str] = frozenset()) -> Artifact:
    """Write the Q/DQ graph with one tensor's scale much too small."""
    low, high = ranges.table[tensor]
    spoilt = replace(ranges, table={**ranges.table, tensor: (low / SPOILT, high / SPOILT)})
    bundle = bundles.read(job.bundle)
    model = float_graph(bundle, bundle.file("onnx/int8.cpu.onnx"), out.parent)
    return place(model, spoilt, "cpu", out, pair_safe=True, kept=kept)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_range_that_is_too_short_is_named_with_a_cure_that_helps(
    job: Job, ranges: Ranges, tmp_path: Path, name: str
) -> None:
    graph = placed(job, ranges, "layer.1.relu.out", tmp_path / "spoilt.onnx")
    found = compared(job, name, graph, tmp_path)
    bad = found.first_bad
    assert bad is not None
    assert bad is found.worst
    assert (bad.name, bad.cause) == ("layer.1.conv1 + layer.1.relu", "range")
    assert bad.cut_off is not None
    assert bad.cut_off > 0.1
    assert bad.keep == ("layer.1.conv2",)

    cured = placed(job, ranges, "layer.1.relu.out", tmp_path / "cured.onnx", frozenset(bad.keep))
    assert compared(job, name, cured, tmp_path).first_bad is None


@pytest.mark.parametrize(
    ("name", "layer"), [("openvino", "layer.1.conv2 + layer.1.add"), ("onnxruntime", "layer.1.conv2")]
)
def test_a_weight_that_is_too_small_is_named(job: Job, tmp_path: Path, name: str, layer: str) -> None:
    sound, out = bundles.read(job.bundle).file("onnx/int8.cpu.onnx"), tmp_path / "spoilt.onnx"
    spoilt = onnx.load(sound.path)
    for tensor in spoilt.graph.initializer:
        if tensor.name == "layer.1.conv2.weight.scale":
            numbers = numpy_helper.to_array(tensor) / np.float32(SPOILT)
            tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    onnx.save(spoilt, out)
    found = compared(job, name, replace(sound, path=out, sha256=sha256_file(out)), tmp_path)
    bad = found.first_bad
    assert bad is not None
    assert bad is found.worst
    assert (bad.name, bad.cause, bad.keep) == (layer, "layer", ("layer.1.conv2",))


@pytest.mark.parametrize("engine", ["openvino:int8", "openvino:fp16", "onnxruntime:int8", "onnxruntime:fp32"])
def test_a_sound_engine_is_seen_as_it_is(job: Job, engine: str) -> None:
    found = compare(job.bundle, engine, threads=1)
    assert found.first_bad is None
    assert found.changed == 0
    assert found.agreement == 1.0
    assert found.reference_sqnr > 100
    assert len(found.layers) >= 10
    assert encode(found)
    nodes = {node for layer in found.layers for node in layer.nodes}
    assert nodes == {
        *(f"layer.{i}.{part}" for i in range(3) for part in ("conv1", "relu", "conv2", "conv3", "add")),
        "linear",
    }
    if not engine.endswith("int8"):
        assert min(layer.sqnr or 0 for layer in found.layers) > 50
        assert not any(layer.keep for layer in found.layers)


def test_a_comparison_needs_no_torch(job: Job) -> None:
    script = f"""
import pathlib, sys
from resedge.pipeline.comparing import compare
compare(pathlib.Path({str(job.bundle)!r}), "onnxruntime:int8", threads=1)
print(sorted({{"torch", "onnxscript", "scipy", "rich", "click"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("engine", "error", "words"),
    [
        ("tensorrt:int8", RuntimeUnavailable, "on the device alone"),
        ("onnxruntime", UsageError, "names no precision"),
        ("openvnio:int8", UsageError, "Did you mean openvino"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    job: Job, engine: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        compare(job.bundle, engine)


def test_a_missing_library_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnx_ir" else name)
    with pytest.raises(RuntimeUnavailable, match=r"needs onnx_ir, not installed here.*resedge\[export\]"):
        compare(tmp_path / "none.resedge", "onnxruntime:int8")
