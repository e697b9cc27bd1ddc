"""Two documents of a bench: what changed from one to the other, with intervals.

Speeds are compared as ratios to eager, so that the pace of the machine cancels. Each run gives an estimate
and an interval of its own; those of the difference follow from them by the MOVER (Zou and Donner 2008,
Statistics in Medicine 27:1693-1702), which needs neither equal spread nor symmetry. The intervals hold for
all engines together (Bonferroni), or a gate over many engines would close by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from resedge.artifacts import JsonValue, Outcome, Relation
from resedge.benchmarks.bounds import drop_lower, drop_upper
from resedge.benchmarks.distributions import binomial_upper, normal_quantile
from resedge.benchmarks.documents import AccuracyReport, BenchDocument, EngineReport, LatencyReport
from resedge.benchmarks.formats import engine_name
from resedge.benchmarks.latency import ratio_interval, relation
from resedge.errors import InputRefused

CONFIDENCE: Final = 0.95  # of all intervals of one kind together, two-sided
_WORST_FIRST: Final = (130, 4, 1, 3, 0)
_MACHINE: Final = ("cpu", "cpus_available", "isa", "governor", "kernel", "jetson")

Direction = Literal["worse", "better", "not shown to differ"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its ends."""

    estimate: float
    low: float
    high: float

    def minus(self, other: Interval) -> Interval:
        """Return the interval of the difference of two independent estimates (MOVER)."""
        estimate = self.estimate - other.estimate
        below = math.hypot(self.estimate - self.low, other.high - other.estimate)
        above = math.hypot(self.high - self.estimate, other.estimate - other.low)
        return Interval(estimate, estimate - below, estimate + above)


@dataclass(frozen=True)
class LatencyChange:
    """An engine's speed-up over eager now, divided by that before; above 1 it became faster.

    `basis`: whether the interval is from both runs' rounds, or from the intervals that they state.
    """

    ratio: float
    low: float
    high: float
    relation: Relation
    basis: Literal["rounds", "intervals"]
    speedup_before: float
    speedup_now: float


@dataclass(frozen=True)
class AccuracyChange:
    """How much more an engine loses against eager than before, a fraction; above 0 it became worse.

    `measure` "top-1": the drop's change; "agreement", without labels in both: that of the predictions that
    differ from eager's. `agreement` is the change of the agreement in either case.
    """

    measure: Literal["top-1", "agreement"]
    loss: float
    low: float
    high: float
    direction: Direction
    agreement: float


@dataclass(frozen=True)
class EngineChange:
    """One engine in both documents; None where it was not measured in both."""

    runtime: str
    precision: str
    outcome_before: Outcome
    outcome_now: Outcome
    latency: LatencyChange | None
    accuracy: AccuracyChange | None


@dataclass(frozen=True)
class Changes:
    """What changed.

    `same_images` is None where a document does not say which test images it rests on. `warnings` are
    sentences on what else differs, and so may be the cause.
    """

    confidence: float
    engines: tuple[EngineChange, ...]
    only_before: tuple[str, ...]
    only_now: tuple[str, ...]
    same_images: bool | None
    warnings: tuple[str, ...]


def check_comparable(before: BenchDocument, model: str, reference: str, where: str) -> None:
    """Refuse a document of another model.

    Args:
        before: The older document.
        model: The name of the model that is measured now.
        reference: What its engines are compared with.
        where: Names the older document in the error.

    Raises:
        InputRefused: It is of another model, or of another eager.
    """
    for what, then, now in (("model", before.model, model), ("reference", before.reference, reference)):
        if then != now:
            raise InputRefused(
                f"is of the {what} {then!r}, what is measured now is {now!r}.",
                where=where,
                cure="Compare with a document of the same model.",
            )


