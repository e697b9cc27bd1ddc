from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resedge.artifacts import Artifact, sha256_file
from resedge.errors import BuildFailed, InputRefused, MachineFailure, RuntimeUnavailable
from resedge.protocols import BuildOptions, RunOptions
from resedge.runtimes import openvino as room
from resedge.runtimes.table import runtime

RUNTIME = runtime("openvino")
BUILD_IN_ANOTHER_PROCESS = """
import pathlib, sys
from resedge.artifacts import Artifact, TensorSpec
from resedge.protocols import BuildOptions
from resedge.runtimes.table import runtime

path, digest, out, times = sys.argv[1:]
model = Artifact(pathlib.Path(path), digest, "onnx/fp32")
for _ in range(int(times)):
    engine = runtime("openvino").build(model, pathlib.Path(out), BuildOptions("fp16"))
print(engine.artifact.sha256, engine.companions[0].sha256)
"""


@pytest.fixture(scope="module")
def library() -> Any:  # noqa: ANN401 - openvino
    try:
        return room._library()
    except RuntimeUnavailable as unavailable:
        pytest.skip(str(unavailable))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("library")
def test_compiled_as_asked(fp32: Artifact, tmp_path: Path, precision: str, threads: int) -> None:
    engine = RUNTIME.build(fp32, tmp_path, BuildOptions(precision))
    compiled = room._compiled(room._library(), engine, RunOptions(threads, batch=2))
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert list(compiled.input().shape) == [2, 3, 8, 8]


@pytest.mark.usefixtures("library")
def test_fp16_is_fp32_arithmetic_on_rounded_weights(fp32: Artifact, tmp_path: Path) -> None:
    images = np.random.default_rng(2).normal(size=(4, 3, 8, 8)).astype(np.float32)
    rounded = _with_rounded_weights(fp32, tmp_path / "rounded.onnx")
    logits = {}
    for name, model, precision in (
        ("fp16", fp32, "fp16"),
        ("fp32", fp32, "fp32"),
        ("rounded", rounded, "fp32"),
    ):
        engine = RUNTIME.build(model, tmp_path, BuildOptions(precision))
        with RUNTIME.open(engine, RunOptions(1)) as run:
            logits[name] = run(images)
    np.testing.assert_allclose(logits["fp16"], logits["rounded"], rtol=0, atol=5e-6)
    assert np.abs(logits["fp16"] - logits["fp32"]).max() > 5e-5


def _with_rounded_weights(model: Artifact, path: Path) -> Artifact:
    graph = onnx.load(model.path)
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), weight.name))
    onnx.save(graph, path)
    return replace(model, path=path, sha256=sha256_file(path))


@pytest.mark.usefixtures("library")
def test_fp16_stores_half_the_bytes(fp32: Artifact, tmp_path: Path) -> None:
    weights = 4 * (6 * 3 * 3 * 3 + 6)
    sizes = {}
    for precision in ("fp32", "fp16"):
        (companion,) = RUNTIME.build(fp32, tmp_path, BuildOptions(precision)).companions
        sizes[precision] = companion.path.stat().st_size
    assert sizes["fp32"] >= weights
    assert sizes["fp32"] - sizes["fp16"] == weights // 2


@pytest.mark.usefixtures("library")
def test_same_bytes_in_other_processes_whatever_they_did_before(fp32: Artifact, tmp_path: Path) -> None:
    digests = []
    for times in ("1", "3"):
        out = tmp_path / f"folder{times}"
        out.mkdir()
        arguments = [str(fp32.path), fp32.sha256, str(out), times]
        command = [sys.executable, "-c", BUILD_IN_ANOTHER_PROCESS, *arguments]
        digests.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert digests[0] == digests[1]
    here = RUNTIME.build(fp32, tmp_path, BuildOptions("fp16"))
    assert [here.artifact.sha256, here.companions[0].sha256] == digests[0]
    text = here.artifact.path.read_text()
    assert str(tmp_path) not in text
    assert str(fp32.path.parent) not in text


@pytest.mark.usefixtures("library")
def test_engine_knows_its_model(fp32: Artifact, tmp_path: Path) -> None:
    engine = RUNTIME.build(fp32, tmp_path, BuildOptions("fp32"))
    assert engine.artifact.parents == (fp32.sha256,)
    assert engine.artifact.path == tmp_path / "openvino-fp32.xml"
    assert [companion.path for companion in engine.companions] == [tmp_path / "openvino-fp32.bin"]


class Failing:
    """An infer request that fails in its second call.

    OpenVINO's own failures are no test: with one thread it goes on after some of them.
    """

    def __init__(self, request: Any) -> None:  # noqa: ANN401 - openvino
        self.request = request
        self.calls = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.request, name)

    def infer(self) -> None:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("Exception from src/inference:\n  [CPU] node failed")
        self.request.infer()


@pytest.mark.usefixtures("library")
def test_failure_in_a_call_is_told_with_its_reason(
    fp32: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = RUNTIME.build(fp32, tmp_path, BuildOptions("fp32"))
    compiled = room._compiled(room._library(), engine, RunOptions(1))
    request = Failing(compiled.create_infer_request())
    monkeypatch.setattr(room, "_compiled", lambda *_: SimpleNamespace(create_infer_request=lambda: request))
    images = np.ones((2, 3, 8, 8), np.float32)
    with RUNTIME.open(engine, RunOptions(1)) as run:
        before = run(images)
        with pytest.raises(
            BuildFailed, match=r"openvino-fp32\.xml: openvino could not run it: .* node failed"
        ):
            run(images)
        np.testing.assert_array_equal(run(images), before)
        with pytest.raises(ValueError, match="'input' expects"):
            run(images[:, :1])


@pytest.mark.usefixtures("library")
def test_file_that_is_no_model_is_refused(junk: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"junk\.onnx: openvino refuses it"):
        RUNTIME.build(junk, tmp_path, BuildOptions("fp32"))


@pytest.mark.parametrize("place", ["missing", "a file"])
@pytest.mark.usefixtures("library")
def test_folder_that_cannot_be_written_to(fp32: Artifact, tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(InputRefused, match="cannot be written"):
        RUNTIME.build(fp32, tmp_path / place, BuildOptions("fp32"))
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


@pytest.mark.usefixtures("library")
def test_full_disk_leaves_nothing(fp32: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_half(_graph: object, path: str, **_options: object) -> None:
        Path(path).write_text("<net")
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(room._library(), "save_model", save_half)
    with pytest.raises(MachineFailure, match=r"openvino-fp32\.xml: cannot be written \(basic_ios"):
        RUNTIME.build(fp32, tmp_path, BuildOptions("fp32"))
    assert list(tmp_path.iterdir()) == []


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeUnavailable) as caught:
        RUNTIME.probe()
    assert str(caught.value) == "runtime 'openvino' is not installed. Try: pip install 'resedge[openvino]'"


@pytest.mark.usefixtures("library")
def test_nothing_is_reported_to_its_maker(tmp_path: Path) -> None:
    """Where it reports, it keeps an identifier of the machine in the home folder."""
    code = (
        "import sys\n"
        "from resedge.runtimes.table import runtime\n"
        "runtime('openvino').probe()\n"
        "assert 'openvino.tools.ovc.telemetry_stub' in sys.modules\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
    )
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH")}
    subprocess.run([sys.executable, "-c", code], env={**kept, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []
