"""A double of cuda-python's runtime module: one version's names, and streams that run when waited for.

What is enqueued runs in `cudaStreamSynchronize` and not before, so that a caller who does not wait reads old
memory. Addresses on the device are none of this process. `tests/runtimes/conftest.py` runs this file.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

DATA = Path(__file__).with_name("data")
VERSIONS = tuple(sorted(path.stem.removeprefix("cuda-") for path in DATA.glob("cuda-*.json")))
_DEVICE_MEMORY_AT = 0x7F00_0000_0000

Step = Callable[[], None]


@dataclass
class Stream:
    steps: list[Step] = field(default_factory=list)
    capturing: list[Step] | None = None

    def give(self, step: Step) -> None:
        (self.steps if self.capturing is None else self.capturing).append(step)


@dataclass
class Gpu:
    """One GPU. `fail` maps a function to the error that it returns; `live` has what is not given back."""

    name: str = "Orin"
    major: int = 8
    minor: int = 7
    multiprocessors: int = 16
    integrated: bool = True
    total: int = 32 << 30
    free: int = 16 << 30
    driver: int = 12060
    fail: dict[str, str] = field(default_factory=dict)
    live: dict[int, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    clock: float = 0.0
    device_memory: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=set)
    _next: int = _DEVICE_MEMORY_AT

    def new(self, thing: Any, size: int = 256) -> int:  # noqa: ANN401
        handle, self._next = self._next, self._next + max(size, 256)
        self.live[handle] = thing
        return handle

    def stream(self, handle: int) -> Stream:
        found = self.live[int(handle)]
        assert isinstance(found, Stream)
        return found

    def memory(self, address: int, size: int) -> Any:  # noqa: ANN401 - uint8 array
        """Return a view of the device's memory or of pinned memory."""
        held = self.live[address]
        assert size <= held.nbytes, "beyond what was allocated"
        return held[:size]


def cuda_module(version: str, gpu: Gpu) -> ModuleType:
    """Return the module as that version has it; a name that it lacks is an AttributeError."""
    snapshot = json.loads((DATA / f"cuda-{version}.json").read_text())
    errors = enum.Enum("cudaError_t", snapshot["errors"], type=_Code)  # type: ignore[misc]
    behaviour = _Functions(gpu, errors)
    module = ModuleType(snapshot["module"])
    for name in snapshot["names"]:
        if name in snapshot["members"]:
            members = snapshot["members"][name]
            value: Any = enum.Enum(name, members) if name != "cudaDeviceProp" else frozenset(members)
        else:
            value = _function(name, getattr(behaviour, name, None), gpu, errors)
        setattr(module, name, value)
    behaviour.properties = snapshot["members"]["cudaDeviceProp"]
    module.cudaStreamNonBlocking = 1  # type: ignore[attr-defined]
    return module


class _Code(int, enum.Enum):
    """What every call returns first."""


def _function(name: str, behave: Any, gpu: Gpu, errors: Any) -> Any:  # noqa: ANN401
    def call(*arguments: Any) -> Any:  # noqa: ANN401
        if behave is None:
            raise NotImplementedError(f"the double does not know what {name} does")
        if name not in ("cudaGetErrorName", "cudaGetErrorString"):
            gpu.calls.append(name)
            if name in gpu.fail:
                return (errors[gpu.fail[name]], None)
        result = behave(*arguments)
        return (errors["cudaSuccess"], *(() if result is None else result))

    call.__name__ = name
    return call


