"""The checked calls against a double of cuda-python, in each version that there is a snapshot of."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resedge.errors import RuntimeUnavailable
from resedge.runtimes import cuda as room
from resedge.runtimes.cuda import Cuda, CudaError, find_device, load_cuda

VERSIONS = ("12.2.1", "12.6.2", "13.5.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_device(device: Callable[..., Any], version: str) -> None:
    device(cuda_version=version, name="NVIDIA H100", major=9, minor=0, integrated=False, driver=13020)
    found = find_device(load_cuda("tensorrt"), "tensorrt")
    assert (found.name, found.compute_capability, found.driver) == ("NVIDIA H100", "9.0", "CUDA 13.2")
    assert (found.integrated, found.multiprocessors, found.memory_bytes) == (False, 16, 32 << 30)
    assert found.platform.startswith("linux-")


def test_board_and_driver_are_in_the_devices_name(
    device: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device()
    (tmp_path / "model").write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release"
    )
    monkeypatch.setattr(room, "_BOARD_FILE", tmp_path / "model")
    monkeypatch.setattr(room, "_DRIVER_FILE", tmp_path / "version")
    found = load_cuda("tensorrt").device()
    assert found.name == "Orin (NVIDIA Jetson AGX Orin Developer Kit)"
    assert found.driver == "540.4.0, CUDA 12.6"


def test_shared_memory_is_what_the_system_can_give(
    device: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 7800000 kB\nMemFree: 100 kB\nMemAvailable:  5000000 kB\n")
    for integrated, expected in ((True, 5_000_000 * 1024), (False, 123)):
        device(integrated=integrated, free=123)
        monkeypatch.setattr(room, "_MEMORY_FILE", tmp_path / "meminfo")
        cuda = load_cuda("tensorrt")
        assert cuda.free_bytes(cuda.device()) == expected


def test_every_error_has_its_name(device: Callable[..., Any]) -> None:
    world = device()
    cuda = load_cuda("tensorrt")
    world.gpu.fail["cudaMalloc"] = "cudaErrorMemoryAllocation"
    with pytest.raises(CudaError, match=r"^cudaMalloc: cudaErrorMemoryAllocation: what CUDA says of 2$"):
        cuda.allocate(16)


@pytest.mark.parametrize("error", ["cudaErrorNoDevice", "cudaErrorInsufficientDriver"])
def test_no_gpu(device: Callable[..., Any], error: str) -> None:
    world = device()
    world.gpu.fail["cudaSetDevice"] = error
    with pytest.raises(
        RuntimeUnavailable, match=rf"'tensorrt' is installed, and CUDA gives no GPU .*{error}"
    ) as caught:
        find_device(load_cuda("tensorrt"), "tensorrt")
    assert "nvidia-smi" in caught.value.cure


def test_no_driver_as_older_releases_say_it() -> None:
    def cudaSetDevice(_device: int) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    cuda = Cuda(SimpleNamespace(cudaSetDevice=cudaSetDevice))
    with pytest.raises(RuntimeUnavailable, match=r"gives no GPU \(cudaSetDevice: Failed to dlopen libcuda"):
        find_device(cuda, "tensorrt")


def test_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(RuntimeUnavailable) as caught:
        load_cuda("tensorrt")
    assert "No module named 'cuda.bindings.runtime'" in caught.value.what
    assert "pip install cuda-python" in caught.value.cure


def test_pinned_memory_is_an_array(device: Callable[..., Any]) -> None:
    world = device()
    cuda = load_cuda("tensorrt")
    pinned = cuda.allocate_pinned((2, 3), "float32")
    pinned[:] = 7
    assert (pinned.shape, str(pinned.dtype)) == ((2, 3), "float32")
    np.testing.assert_array_equal(world.gpu.live[pinned.ctypes.data].view(np.float32), 7)
    cuda.free_pinned(pinned)
    assert not world.gpu.live


def test_capture_that_fails_is_ended(device: Callable[..., Any]) -> None:
    world = device()
    cuda = load_cuda("tensorrt")
    stream = cuda.new_stream()

    def enqueue() -> None:
        raise CudaError("cudaMemcpyAsync: cudaErrorStreamCaptureUnsupported: no")

    with pytest.raises(CudaError, match="Unsupported"):
        cuda.capture(stream, enqueue)
    assert world.gpu.stream(stream).capturing is None
    world.gpu.fail["cudaGraphInstantiate"] = "cudaErrorInvalidValue"
    live = set(world.gpu.live)
    with pytest.raises(CudaError, match="cudaGraphInstantiate: cudaErrorInvalidValue"):
        cuda.capture(stream, lambda: None)
    assert "cudaGraphDestroy" in world.gpu.calls
    assert stream in live
