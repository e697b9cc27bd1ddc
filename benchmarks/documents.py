"""The document of a bench as typed values: what pages and comparisons read of it.

Keys that this version does not know are passed over, and those that older documents lack have their
defaults; what has another type than docs/verdict.md says is refused, with the key.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from resedge import artifacts
from resedge.artifacts import (
    BestEager,
    JsonValue,
    Latency,
    Outcome,
    Percentile,
    SelfCheck,
    Stability,
    decode,
    encode,
)
from resedge.benchmarks.report import SCHEMA
from resedge.errors import InputRefused

_DEFAULT_CONFIDENCE = 0.95  # of documents from before the budget stood in them: the option's default


@dataclass(frozen=True)
class Distribution(artifacts.Distribution):
    """How many calls fell between one edge and the next, milliseconds."""

    def __post_init__(self) -> None:
        """Refuse what is no histogram.

        Raises:
            InputRefused: The edges do not rise from above zero, do not fit the counts, or there are no calls.
        """
        rising = all(0 < low < high < math.inf for low, high in self.bins)
        fits = len(self.edges_ms) == len(self.counts) + 1
        if not (fits and rising and min(self.counts, default=-1) >= 0 and any(self.counts)):
            raise InputRefused("a distribution's edges and counts are no histogram.")

    @property
    def bins(self) -> tuple[tuple[float, float], ...]:
        """The edges of each bin."""
        return tuple(zip(self.edges_ms, self.edges_ms[1:], strict=False))

    def quantile(self, fraction: float) -> float:
        """Return the time below which a fraction of the calls lies, to within a bin."""
        wanted, below = fraction * sum(self.counts), 0
        for (low, high), count in zip(self.bins, self.counts, strict=True):
            if count and below + count >= wanted:
                return float(low * (high / low) ** ((wanted - below) / count))
            below += count
        return self.edges_ms[-1]


@dataclass(frozen=True)
class WorstClass:
    """The class that loses most; `class_` is its index, `drop_upper` is bounded for all classes at once."""

    class_: int
    images: int
    drop: float
    drop_upper: float


@dataclass(frozen=True)
class AccuracyReport:
    """An engine's accuracy, as in docs/verdict.md."""

    images: int
    agreement: float
    max_abs_logit_error: float
    top1: float | None = None
    top1_eager: float | None = None
    drop: float | None = None
    drop_upper: float | None = None
    negative_flips: int | None = None
    positive_flips: int | None = None
    top5: float | None = None
    top5_eager: float | None = None
    kl: float | None = None
    worst_class: WorstClass | None = None
    images_needed: int | None = None

    @property
    def flips(self) -> tuple[int, int] | None:
        """The negative and the positive flips; None without labels."""
        if self.negative_flips is None or self.positive_flips is None:
            return None
        return self.negative_flips, self.positive_flips

    def __post_init__(self) -> None:
        """Refuse counts that contradict one another.

        Raises:
            InputRefused: There are no images, or more flips than images.
        """
        flips = self.flips or (0, 0)
        if self.images < 1 or min(flips) < 0 or sum(flips) > self.images or not 0 <= self.agreement <= 1:
            raise InputRefused(f"{flips} flips of {self.images} images are impossible.")


@dataclass(frozen=True)
class LatencyReport(Latency):
    """An engine's latency, as in docs/verdict.md."""

    distribution: Distribution | None = None

    def __post_init__(self) -> None:
        """Refuse a speed-up that is no ratio.

        Raises:
            InputRefused: It or its interval is not finite, not above zero, or out of order.
        """
        if not 0 < self.speedup_low <= self.speedup <= self.speedup_high < math.inf:
            ends = f"{self.speedup_low} to {self.speedup_high}"
            raise InputRefused(f"a speed-up of {self.speedup} within {ends} is impossible.")
        if not all(map(math.isfinite, self.log_ratios)):
            raise InputRefused("log_ratios holds what is no finite number.")


@dataclass(frozen=True)
class EngineReport:
    """One engine of a document; `scenarios` are what was measured of it besides, by name."""

    runtime: str
    precision: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    accuracy: AccuracyReport | None = None
    latency: LatencyReport | None = None
    scenarios: Mapping[str, JsonValue] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What it is known by."""
        return self.runtime, self.precision


@dataclass(frozen=True)
class EagerReport:
    """Eager's own latency."""

    p50_ms: float
    p90_ms: Percentile | None = None
    p95_ms: Percentile | None = None
    p99_ms: Percentile | None = None
    p999_ms: Percentile | None = None
    distribution: Distribution | None = None
    best: BestEager | None = None


@dataclass(frozen=True)
class Budget:
    """What was asked of every engine."""

    max_drop: float
    min_speedup: float
    confidence: float


@dataclass(frozen=True)
class BenchDocument:
    """A whole document; `budget` is that of its conditions."""

    schema: int
    model: str
    reference: str
    conditions: Mapping[str, JsonValue]
    engines: tuple[EngineReport, ...]
    eager: EagerReport | None = None
    stability: Stability | None = None
    self_check: SelfCheck | None = None
    partial: bool = False
    budget: Budget | None = None

    @property
    def confidence(self) -> float:
        """That of every bound and interval."""
        return self.budget.confidence if self.budget else _DEFAULT_CONFIDENCE

    @property
    def measured(self) -> tuple[EngineReport, ...]:
        """The engines that could be measured."""
        return tuple(engine for engine in self.engines if engine.accuracy and engine.latency)


def read_document(data: object, where: str) -> BenchDocument:
    """Return a document's values.

    Args:
        data: The document, as `resedge.benchmarks.report.document` makes it or JSON has it.
        where: Named in errors, such as the file's path.

    Raises:
        InputRefused: It is of another schema, or a key is missing or of another type.
    """
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if schema != SCHEMA:
        raise InputRefused(
            f"has the schema {schema!r}, this resedge reads {SCHEMA}.",
            where=where,
            cure="Write it anew with `resedge bench --json`.",
        )
    try:
        return decode(BenchDocument, _known(BenchDocument, _with_budget(encode(data))), where)
    except InputRefused as error:
        raise InputRefused(error.what, where=error.where or where, cure=error.cure) from error


def _with_budget(data: JsonValue) -> object:
    conditions = data.get("conditions") if isinstance(data, Mapping) else None
    asked = conditions.get("budget") if isinstance(conditions, Mapping) else None
    return {**data, "budget": asked} if isinstance(data, Mapping) else data


def _known(kind: Any, data: object) -> object:  # noqa: ANN401 - the types of dataclass fields
    """Keep the keys that a type knows, with the defaults of those left out; `decode` judges the rest."""
    arguments = [argument for argument in get_args(kind) if argument is not type(None)]
    if get_origin(kind) in (Union, types.UnionType):
        return _known(arguments[0], data) if len(arguments) == 1 else data
    if get_origin(kind) is tuple and isinstance(data, list):
        return [_known(arguments[0], item) for item in data]
    if not dataclasses.is_dataclass(kind) or not isinstance(data, Mapping):
        return data
    hints = get_type_hints(kind)
    found: dict[str, object] = {}
    for entry in dataclasses.fields(kind):
        key = entry.name.removesuffix("_")  # "class" is a word of Python's
        if key in data:
            found[entry.name] = _known(hints[entry.name], data[key])
        elif entry.default is not dataclasses.MISSING:
            found[entry.name] = encode(entry.default)
    return found
