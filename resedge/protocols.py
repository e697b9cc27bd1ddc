"""What a runtime is: four methods that every one of them truly has.

A runtime lives in one file of `runtimes/` and one line of its table. What it cannot do it refuses with the
reason; it never puts another precision, device or shape in the place of what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Artifact, Engine

Array = npt.NDArray[np.generic]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Probe:
    """What a runtime is on this machine.

    `precisions` maps a precision that it builds to what is stored and computed here, in words
    (such as "FP16 weights, computed in FP32").
    """

    runtime: str
    version: str
    device: str
    precisions: dict[str, str]


class Progress(Protocol):
    """Where a long step reports how far it is; `total` and steps are in images or rounds."""

    def start(self, label: str, total: int) -> None:
        """Begin a step of `total` units."""

    def advance(self, units: int) -> None:
        """Say that `units` more are done."""

    def finish(self) -> None:
        """End the step."""


class NoProgress:
    """Reports to nobody."""

    def start(self, label: str, total: int) -> None:
        """Do nothing."""

    def advance(self, units: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build: `precision` is one of `PRECISIONS` and must be one that the runtime's probe names.

    The rest is for runtimes that optimise for a GPU; an engine for a CPU runs at any batch size and has
    nothing to tune at build time. `batch_range` is the smallest, the usual and the largest batch size,
    `optimization_level` TensorRT's own from 0 to 5 (None: its default, or less where memory is short),
    `timing_caches` an existing folder for what tactics were measured to cost (None: none is kept), `dla`
    asks for the deep learning accelerator in place of the GPU.
    """

    precision: str
    batch_range: tuple[int, int, int] = (1, 8, 32)
    optimization_level: int | None = None
    timing_caches: Path | None = None
    dla: bool = False
    progress: Progress = field(default_factory=NoProgress)


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    `threads` bounds the compute threads of a CPU; `batch` fixes the batch size, which some runtimes need
    to be at their best (None: any batch size, decided call by call); `cuda_graph` has a GPU's kernels
    launched together.
    """

    threads: int
    batch: int | None = None
    cuda_graph: bool = False


class Runner(Protocol):
    """An engine that is loaded and warm; valid inside its with-block only."""

    def __call__(self, batch: Array) -> Float32Array:
        """Run the engine and wait for it.

        Args:
            batch: The engine's input, such as (N, 3, 28, 28) float32, C-contiguous or not.

        Returns:
            The logits, (N, classes) float32, in memory that belongs to the caller.

        Raises:
            ValueError: The shape or the dtype is not the engine's.
            BuildFailed: The library failed in the call.
        """


class Runtime(Protocol):
    """A library that builds and runs engines."""

    name: str

    def probe(self) -> Probe:
        """Say what is here.

        Raises:
            RuntimeUnavailable: It is not installed or has no device; the cure is in the message.
        """

    def build(self, model: Artifact, out: Path, options: BuildOptions) -> Engine:
        """Write an engine made from `model` into the existing folder `out`.

        The files are named after the runtime and the precision, and their bytes depend on nothing but
        the model, the options and the library's version; on a GPU, where a build chooses by measuring,
        on those measurements too.

        Raises:
            RuntimeUnavailable: The library, or the precision in it, is not there.
            BuildFailed: The library refused the model.
        """

    def open(self, engine: Engine, options: RunOptions) -> AbstractContextManager[Runner]:
        """Load an engine, its digests checked on the very bytes that are loaded.

        Raises:
            StaleArtifact: A file is not the one that was built.
            RuntimeUnavailable: The library, or the device that the engine was built for, is not there.
            BuildFailed: The library refused the engine.
        """


class Watched(Protocol):
    """An engine that is loaded with some of its tensors in sight; valid inside its with-block only."""

    def __call__(self, batch: Array) -> tuple[Float32Array, Mapping[str, Array]]:
        """Run the engine and wait for it.

        Args:
            batch: As a `Runner` takes it.

        Returns:
            The logits, (N, classes) float32, and each watched tensor by its name, (N, ...) in the type that
            it has in the engine; all in memory that belongs to the caller.

        Raises:
            ValueError: The shape or the dtype is not the engine's.
            BuildFailed: The library failed in the call.
        """


@runtime_checkable
class Watchable(Runtime, Protocol):
    """A runtime that lets one look inside its engines."""

    def watch(
        self, engine: Engine, tensors: Sequence[str], options: RunOptions
    ) -> AbstractContextManager[Watched]:
        """Load an engine as `open` does, with tensors of its graph given out beside the logits.

        What is given out has to exist, so the library may fuse less than it does without, and compute
        otherwise; see `resedge.runtimes.watching`.

        Args:
            engine: As it was built.
            tensors: Names of the graph that the engine was built from, the logits not among them.
            options: How to run.

        Raises:
            StaleArtifact: A file is not the one that was built.
            RuntimeUnavailable: The library is not there.
            BuildFailed: The library refused the engine, or the engine has no such tensor.
        """


Json = dict[str, Any]
