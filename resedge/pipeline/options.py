"""What a user asks for: the options of an export and of a bench, and the engines that they select."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from resedge.artifacts import Channels, InputType
from resedge.engines import GRAPHS, EngineName
from resedge.errors import UsageError
from resedge.protocols import PRECISIONS

# Nobody means these who names no backend: they serve on GPUs of desktops.
ONLY_IF_NAMED = ("tensorrt_rtx",)
UNNAMED = tuple(engine for engine in GRAPHS if engine[0] not in ONLY_IF_NAMED)
RUNTIMES = tuple(dict.fromkeys(runtime for runtime, _ in GRAPHS))


def available_threads() -> int:
    """The logical processors that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Selection:
    """The engines that were asked for; `named` are the runtimes that the user named."""

    engines: tuple[EngineName, ...] = UNNAMED
    named: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Measuring:
    """How engines are compared with eager."""

    max_drop: float = 0.005
    min_speedup: float = 1.0
    confidence: float = 0.95
    threads: int = field(default_factory=available_threads)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no measurement could answer, before any work is done.

        Raises:
            UsageError: The option is named.
        """
        for option, value, low, high in (
            ("--max-drop", self.max_drop, 0.0, 0.999),
            ("--min-speedup", self.min_speedup, 1e-3, 1e4),
            ("--confidence", self.confidence, 0.501, 0.9999),
            ("--threads", self.threads, 1, 1024),
        ):
            if not low <= value <= high:
                raise UsageError(
                    f"{value:g} is not possible.", where=option, cure=f"From {low:g} to {high:g}."
                )


@dataclass(frozen=True)
class ImageOptions:
    """What a user says of a model's images; None: what its record, or its library's, says.

    `input_shape` is (channels, height, width). `mean` and `std` are a number for all channels or one for
    each, in the model's order; with `value_range` 255 they are of values 0 to 255, else of 0 to 1. `resize`
    is the pixels of the shorter side that an image is scaled to before the middle is cut out.
    """

    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    channels: Channels | None = None
    value_range: Literal[1, 255] | None = None


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export.

    `model` is what `resedge.export.names.parse` reads; what a path among it names is run.
    `batchnorm` None: split for the built-in weights, keep for others'. `keep` and `thorough` are those of
    `resedge.pipeline.calibrating.Tuning`. `input` is what graphs and engines take: images that are prepared,
    or frames as a camera gives them.
    """

    model: str = "notebook"
    weights: Path | None = None
    images: ImageOptions = ImageOptions()
    batchnorm: Literal["keep", "split"] | None = None
    data: Path | None = None
    calibration_data: Path | None = None
    test_data: Path | None = None
    selection: Selection = Selection()
    measuring: Measuring = field(default_factory=Measuring)
    batch_range: tuple[int, int, int] = (1, 8, 32)
    out: Path | None = None
    keep: tuple[str, ...] = ()
    thorough: bool | None = None
    input: InputType = "float32"


@dataclass(frozen=True)
class BuildingOptions:
    """The options of a build of engines for this machine."""

    bundle: Path
    selection: Selection
    batch_range: tuple[int, int, int] = (1, 8, 32)
    optimization_level: int | None = None
    dla: bool = False


SCENARIOS = ("end-to-end", "single-stream", "offline", "camera", "cold-start")


@dataclass(frozen=True)
class Scenarios:
    """Which of `SCENARIOS` are measured besides, for how many seconds each; a camera's frames a second.

    Raises:
        UsageError: A name is unknown, or a number is impossible.
    """

    names: tuple[str, ...] = ()
    seconds: float = 10.0
    rate: float = 30.0

    def __post_init__(self) -> None:
        for name in self.names:
            _known(name, SCENARIOS, "scenario")
        for option, value, high in (
            ("--seconds", self.seconds, 86_400),
            ("--camera-rate", self.rate, 10_000),
        ):
            if not 0 < value <= high:
                raise UsageError(
                    f"{value:g} is not possible.", where=option, cure=f"Above 0, up to {high:g}."
                )


@dataclass(frozen=True)
class BenchOptions:
    """The options of a bench.

    `rounds` are shared between that many fresh `processes`. `self_check` also compares eager with itself.
    `compare` is the document of an earlier one, `scenarios` what is measured besides. `model` names the code
    again that a bundle's eager model is made by; nothing of a bundle alone has it run.

    Raises:
        UsageError: There are too few rounds.
    """

    bundle: Path
    test_data: Path | None = None
    selection: Selection = Selection()
    measuring: Measuring = field(default_factory=Measuring)
    rounds: int = 20
    processes: int = 5
    self_check: bool = False
    compare: Path | None = None
    scenarios: Scenarios = Scenarios()
    model: str | None = None

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise UsageError(f"{self.rounds} is too few.", where="--rounds", cure="From 2 up.")
        if not 1 <= self.processes <= self.rounds:
            raise UsageError(
                f"{self.processes} processes cannot share {self.rounds} rounds.",
                where="--processes",
                cure="From 1 to one a round.",
            )


def select(backends: Sequence[str], precisions: Sequence[str]) -> Selection:
    """Select engines from `NAME` or `NAME:PRECISION` texts and from precisions; empty means `UNNAMED`.

    Raises:
        UsageError: An unknown name, or a precision that the backend does not have.
    """
    for precision in precisions:
        _known(precision, PRECISIONS, "precision")
    chosen: set[EngineName] = set()
    for text in backends:
        found = {engine for engine in _offered(text) if not precisions or engine[1] in precisions}
        if not found:
            raise UsageError(f"{text} has no engine of precision {', '.join(precisions)}.", where="--backend")
        chosen |= found
    if not backends:
        chosen = {engine for engine in UNNAMED if not precisions or engine[1] in precisions}
    engines = tuple(engine for engine in GRAPHS if engine in chosen)
    return Selection(engines, frozenset(text.partition(":")[0] for text in backends))


def _offered(text: str) -> list[EngineName]:
    """Return the engines that `NAME` or `NAME:PRECISION` stands for."""
    runtime, colon, precision = text.partition(":")
    _known(runtime, RUNTIMES, "backend")
    offered = [engine for engine in GRAPHS if engine[0] == runtime]
    if not colon:
        return offered
    _known(precision, PRECISIONS, "precision")
    if (runtime, precision) not in offered:
        has = ", ".join(p for _, p in offered)
        raise UsageError(f"{runtime} has no {precision} engine.", cure=f"It has: {has}.")
    return [(runtime, precision)]


def _known(name: str, known: Sequence[str], kind: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown {kind} {name!r}.", cure=f"Known: {', '.join(known)}.{hint}")