def compare_documents(before: BenchDocument, now: BenchDocument) -> Changes:
    """Return what changed from one document to the other, of the same model.

    Raises:
        InputRefused: They are of different models.
    """
    check_comparable(before, now.model, now.reference, "the older document")
    old, new = ({engine.key: engine for engine in document.engines} for document in (before, now))
    both = [key for key in new if key in old]
    confidence = 1 - (1 - CONFIDENCE) / max(sum(_measured(old[key], new[key]) for key in both), 1)
    settled = all(document.stability is None or document.stability.stable for document in (before, now))
    engines = tuple(
        EngineChange(
            *key,
            old[key].outcome,
            new[key].outcome,
            _latency_change(old[key].latency, new[key].latency, before, now, confidence, settled=settled),
            _accuracy_change(old[key].accuracy, new[key].accuracy, confidence),
        )
        for key in both
    )
    return Changes(
        CONFIDENCE,
        engines,
        only_before=tuple(engine_name(*key) for key in old if key not in new),
        only_now=tuple(engine_name(*key) for key in new if key not in old),
        same_images=_same_images(before, now),
        warnings=tuple(_warnings(before, now)),
    )


def exit_code(changes: Changes) -> int:
    """Return 1 if an engine became slower or less accurate, 3 if that is open or nothing compares, else 0."""
    slower = any(engine.latency and engine.latency.relation == "slower" for engine in changes.engines)
    worse = any(engine.accuracy and engine.accuracy.direction == "worse" for engine in changes.engines)
    if slower or worse:
        return 1
    compared = [engine for engine in changes.engines if engine.latency]
    undecided = any(engine.latency and engine.latency.relation == "inconclusive" for engine in compared)
    gone = any(
        engine.outcome_now == "unavailable" and engine.outcome_before != "unavailable"
        for engine in changes.engines
    )
    return 3 if undecided or gone or not compared else 0


def joined(*codes: int) -> int:
    """Return the one exit code of several findings: the first of 130, 4, 1, 3, 0 that is among them."""
    return min(codes, key=_WORST_FIRST.index)


def _measured(before: EngineReport, now: EngineReport) -> bool:
    return None not in (before.latency, now.latency)


def _latency_change(
    before: LatencyReport | None,
    now: LatencyReport | None,
    document_before: BenchDocument,
    document_now: BenchDocument,
    confidence: float,
    *,
    settled: bool,
) -> LatencyChange | None:
    if before is None or now is None:
        return None
    intervals = [
        _log_speedup(report, document.confidence, confidence)
        for report, document in ((now, document_now), (before, document_before))
    ]
    found = intervals[0].minus(intervals[1])
    ratio, low, high = (math.exp(value) for value in (found.estimate, found.low, found.high))
    rounds = min(len(before.log_ratios), len(now.log_ratios)) > 1
    return LatencyChange(
        ratio,
        low,
        high,
        relation(1 / high, 1 / low) if settled else "inconclusive",
        "rounds" if rounds else "intervals",
        before.speedup,
        now.speedup,
    )


def _log_speedup(latency: LatencyReport, stated: float, wanted: float) -> Interval:
    """The logarithm of the speed-up: from the rounds, else the stated interval at the wanted confidence."""
    if len(latency.log_ratios) > 1:
        found = ratio_interval(np.array(latency.log_ratios, np.float64), wanted)
        return Interval(*map(math.log, found))
    middle = math.log(latency.speedup)
    wider = normal_quantile((1 + wanted) / 2) / normal_quantile((1 + stated) / 2)
    below, above = (math.log(end) - middle for end in (latency.speedup_low, latency.speedup_high))
    return Interval(middle, middle + wider * below, middle + wider * above)


def _accuracy_change(
    before: AccuracyReport | None, now: AccuracyReport | None, confidence: float
) -> AccuracyChange | None:
    if before is None or now is None:
        return None
    measure, losses = _losses(before, now, (1 + confidence) / 2)
    found = losses[1].minus(losses[0])
    direction: Direction = "worse" if found.low > 0 else "better" if found.high < 0 else "not shown to differ"
    return AccuracyChange(
        measure,
        found.estimate,
        found.low,
        found.high,
        direction,
        now.agreement - before.agreement,
    )


