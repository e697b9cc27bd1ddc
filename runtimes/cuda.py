"""CUDA from Python: the few calls that a plan needs, each one checked, and what the GPU is.

NVIDIA's cuda-python returns a code from every call; here a code other than success is a `CudaError` with the
code's own name. Its releases before 12.6 have the same functions in another module.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from resedge.errors import RuntimeUnavailable
from resedge.protocols import Array

_MODULES: Final = ("cuda.bindings.runtime", "cuda.cudart")
_CURE: Final = "Try: pip install cuda-python, in the version of this machine's CUDA (12.6 on JetPack 6)"
_DRIVER_FILE: Final = Path("/proc/driver/nvidia/version")
_BOARD_FILE: Final = Path("/proc/device-tree/model")
_MEMORY_FILE: Final = Path("/proc/meminfo")
_DRIVER_RELEASE: Final = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")
_AVAILABLE: Final = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)


class CudaError(RuntimeError):
    """A CUDA call failed; the message is the call, CUDA's name for the error, and CUDA's words."""


@dataclass(frozen=True)
class Device:
    """The first GPU, and what else decides whether a plan fits.

    `compute_capability` is such as "8.7", `driver` the driver's release and the CUDA that it offers,
    `platform` the operating system and processor, `integrated` whether CPU and GPU share one memory.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    driver: str
    platform: str
    integrated: bool
    memory_bytes: int


