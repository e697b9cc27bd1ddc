"""What is here and what is built, on doubles of TensorRT, of CUDA and of a GPU, in each version."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resedge.artifacts import Artifact, Engine, sha256_bytes, sha256_file
from resedge.errors import BuildFailed, InputRefused, MachineFailure, RuntimeUnavailable, UsageError
from resedge.protocols import BuildOptions
from resedge.runtimes.table import runtime
from resedge.runtimes.tensorrt import TensorRT
from resedge.runtimes.trt_plans import read_record

RUNTIME = TensorRT()


# --- what is here --------------------------------------------------------------------------------


def test_missing_library_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailable) as caught:
        RUNTIME.probe()
    assert str(caught.value) == (
        "runtime 'tensorrt' is not installed. It comes with JetPack on a Jetson; elsewhere try: "
        "pip install 'resedge[tensorrt]'"
    )


def test_missing_cuda_python_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeUnavailable, match="'tensorrt' is installed, and cuda-python") as caught:
        RUNTIME.probe()
    assert "pip install cuda-python" in caught.value.cure


def test_probe_names_version_gpu_and_precisions(world: Any) -> None:  # noqa: ANN401
    probe = RUNTIME.probe()
    assert (probe.runtime, probe.version) == ("tensorrt", sys.modules["tensorrt"].__version__)
    assert probe.device == "Orin"
    assert probe.precisions == {
        "fp16": "FP16 weights, computed in FP16",
        "int8": "INT8 weights and activations, computed in INT8, FP16 between them",
    }
    world.gpu.fail["cudaSetDevice"] = "cudaErrorNoDevice"
    with pytest.raises(RuntimeUnavailable, match="CUDA gives no GPU"):
        RUNTIME.probe()


def test_runtime_of_the_table() -> None:
    assert isinstance(runtime("tensorrt"), TensorRT)


# --- building ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.usefixtures("world")
def test_engine_is_a_pure_plan_and_its_record(
    build: Callable[..., Engine], typed: Mapping[str, Artifact], tmp_path: Path, precision: str
) -> None:
    engine = build(precision, batch_range=(1, 2, 4))
    assert {path.name for path in tmp_path.iterdir()} == {
        f"tensorrt-{precision}{s}" for s in (".plan", ".json")
    }
    assert engine.artifact.read().startswith(b"ftrt")
    assert (engine.artifact.inputs, engine.artifact.outputs) == (
        typed[precision].inputs,
        typed[precision].outputs,
    )
    assert engine.artifact.parents == (typed[precision].sha256,)
    record = read_record(engine.companions[0].read(), "record")
    assert record.plan_sha256 == engine.artifact.sha256 == sha256_file(engine.artifact.path)
    assert (record.graph_sha256, record.batch_range) == (typed[precision].sha256, (1, 2, 4))
    assert (record.device.compute_capability, record.device.driver) == ("8.7", "CUDA 12.6")
    assert record.version == engine.version == sys.modules["tensorrt"].__version__
    assert record.warnings == ("a warning of the build",)
    assert record.layers.by_type == {precision: 2}
    assert (record.layers.reformats, record.layers.fell_back) == (1, ())


def test_convolutions_that_fell_back_are_named(world: Any, build: Callable[..., Engine]) -> None:  # noqa: ANN401
    world.wide = frozenset({"1.out.node"})
    record = read_record(build("int8").companions[0].read(), "record")
    assert record.layers.by_type == {"fp16": 1, "int8": 1}
    assert record.layers.fell_back == ("1.out.node",)


@pytest.mark.usefixtures("world")
def test_timing_cache_is_kept_by_device_and_recorded_by_digest(
    build: Callable[..., Engine], tmp_path: Path
) -> None:
    folder = tmp_path / "timing"
    folder.mkdir()
    first = read_record(build("fp16", timing_caches=folder).companions[0].read(), "record")
    (file,) = folder.iterdir()
    version = sys.modules["tensorrt"].__version__
    assert file.name == f"tensorrt-{version}-Orin-8.7-16-CUDA-12.6.timing"
    assert (first.timing_cache_read, first.timing_cache_kept) == (None, sha256_file(file))
    second = read_record(build("int8", timing_caches=folder).companions[0].read(), "record")
    assert (second.timing_cache_read, second.timing_cache_kept) == (
        first.timing_cache_kept,
        sha256_file(file),
    )
    file.write_bytes(b"damaged")
    third = read_record(build("int8", timing_caches=folder).companions[0].read(), "record")
    assert (third.timing_cache_read, third.timing_cache_kept) == (None, sha256_bytes(b"|tactics"))


def test_other_driver_has_another_cache(
    device: Callable[..., Any], build: Callable[..., Engine], tmp_path: Path
) -> None:
    (tmp_path / "timing").mkdir()
    for driver in (12060, 13020):
        device(driver=driver)
        build(timing_caches=tmp_path / "timing")
    assert len(list((tmp_path / "timing").iterdir())) == 2


@pytest.mark.usefixtures("world")
def test_refused_graph_is_told_by_node_and_module(typed: Mapping[str, Artifact], tmp_path: Path) -> None:
    graph = typed["int8.shifted"]
    with pytest.raises(BuildFailed) as caught:
        RUNTIME.build(graph, tmp_path, BuildOptions("int8"))
    assert caught.value.where == str(graph.path)
    assert "'1.in.q.node' of module 'layer.1.conv'" in caught.value.what
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_before_and_during_the_build(
    world: Any,  # noqa: ANN401
    build: Callable[..., Engine],
    tmp_path: Path,
) -> None:
    world.refuse["build_serialized_network"] = "Error Code 2: OutOfMemory (Requested size was 9 bytes.)"
    with pytest.raises(MachineFailure, match="tensorrt is out of memory") as caught:
        build()
    assert "--batch-range" in caught.value.cure
    world.gpu.free = 100 << 20
    world.flags = 0
    with pytest.raises(MachineFailure, match="100 MiB of memory are free"):
        build()
    assert world.flags == 0, "no network was made"
    assert list(tmp_path.iterdir()) == []


def test_small_board_is_recorded(device: Callable[..., Any], build: Callable[..., Engine]) -> None:
    device(total=8 << 30, free=3 << 30)
    record = read_record(build().companions[0].read(), "record")
    assert record.low_memory
    assert 0 < record.workspace_bytes < 3 << 29


@pytest.mark.usefixtures("world")
def test_dla_is_refused_with_where_it_exists(build: Callable[..., Engine]) -> None:
    with pytest.raises(RuntimeUnavailable, match="DLA") as caught:
        build("int8", dla=True)
    for fact in ("AGX Orin", "10.7", "11.4.1", "JetPack 7.2.2"):
        assert fact in caught.value.cure


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_range": (0, 1, 2)}, "batch range"),
        ({"batch_range": (1, 8, 4)}, "batch range"),
        ({"optimization_level": 6}, "optimisation level 6"),
        ({"optimization_level": -1}, "optimisation level -1"),
    ],
)
@pytest.mark.usefixtures("world")
def test_impossible_options(build: Callable[..., Engine], options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        build(**options)


def test_build_refuses_the_wrong_graph(typed: Mapping[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"'onnx/fp16'.*'onnx/int8\.tensorrt'"):
        RUNTIME.build(typed["fp16"], tmp_path, BuildOptions("int8"))
    with pytest.raises(RuntimeUnavailable, match="does not build fp32"):
        RUNTIME.build(typed["fp16"], tmp_path, BuildOptions("fp32"))


@pytest.mark.usefixtures("world")
def test_folder_that_is_not_there(typed: Mapping[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="cannot be written"):
        RUNTIME.build(typed["fp16"], tmp_path / "missing", BuildOptions("fp16"))
    options = BuildOptions("fp16", timing_caches=tmp_path / "missing")
    with pytest.raises(InputRefused, match="cannot be written"):
        RUNTIME.build(typed["fp16"], tmp_path, options)


def test_no_torch_and_no_onnx_are_needed(tmp_path: Path) -> None:
    """What a device imports: numpy, and resedge's own; TensorRT and CUDA when they are used."""
    code = (
        "import sys\n"
        "from resedge.runtimes.tensorrt import TensorRT\n"
        "import resedge.runtimes.trt_build, resedge.runtimes.trt_run\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'scipy', 'click', 'rich', 'safetensors',"
        " 'filelock', 'platformdirs', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