def _losses(
    before: AccuracyReport, now: AccuracyReport, one_sided: float
) -> tuple[Literal["top-1", "agreement"], tuple[Interval, Interval]]:
    """What each lost against eager: top-1 where both have labels, else the predictions that differ."""
    if before.flips is None or now.flips is None:
        return "agreement", (_disagreement(before, one_sided), _disagreement(now, one_sided))
    drops = (_drop(*before.flips, before.images, one_sided), _drop(*now.flips, now.images, one_sided))
    return "top-1", drops


def _drop(b: int, c: int, n: int, one_sided: float) -> Interval:
    return Interval((b - c) / n, drop_lower(b, c, n, one_sided), drop_upper(b, c, n, one_sided))


def _disagreement(accuracy: AccuracyReport, one_sided: float) -> Interval:
    """The rate of predictions that differ from eager's (Clopper and Pearson)."""
    n = accuracy.images
    differ = round((1 - accuracy.agreement) * n)
    low = 1 - binomial_upper(n - differ, n, one_sided)
    return Interval(differ / n, low, binomial_upper(differ, n, one_sided))


def _same_images(before: BenchDocument, now: BenchDocument) -> bool | None:
    digests = [document.conditions.get("test_images") for document in (before, now)]
    counts = [{e.accuracy.images for e in document.engines if e.accuracy} for document in (before, now)]
    if all(counts) and counts[0] != counts[1]:
        return False
    return None if None in digests else digests[0] == digests[1]


def _warnings(before: BenchDocument, now: BenchDocument) -> Iterator[str]:
    """Say what differs beside the engines, and what the intervals cannot hold."""
    then, here = before.conditions, now.conditions
    if machine := _differing(then, here, _MACHINE):
        yield f"another machine ({machine}): the pace cancels in the ratios to eager, the processor does not"
    if threads := _differing(then, here, ("threads",)):
        yield f"another number of compute threads ({threads}): the speeds are not of the same task"
    if versions := _versions(then, here):
        yield f"other versions ({versions}): eager itself may have become faster or slower"
    if given := _differing_within(then, here, "given"):
        yield f"other inputs ({given}): one run's times hold the preparation of images, the other's do not"
    if "weights" in then and "weights" in here and then["weights"] != here["weights"]:
        yield "other weights: eager itself is another network"
    if before.budget and now.budget and before.budget != now.budget:
        yield "another budget: verdicts may differ though nothing else does"
    for name, document in (("the older run", before), ("this run", now)):
        if document.partial:
            yield f"{name} was interrupted: it rests on fewer rounds"
        if document.stability and not document.stability.stable:
            yield f"{name} was disturbed, so no difference in speed is settled"
    if any(not e.latency or len(e.latency.processes) < 2 for d in (before, now) for e in d.measured):
        yield (
            "a run within one process: the next process can differ by more than its rounds do, and the "
            "intervals do not hold that"
        )


def _versions(before: Mapping[str, JsonValue], now: Mapping[str, JsonValue]) -> str:
    found = [_differing_within(before, now, "libraries"), _differing(before, now, ("python",))]
    return "; ".join(filter(None, found))


def _differing_within(before: Mapping[str, JsonValue], now: Mapping[str, JsonValue], key: str) -> str:
    """Return what differs between two mappings of that key, "" where either run has none."""
    old, new = before.get(key), now.get(key)
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return ""
    return _differing(old, new, tuple(new))


def _differing(before: Mapping[str, JsonValue], now: Mapping[str, JsonValue], keys: tuple[str, ...]) -> str:
    """Return the keys whose values differ, with both; a key that either lacks says nothing."""
    differing = (key for key in keys if key in before and key in now and before[key] != now[key])
    return "; ".join(f"{key} was {_said(before[key])}, is {_said(now[key])}" for key in differing)


def _said(value: JsonValue) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