class Cuda:
    """The checked calls. All of them belong to the first GPU.

    Args:
        runtime: The module `cuda.bindings.runtime`, or one like it.
    """

    def __init__(self, runtime: Any) -> None:  # noqa: ANN401 - a module
        self._runtime = runtime

    def device(self) -> Device:
        """Describe the first GPU.

        Raises:
            CudaError: There is none, or no driver.
        """
        runtime = self._runtime
        self._checked(runtime.cudaSetDevice, 0)
        found = self._checked(runtime.cudaGetDeviceProperties, 0)
        offers = self._checked(runtime.cudaDriverGetVersion)
        release = _first(_DRIVER_RELEASE, _DRIVER_FILE)
        cuda = f"CUDA {offers // 1000}.{offers % 1000 // 10}"
        return Device(
            name=_board(found.name.decode()),
            compute_capability=f"{found.major}.{found.minor}",
            multiprocessors=int(found.multiProcessorCount),
            driver=f"{release}, {cuda}" if release else cuda,
            platform=f"{sys.platform}-{platform.machine()}",
            integrated=bool(found.integrated),
            memory_bytes=int(found.totalGlobalMem),
        )

    def free_bytes(self, device: Device) -> int:
        """Return how much memory a build can have.

        Where CPU and GPU share it, the system knows better than CUDA, which counts the file cache as used.
        """
        available = _first(_AVAILABLE, _MEMORY_FILE)
        if device.integrated and available:
            return int(available) * 1024
        free, _total = self._checked(self._runtime.cudaMemGetInfo)
        return int(free)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the GPU."""
        return int(self._checked(self._runtime.cudaMalloc, size))

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._checked(self._runtime.cudaFree, address)

    def allocate_pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:  # noqa: ANN401 - numpy's
        """Return an array in memory that the GPU copies from and to without a detour."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self._checked(self._runtime.cudaMallocHost, size))
        memory = (ctypes.c_uint8 * size).from_address(address)
        pinned: Array = np.frombuffer(memory, dtype).reshape(shape)
        return pinned

    def free_pinned(self, pinned: Array) -> None:
        """Give back what `allocate_pinned` gave; the array may not be looked at any more."""
        self._checked(self._runtime.cudaFreeHost, pinned.ctypes.data)

    def copy_to_device(self, address: int, source: Array, stream: Any) -> None:  # noqa: ANN401
        """Have pinned memory copied to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(self._runtime.cudaMemcpyAsync, address, source.ctypes.data, source.nbytes, kind, stream)

    def copy_to_host(self, target: Array, address: int, stream: Any) -> None:  # noqa: ANN401
        """Have the GPU's memory copied to pinned memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(self._runtime.cudaMemcpyAsync, target.ctypes.data, address, target.nbytes, kind, stream)

    def new_stream(self) -> Any:  # noqa: ANN401 - cudaStream_t
        """Return a stream that does not wait for the default one."""
        return self._checked(self._runtime.cudaStreamCreateWithFlags, self._runtime.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:  # noqa: ANN401
        """Let go of a stream."""
        self._checked(self._runtime.cudaStreamDestroy, stream)

    def wait(self, stream: Any) -> None:  # noqa: ANN401
        """Wait for all that the stream was given."""
        self._checked(self._runtime.cudaStreamSynchronize, stream)

    def new_event(self) -> Any:  # noqa: ANN401 - cudaEvent_t
        """Return an event that keeps a time."""
        return self._checked(self._runtime.cudaEventCreate)

    def destroy_event(self, event: Any) -> None:  # noqa: ANN401
        """Let go of an event."""
        self._checked(self._runtime.cudaEventDestroy, event)

    def record(self, event: Any, stream: Any) -> None:  # noqa: ANN401
        """Have the event keep the time at which the stream comes to it."""
        self._checked(self._runtime.cudaEventRecord, event, stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:  # noqa: ANN401
        """Return the milliseconds between two events that are past."""
        return float(self._checked(self._runtime.cudaEventElapsedTime, start, end))

    def capture(self, stream: Any, enqueue: Callable[[], None]) -> Any:  # noqa: ANN401
        """Return an executable graph of what `enqueue` gives to the stream, which is not run.

        Raises:
            CudaError: Something in it cannot be captured; the stream is usable all the same.
        """
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(runtime.cudaStreamBeginCapture, stream, mode)
        try:
            enqueue()
        except BaseException:
            runtime.cudaStreamEndCapture(stream)  # which fails too, and ends the capture
            raise
        graph = self._checked(runtime.cudaStreamEndCapture, stream)
        try:
            return self._checked(runtime.cudaGraphInstantiate, graph, 0)
        finally:
            self._checked(runtime.cudaGraphDestroy, graph)

    def launch(self, graph: Any, stream: Any) -> None:  # noqa: ANN401 - cudaGraphExec_t
        """Give a captured graph to the stream."""
        self._checked(self._runtime.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Any) -> None:  # noqa: ANN401
        """Let go of a captured graph."""
        self._checked(self._runtime.cudaGraphExecDestroy, graph)

    def _checked(self, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """Return what a call gives beside its code: nothing, one value, or a tuple of several.

        Raises:
            CudaError: The code is not success, or the library itself finds no driver.
        """
        try:
            code, *values = call(*arguments)
        except RuntimeError as error:  # cuda-python before 13 raises where libcuda is missing
            raise CudaError(f"{call.__name__}: {error}") from error
        if int(code):
            _, name = self._runtime.cudaGetErrorName(code)
            _, words = self._runtime.cudaGetErrorString(code)
            raise CudaError(f"{call.__name__}: {name.decode()}: {words.decode()}")
        return values[0] if len(values) == 1 else tuple(values)


def load_cuda(runtime: str) -> Cuda:
    """Return CUDA for the runtime of that name, which the error names.

    Raises:
        RuntimeUnavailable: cuda-python is not installed or cannot be loaded.
    """
    reasons = []
    for name in _MODULES:
        try:
            return Cuda(importlib.import_module(name))
        except ImportError as error:
            reasons.append(str(error))
    raise RuntimeUnavailable(
        f"runtime '{runtime}' is installed, and cuda-python, which runs its plans, is not ({reasons[0]}).",
        cure=_CURE,
    )


def find_device(cuda: Cuda, runtime: str) -> Device:
    """Return the GPU that the runtime of that name would use.

    Raises:
        RuntimeUnavailable: There is no driver or no GPU.
    """
    try:
        return cuda.device()
    except CudaError as error:
        raise RuntimeUnavailable(
            f"runtime '{runtime}' is installed, and CUDA gives no GPU ({error}).",
            cure="Run on a machine with an NVIDIA GPU and its driver; look at it with nvidia-smi, "
            "on a Jetson at its installation.",
        ) from error


def _board(gpu: str) -> str:
    """Return the GPU's name, on a board with its own: every Orin module calls its GPU "Orin"."""
    try:
        board = _BOARD_FILE.read_text(encoding="utf-8").strip("\0\n ")
    except OSError:  # not a board with a device tree
        return gpu
    return f"{gpu} ({board})"


def _first(pattern: re.Pattern[str], path: Path) -> str:
    """Return the first match's group in a file of the system, "" where there is neither."""
    try:
        found = pattern.search(path.read_text(encoding="utf-8"))
    except OSError:  # this system has no such file
        return ""
    return found[1] if found else ""
