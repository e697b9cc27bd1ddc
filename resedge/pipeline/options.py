"""What a user asks for: the options of an export and of a bench, and the engines that they select."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from resedge.errors import UsageError
from resedge.protocols import PRECISIONS

EngineName = tuple[str, str]  # (runtime, precision)

# Every engine that an export makes or prepares, and the graph of the bundle that it is made from.
GRAPHS: dict[EngineName, str] = {
    ("openvino", "fp32"): "onnx/fp32.onnx",
    ("openvino", "fp16"): "onnx/fp32.onnx",
    ("openvino", "int8"): "onnx/int8.cpu.onnx",
    ("onnxruntime", "fp32"): "onnx/fp32.onnx",
    ("onnxruntime", "int8"): "onnx/int8.cpu.onnx",
    ("tensorrt", "fp16"): "onnx/fp16.onnx",
    ("tensorrt", "int8"): "onnx/int8.tensorrt.onnx",
}
RUNTIMES = tuple(dict.fromkeys(runtime for runtime, _ in GRAPHS))


def available_threads() -> int:
    """The logical processors that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Selection:
    """The engines that were asked for; `named` are the runtimes that the user named."""

    engines: tuple[EngineName, ...] = tuple(GRAPHS)
    named: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Measuring:
    """How engines are compared with eager."""

    max_drop: float = 0.005
    min_speedup: float = 1.0
    confidence: float = 0.95
    threads: int = field(default_factory=available_threads)
    seed: int = 0


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export; `batchnorm` None: split for the built-in weights, keep for others'."""

    model: str = "notebook"
    weights: Path | None = None
    batchnorm: Literal["keep", "split"] | None = None
    data: Path | None = None
    calibration_data: Path | None = None
    test_data: Path | None = None
    selection: Selection = Selection()
    measuring: Measuring = field(default_factory=Measuring)
    batch_range: tuple[int, int, int] = (1, 8, 32)
    out: Path | None = None


@dataclass(frozen=True)
class BenchOptions:
    """The options of a bench."""

    bundle: Path
    test_data: Path | None = None
    selection: Selection = Selection()
    measuring: Measuring = field(default_factory=Measuring)


def select(backends: Sequence[str], precisions: Sequence[str]) -> Selection:
    """Select engines from `NAME` or `NAME:PRECISION` texts and from precisions; empty means all.

    Raises:
        UsageError: An unknown name, or a precision that the backend does not have.
    """
    for precision in precisions:
        _known(precision, PRECISIONS, "precision")
    chosen: list[EngineName] = []
    for text in backends or RUNTIMES:
        runtime, _, precision = text.partition(":")
        _known(runtime, RUNTIMES, "backend")
        offered = [offer for name, offer in GRAPHS if name == runtime]
        if precision:
            _known(precision, PRECISIONS, "precision")
            if precision not in offered:
                raise UsageError(
                    f"{runtime} has no {precision} engine.", cure=f"It has: {', '.join(offered)}."
                )
            offered = [precision]
        chosen += [(runtime, p) for p in offered if not precisions or p in precisions]
    engines = tuple(engine for engine in GRAPHS if engine in chosen)
    if not engines:
        raise UsageError("no engine has that backend and that precision.")
    return Selection(engines, frozenset(text.partition(":")[0] for text in backends))


def _known(name: str, known: Sequence[str], kind: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown {kind} {name!r}.", cure=f"Known: {', '.join(known)}.{hint}")
