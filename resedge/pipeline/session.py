"""An engine of a bundle for an application: frames in, classes out, without torch."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from resedge import bundle as bundles
from resedge import images
from resedge.artifacts import Engine
from resedge.bundle import Bundle
from resedge.engines import BUILT_ON_DEVICE, EngineName
from resedge.errors import UsageError
from resedge.pipeline.inspecting import SATURATES, saturates_here
from resedge.pipeline.local import engine_here
from resedge.pipeline.options import available_threads, select
from resedge.protocols import Float32Array, Int64Array, Runner, RunOptions


@dataclass(frozen=True)
class Predictions:
    """Logits (N, classes) float32, softmax probabilities alike, and the best class of each, (N,) int64."""

    logits: Float32Array
    probabilities: Float32Array
    classes: Int64Array
    labels: tuple[str, ...]


class Session:
    """An open engine; use it in a with-block, or `close` it."""

    def __init__(self, bundle: Bundle, run: Runner, stack: ExitStack) -> None:
        self.bundle = bundle
        self._run = run
        self._stack = stack

    def predict(self, frames: images.Frames) -> Predictions:
        """Classify frames of the model's size, (N, H, W, 3) uint8 RGB, or RGBA where it takes alpha.

        Raises:
            InputRefused: Another shape or dtype.
        """
        manifest = self.bundle.manifest
        images.demand_frames(frames, manifest.preprocessing)
        logits = self._run(images.as_input(frames, manifest.outside))
        names = manifest.labels
        best: Int64Array = logits.argmax(axis=1).astype(np.int64)
        return Predictions(logits, _softmax(logits), best, tuple(names[i] for i in best))

    def close(self) -> None:
        """Let go of the engine."""
        self._stack.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_session(path: Path, engine: str, *, threads: int | None = None) -> Session:
    """Open an engine of a bundle, such as "openvino:int8"; its files are checked by digest first.

    Raises:
        InputRefused: No bundle there, or a file of it has changed.
        UsageError: The bundle has no such engine.
        RuntimeUnavailable: The runtime is not installed.
    """
    from resedge.runtimes.table import runtime

    bundle = bundles.read(path)
    found = find_engine(bundle, parse_engine(engine))
    if saturates_here(bundle) and found.precision == "int8":
        warnings.warn(SATURATES, stacklevel=3)
    options = RunOptions(threads or available_threads())
    stack = ExitStack()
    run = stack.enter_context(runtime(found.runtime).open(found, options))
    return Session(bundle, run, stack)


def parse_engine(text: str) -> EngineName:
    """Return the runtime and the precision that "NAME:PRECISION" means.

    Raises:
        UsageError: It names no engine, or several.
    """
    chosen = select([text], []).engines
    if len(chosen) != 1:
        raise UsageError(f"{text!r} names no precision.", cure="Write NAME:PRECISION.")
    return chosen[0]


def find_engine(bundle: Bundle, name: EngineName) -> Engine:
    """Return an engine of a bundle, or the one that this machine has built from it.

    Raises:
        UsageError: The bundle has none of that name.
    """
    found = engine_here(bundle, name)
    if found is None:
        known = ", ".join(f"{e.runtime}:{e.precision}" for e in bundle.manifest.engines)
        cure = f"It has: {known or 'none'}."
        if name[0] in BUILT_ON_DEVICE:
            cure += " `resedge build` makes it on an NVIDIA device."
        raise UsageError(f"has no {':'.join(name)} engine.", where=str(bundle.path), cure=cure)
    return found


def _softmax(logits: Float32Array) -> Float32Array:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Float32Array = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
