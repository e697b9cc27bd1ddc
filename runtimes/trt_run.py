"""A plan at work: one context, one stream, pinned memory, and times taken apart.

Everything has its place before the first call: the buffers are as large as the largest batch of the plan's
profile needs. A call copies in, enqueues, copies out, waits, and gives the caller memory of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from resedge.artifacts import TensorSpec
from resedge.protocols import Array, Float32Array
from resedge.runtimes.cuda import Cuda
from resedge.runtimes.trt_log import Heard, TensorRTError, listening, logger

SEMANTICS: Final = (
    "one call at a time, array in to array out: copy to pinned memory, host to device, GPU, device to host, "
    "copy to the caller. trtexec of TensorRT 10 counts both transfers in its latency; trtexec of TensorRT 11 "
    "leaves them out and launches a CUDA graph unless told otherwise, so only the GPU's time compares with it"
)


@dataclass(frozen=True)
class Times:
    """One call in milliseconds: three spans on the GPU's own clock, and the whole on the host's."""

    host_to_device_ms: float
    gpu_ms: float
    device_to_host_ms: float
    end_to_end_ms: float


@dataclass(frozen=True)
class TimedCalls:
    """The times of calls one after the other, and what they are times of."""

    calls: tuple[Times, ...]
    batch: int
    cuda_graph: bool
    semantics: str = SEMANTICS

    @property
    def median(self) -> Times:
        """The median of each span by itself; they need not add up."""
        return Times(*(statistics.median(span) for span in zip(*map(astuple, self.calls), strict=True)))


def load_engine(trt: Any, plan: bytes) -> tuple[Any, Any]:  # noqa: ANN401
    """Return the engine of a plan, and the TensorRT runtime that must outlive it.

    Host code in a plan stays off, which is the default, and is said all the same.

    Raises:
        TensorRTError: TensorRT refuses it.
    """
    with listening(trt) as heard:
        runtime = trt.Runtime(logger(trt))
        runtime.engine_host_code_allowed = False
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None or heard.errors:
            raise heard.failure("Runtime.deserialize_cuda_engine")
        return engine, runtime


@contextmanager
def loaded(
    trt: Any,  # noqa: ANN401
    cuda: Cuda,
    plan: bytes,
    border: tuple[TensorSpec, TensorSpec],
    *,
    cuda_graph: bool,
) -> Iterator[Execution]:
    """Load a plan for as long as the block lasts.

    Args:
        trt: The module tensorrt or tensorrt_rtx.
        cuda: The checked calls of CUDA.
        plan: The serialised engine.
        border: The input and the output that it must have.
        cuda_graph: Launch the kernels of a batch size together, from its second call on.

    Raises:
        TensorRTError: TensorRT refuses the plan, or its border is another one.
        CudaError: There is no memory for it.
    """
    engine, runtime = load_engine(trt, plan)
    _check_border(trt, engine, *border)
    with listening(trt) as heard, ExitStack() as stack:
        context = engine.create_execution_context()
        if context is None:
            raise heard.failure("ICudaEngine.create_execution_context")
        yield Execution(cuda, context, border, heard, stack, cuda_graph=cuda_graph)
    del engine, runtime  # which must be there for as long as the context


class Execution:
    """A loaded plan; its memory is what the profile's largest batch needs, and is the stack's to free."""

    def __init__(
        self,
        cuda: Cuda,
        context: Any,  # noqa: ANN401
        border: tuple[TensorSpec, TensorSpec],
        heard: Heard,
        stack: ExitStack,
        *,
        cuda_graph: bool,
    ) -> None:
        self._cuda, self._context, self._heard = cuda, context, heard
        self._input, self._output = border
        self._graph_wanted, self._graph, self._batch = cuda_graph, None, 0
        low, _, high = map(tuple, context.engine.get_tensor_profile_shape(self._input.name, 0))
        self.batches = range(low[0], high[0] + 1)
        self._set_shape(self.batches[-1])
        shapes = (high, self._output_shape(self.batches[-1]))
        stack.callback(self._drop_graph)
        self._stream = cuda.new_stream()
        stack.callback(cuda.destroy_stream, self._stream)
        self._host = [self._pinned(stack, s, t.dtype) for s, t in zip(shapes, border, strict=True)]
        self._device = [self._allocated(stack, array.nbytes) for array in self._host]
        for spec, address in zip(border, self._device, strict=True):
            if not context.set_tensor_address(spec.name, address):
                raise heard.failure("IExecutionContext.set_tensor_address")
        self._events = [cuda.new_event() for _ in range(4)]
        for event in self._events:
            stack.callback(cuda.destroy_event, event)

    def run(self, batch: Array) -> Float32Array:
        """Return the output of a batch, in memory that belongs to the caller.

        Raises:
            ValueError: The batch size is outside the plan's profile.
            TensorRTError, CudaError: It failed.
        """
        self._prepare(len(batch))
        given, result = (array[: len(batch)] for array in self._host)
        np.copyto(given, batch)
        self._cuda.copy_to_device(self._device[0], given, self._stream)
        self._compute()
        self._cuda.copy_to_host(result, self._device[1], self._stream)
        self._cuda.wait(self._stream)
        logits: Float32Array = result.copy()
        return logits

    def time(self, batch: Array) -> Times:
        """Do what `run` does, and return how long each part took.

        Raises:
            ValueError, TensorRTError, CudaError: As `run`.
        """
        self._prepare(len(batch))
        cuda, stream, events = self._cuda, self._stream, self._events
        given, result = (array[: len(batch)] for array in self._host)
        started = time.perf_counter()
        np.copyto(given, batch)
        cuda.record(events[0], stream)
        cuda.copy_to_device(self._device[0], given, stream)
        cuda.record(events[1], stream)
        self._compute()
        cuda.record(events[2], stream)
        cuda.copy_to_host(result, self._device[1], stream)
        cuda.record(events[3], stream)
        cuda.wait(stream)
        result.copy()
        end_to_end = (time.perf_counter() - started) * 1e3
        to_device, gpu, to_host = (cuda.elapsed_ms(start, end) for start, end in pairwise(events))
        return Times(to_device, gpu, to_host, end_to_end)

    def _prepare(self, size: int) -> None:
        """Bring the context to a batch size; the graph of another one is of no use."""
        if size == self._batch:
            return
        if size not in self.batches:
            raise ValueError(
                f"the plan takes {self.batches[0]} to {self.batches[-1]} images at once, and {size} were "
                "given: build it with another --batch-range"
            )
        self._batch = 0  # until all of the following is done
        self._drop_graph()
        self._set_shape(size)
        if self._graph_wanted:
            # A change of shape takes effect in the first enqueue after it, which no graph may record.
            self._enqueue()
            self._cuda.wait(self._stream)
            self._graph = self._cuda.capture(self._stream, self._enqueue)
        self._batch = size

    def _compute(self) -> None:
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph, self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._heard.failure("IExecutionContext.execute_async_v3")

    def _set_shape(self, size: int) -> None:
        if not self._context.set_input_shape(self._input.name, (size, *self._input.shape[1:])):
            raise self._heard.failure("IExecutionContext.set_input_shape")
        if self._context.infer_shapes():
            raise self._heard.failure("IExecutionContext.infer_shapes")

    def _output_shape(self, size: int) -> tuple[int, ...]:
        """Return the output's shape at the batch size that is set; the profile knows inputs alone."""
        shape = tuple(self._context.get_tensor_shape(self._output.name))
        if shape != (size, *self._output.shape[1:]):
            raise TensorRTError(
                f"the plan gives '{self._output.name}' the shape {shape}, and its record {self._output.shape}"
            )
        return shape

    def _pinned(self, stack: ExitStack, shape: tuple[int, ...], dtype: str) -> Array:
        array = self._cuda.allocate_pinned(shape, dtype)
        stack.callback(self._cuda.free_pinned, array)
        return array

    def _allocated(self, stack: ExitStack, size: int) -> int:
        address = self._cuda.allocate(size)
        stack.callback(self._cuda.free, address)
        return address

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._cuda.destroy_graph(graph)


def _check_border(trt: Any, engine: Any, given: TensorSpec, result: TensorSpec) -> None:  # noqa: ANN401
    """Refuse a plan whose tensors are not those that its record names."""
    found = set()
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        way = "in" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "out"
        found.add((name, way, str(np.dtype(trt.nptype(engine.get_tensor_dtype(name))))))
    if found != {(given.name, "in", given.dtype), (result.name, "out", result.dtype)}:
        text = ", ".join(f"{way} '{name}' {dtype}" for name, way, dtype in sorted(found))
        raise TensorRTError(f"the plan has other tensors than its record: {text}")