class _Functions:
    """What the functions do; each returns the values behind the code, as a tuple, or None."""

    def __init__(self, gpu: Gpu, errors: Any) -> None:  # noqa: ANN401
        self.gpu, self.errors = gpu, errors
        self.properties: list[str] = []

    def cudaSetDevice(self, device: int) -> None:
        assert device == 0

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: ANN401
        gpu = self.gpu
        found = {
            "name": gpu.name.encode(),
            "major": gpu.major,
            "minor": gpu.minor,
            "multiProcessorCount": gpu.multiprocessors,
            "integrated": int(gpu.integrated),
            "totalGlobalMem": gpu.total,
        }
        assert set(found) <= set(self.properties)
        return (SimpleNamespace(**found),)

    def cudaDriverGetVersion(self) -> Any:  # noqa: ANN401
        return (self.gpu.driver,)

    def cudaMemGetInfo(self) -> Any:  # noqa: ANN401
        return (self.gpu.free, self.gpu.total)

    def cudaGetErrorName(self, code: Any) -> Any:  # noqa: ANN401
        return (code.name.encode(),)

    def cudaGetErrorString(self, code: Any) -> Any:  # noqa: ANN401
        return (f"what CUDA says of {int(code)}".encode(),)

    def cudaMalloc(self, size: int) -> Any:  # noqa: ANN401
        address = self.gpu.new(np.full(size, 0xAA, np.uint8), size)
        self.gpu.device_memory.add(address)
        return (address,)

    def cudaFree(self, address: int) -> None:
        self.gpu.device_memory.remove(address)
        del self.gpu.live[address]

    def cudaMallocHost(self, size: int) -> Any:  # noqa: ANN401
        memory = np.full(size, 0xAA, np.uint8)
        self.gpu.live[memory.ctypes.data] = memory
        self.gpu.pinned.add(memory.ctypes.data)
        return (memory.ctypes.data,)

    def cudaFreeHost(self, address: int) -> None:
        self.gpu.pinned.remove(address)
        del self.gpu.live[address]

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: ANN401
        assert flags == 1
        return (self.gpu.new(Stream()),)

    def cudaStreamDestroy(self, stream: int) -> None:
        del self.gpu.live[stream]

    def cudaStreamSynchronize(self, handle: int) -> None:
        stream = self.gpu.stream(handle)
        assert stream.capturing is None
        steps, stream.steps = stream.steps, []
        for step in steps:
            step()

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> None:  # noqa: ANN401
        there = {"cudaMemcpyHostToDevice": target, "cudaMemcpyDeviceToHost": source}[kind.name]
        here = source if there == target else target
        assert there in self.gpu.device_memory, "no memory of the device"
        assert here in self.gpu.pinned, "memory that is not pinned, or not at its start"

        def copy() -> None:
            self.gpu.clock += 0.5
            self.gpu.memory(target, size)[:] = self.gpu.memory(source, size)

        self.gpu.stream(stream).give(copy)

    def cudaEventCreate(self) -> Any:  # noqa: ANN401
        return (self.gpu.new(SimpleNamespace(at=None)),)

    def cudaEventDestroy(self, event: int) -> None:
        del self.gpu.live[event]

    def cudaEventRecord(self, event: int, stream: int) -> None:
        def keep() -> None:
            self.gpu.live[event].at = self.gpu.clock

        self.gpu.stream(stream).give(keep)

    def cudaEventElapsedTime(self, start: int, end: int) -> Any:  # noqa: ANN401
        return (self.gpu.live[end].at - self.gpu.live[start].at,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:  # noqa: ANN401
        assert mode.name == "cudaStreamCaptureModeThreadLocal"
        assert not self.gpu.stream(stream).steps
        self.gpu.stream(stream).capturing = []

    def cudaStreamEndCapture(self, handle: int) -> Any:  # noqa: ANN401
        stream = self.gpu.stream(handle)
        steps, stream.capturing = stream.capturing, None
        return (self.gpu.new(steps),)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:  # noqa: ANN401
        assert flags == 0
        return (self.gpu.new(tuple(self.gpu.live[graph])),)

    def cudaGraphDestroy(self, graph: int) -> None:
        del self.gpu.live[graph]

    def cudaGraphLaunch(self, graph: int, stream: int) -> None:
        for step in self.gpu.live[graph]:
            self.gpu.stream(stream).give(step)

    def cudaGraphExecDestroy(self, graph: int) -> None:
        del self.gpu.live[graph]
