from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resedge.artifacts import Artifact, Engine, TensorSpec
from resedge.errors import BuildFailed, RuntimeUnavailable, UsageError
from resedge.protocols import BuildOptions, RunOptions
from resedge.runtimes.table import runtime
from resedge.runtimes.tensorrt import gpu_name, trtexec_commands

RUNTIME = runtime("tensorrt")
INPUT = TensorSpec("input", ("batch", 3, 28, 28), "float32")
FP16 = Artifact(Path("/somewhere/fp16.onnx"), "0" * 64, "onnx/fp16", (INPUT,))
INT8 = Artifact(Path("/somewhere/int8.tensorrt.onnx"), "0" * 64, "onnx/int8.tensorrt", (INPUT,))


@dataclass
class Driver:
    """Answers as libcuda does: a code for each call, and one GPU where the codes are 0."""

    codes: dict[str, int] = field(default_factory=dict)

    def cuInit(self, _flags: int) -> int:
        return self.codes.get("cuInit", 0)

    def cuDeviceGet(self, _device: Any, index: int) -> int:  # noqa: ANN401
        assert index == 0
        return self.codes.get("cuDeviceGet", 0)

    def cuDeviceGetName(self, name: Any, length: int, _device: Any) -> int:  # noqa: ANN401
        assert length == ctypes.sizeof(name)
        name.value = b"Orin"
        return 0


def with_driver(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": driver}[name])


def test_missing_library_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailable) as caught:
        RUNTIME.probe()
    assert str(caught.value) == (
        "runtime 'tensorrt' is not installed. It comes with JetPack on a Jetson; elsewhere try: "
        "pip install 'resedge[tensorrt]'"
    )


def test_probe_names_version_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    with_driver(monkeypatch, Driver())
    probe = RUNTIME.probe()
    assert (probe.version, probe.device, probe.precisions) == ("10.3.0", "Orin", {})


@pytest.mark.parametrize("step", ["cuInit", "cuDeviceGet"])
def test_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    with_driver(monkeypatch, Driver({step: 100}))
    with pytest.raises(RuntimeUnavailable, match=rf"gives no GPU \({step}: error 100\)"):
        gpu_name()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(RuntimeUnavailable, match=r"no CUDA driver \(libcuda\.so\.1: cannot open"):
        gpu_name()


def test_trtexec_lines_for_fp16() -> None:
    shapes = "--minShapes=input:1x3x28x28 --optShapes=input:4x3x28x28 --maxShapes=input:16x3x28x28"
    common = f"trtexec --onnx=onnx/fp16.onnx {shapes} --saveEngine=../tensorrt-fp16.plan --skipInference"
    assert trtexec_commands(FP16, (1, 4, 16)) == {
        "TensorRT 10": f"{common} --stronglyTyped",
        "TensorRT 11": common,
    }


def test_trtexec_lines_for_int8_ask_for_no_precision() -> None:
    for line in trtexec_commands(INT8, (1, 1, 1)).values():
        assert "--onnx=onnx/int8.tensorrt.onnx " in line
        assert "--saveEngine=../tensorrt-int8.plan" in line
        assert "--int8" not in line
        assert "--fp16" not in line


@pytest.mark.parametrize("batch_range", [(0, 1, 2), (2, 1, 3), (1, 8, 4)])
def test_batch_range_is_ascending(batch_range: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="batch range"):
        trtexec_commands(FP16, batch_range)


def test_trtexec_of_another_graph_is_refused() -> None:
    other = Artifact(Path("int8.cpu.onnx"), "0" * 64, "onnx/int8.cpu", (INPUT,))
    with pytest.raises(BuildFailed, match=r"'onnx/int8\.cpu'.*onnx/fp16 or onnx/int8\.tensorrt"):
        trtexec_commands(other, (1, 8, 32))


@pytest.mark.parametrize(("model", "precision"), [(FP16, "fp16"), (INT8, "int8")])
def test_build_refuses_with_the_commands(model: Artifact, precision: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        RUNTIME.build(model, tmp_path, BuildOptions(precision))
    assert not isinstance(caught.value, BuildFailed)
    assert "is built on the device that runs it" in caught.value.what
    for command in trtexec_commands(model, (1, 8, 32)).values():
        assert command in caught.value.cure
    assert "beside the bundle" in caught.value.cure
    assert list(tmp_path.iterdir()) == []


def test_build_refuses_the_wrong_graph(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"'onnx/fp16'.*'onnx/int8\.tensorrt'"):
        RUNTIME.build(FP16, tmp_path, BuildOptions("int8"))
    with pytest.raises(RuntimeUnavailable, match="does not build fp32"):
        RUNTIME.build(FP16, tmp_path, BuildOptions("fp32"))


def test_open_refuses() -> None:
    plan = Artifact(Path("my plan.plan"), "0" * 64, "tensorrt/plan", (INPUT,))
    with pytest.raises(RuntimeUnavailable, match=r"trtexec --loadEngine='my plan\.plan'"):
        RUNTIME.open(Engine(plan, "tensorrt", "10.3.0", "Orin", "fp16"), RunOptions(1))
