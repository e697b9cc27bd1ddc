from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resedge.artifacts import Artifact
from resedge.errors import BuildFailed, RuntimeUnavailable
from resedge.protocols import BuildOptions, RunOptions
from resedge.runtimes.table import runtime

pytest.importorskip("onnxruntime")
RUNTIME = runtime("onnxruntime")


def test_engine_is_the_model(fp32: Artifact, tmp_path: Path) -> None:
    engine = RUNTIME.build(fp32, tmp_path, BuildOptions("fp32"))
    assert engine.artifact == fp32
    assert engine.companions == ()


def test_fp16_is_refused_with_the_reason(fp32: Artifact, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="computes an FP16 graph in FP32"):
        RUNTIME.build(fp32, tmp_path, BuildOptions("fp16"))


def test_failure_in_a_call_is_told_with_its_reason(fives: Artifact, tmp_path: Path) -> None:
    engine = RUNTIME.build(fives, tmp_path, BuildOptions("fp32"))
    with RUNTIME.open(engine, RunOptions(1)) as run:
        with pytest.raises(BuildFailed, match=r"fives\.onnx: onnxruntime could not run it: .*Add"):
            run(np.zeros((2, 3, 8, 8), np.float32))
        assert run(np.zeros((5, 3, 8, 8), np.float32)).shape == (5, 192)
        with pytest.raises(ValueError, match="'input' expects"):
            run(np.zeros((5, 3, 8, 9), np.float32))


def test_file_that_is_no_model_is_refused(junk: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"junk\.onnx: onnxruntime refuses it: .*INVALID_PROTOBUF"):
        RUNTIME.build(junk, tmp_path, BuildOptions("fp32"))


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailable) as caught:
        RUNTIME.probe()
    assert str(caught.value) == (
        "runtime 'onnxruntime' is not installed. Try: pip install 'resedge[onnxruntime]'"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of the process in /proc")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_are_honoured(fp32: Artifact, tmp_path: Path, threads: int) -> None:
    engine = RUNTIME.build(fp32, tmp_path, BuildOptions("fp32"))
    before = _threads()
    with RUNTIME.open(engine, RunOptions(threads)):
        assert _threads() - before == threads - 1


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_nothing_is_reported_to_its_maker(fp32: Artifact, tmp_path: Path) -> None:
    """Where it reports, it keeps an identifier of the machine in the home folder."""
    code = (
        "import pathlib\n"
        "from resedge.artifacts import Artifact\n"
        "from resedge.protocols import BuildOptions\n"
        "from resedge.runtimes.table import runtime\n"
        f"model = Artifact(pathlib.Path({str(fp32.path)!r}), {fp32.sha256!r}, 'onnx/fp32')\n"
        "runtime('onnxruntime').build(model, pathlib.Path(), BuildOptions('fp32'))\n"
    )
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH")}
    subprocess.run([sys.executable, "-c", code], env={**kept, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []
