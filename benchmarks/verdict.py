"""From what was measured to a verdict: is this engine shown to be within the budget?

A part passes when its interval lies within the budget, fails when it lies outside, and is inconclusive
in between, with how much more it takes. The worse part decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from resedge.artifacts import Accuracy, JsonValue, Latency, Outcome, Verdict
from resedge.benchmarks.bounds import drop_lower, drop_upper, images_needed
from resedge.benchmarks.distributions import binomial_upper
from resedge.benchmarks.latency import NOT_SLOWER_FROM, further_rounds
from resedge.benchmarks.multiplicity import holm
from resedge.errors import RuntimeUnavailable, UsageError

K = TypeVar("K")

_WORST_FIRST: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")


@dataclass(frozen=True)
class Budget:
    """What an engine may cost.

    `max_drop` is the top-1 that may be lost, a fraction. `min_speedup` is eager's time over the
    engine's; at exactly 1 an engine that takes up to 2 % longer still counts as not slower.
    `confidence` is that of the drop's one-sided bound and of the speed-up's two-sided interval.

    Raises:
        UsageError: A value is outside of what it can mean; the option is named.
    """

    max_drop: float = 0.005
    min_speedup: float = 1.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        _demand(0 <= self.max_drop < 1, "--max-drop", self.max_drop, "0 <= fraction < 1")
        _demand(0 < self.min_speedup < 1e6, "--min-speedup", self.min_speedup, "a ratio above 0")
        _demand(0.5 < self.confidence < 1, "--confidence", self.confidence, "0.5 < probability < 1")


@dataclass(frozen=True)
class Levels:
    """The confidence with which a drop must be shown to be within the budget, and to be beyond it."""

    within: float
    beyond: float


@dataclass(frozen=True)
class _Finding:
    outcome: Outcome
    reason: str = ""
    images_needed: int | None = None


def levels(accuracies: Mapping[K, Accuracy], budget: Budget) -> dict[K, Levels]:
    """Return what each of several engines is held to, so that they are right together (Holm 1979).

    With the budget's confidence no engine is said to be within it that is not, and none to be beyond it that
    is not; one engine alone is held to that confidence itself.
    """
    within = holm({name: partial(_is_within, a, budget) for name, a in accuracies.items()}, budget.confidence)
    beyond = holm({name: partial(_is_beyond, a, budget) for name, a in accuracies.items()}, budget.confidence)
    return {name: Levels(within[name], beyond[name]) for name in accuracies}


def judge(
    runtime: str,
    precision: str,
    accuracy: Accuracy,
    latency: Latency,
    budget: Budget,
    conditions: Mapping[str, JsonValue],
    *,
    held_to: Levels | None = None,
    stable: bool = True,
) -> Verdict:
    """Judge one engine; `accuracy` and `latency` were compared at the budget's confidence.

    Args:
        runtime: The name of its runtime.
        precision: Its precision.
        accuracy: Against eager on the test images.
        latency: Against eager in the same interleaved run.
        budget: What it may cost.
        conditions: What it was measured under.
        held_to: From `levels`, where several engines are judged; None for one alone.
        stable: Whether its times may settle anything. From a run that was disturbed they may not.
    """
    held_to = held_to or Levels(budget.confidence, budget.confidence)
    judge_accuracy = _judge_agreement if accuracy.drop_upper is None else _judge_drop
    on_accuracy = judge_accuracy(accuracy, budget, held_to)
    findings = (on_accuracy, _judge_latency(latency, budget, stable=stable))
    return Verdict(
        runtime,
        precision,
        outcome=min((finding.outcome for finding in findings), key=_WORST_FIRST.index),
        reasons=tuple(finding.reason for finding in findings if finding.reason),
        accuracy=replace(accuracy, images_needed=on_accuracy.images_needed),
        latency=latency,
        conditions=conditions,
    )


def unavailable(runtime: str, precision: str, reason: str) -> Verdict:
    """Return the verdict of an engine that could not be built or opened."""
    return Verdict(runtime, precision, "unavailable", reasons=(reason,))


def exit_code(verdicts: Sequence[Verdict], owed: AbstractSet[str], *, alarm: bool = False) -> int:
    """Return the exit code of a run that ended with these verdicts.

    Args:
        verdicts: Of all engines.
        owed: The runtimes that must have an engine: those that the user named, and those that are
            installed.
        alarm: Whether eager came out faster or slower than itself.

    Returns:
        4 if one that is owed was not there, or none was; else 1 if a verdict failed or there is an alarm,
        else 3 if one is inconclusive, else 0.
    """
    missing = [verdict for verdict in verdicts if verdict.outcome == "unavailable"]
    nothing_there = bool(verdicts) and len(missing) == len(verdicts)
    if nothing_there or any(verdict.runtime in owed for verdict in missing):
        return RuntimeUnavailable.exit_code
    outcomes = {verdict.outcome for verdict in verdicts}
    return 1 if alarm or "fail" in outcomes else 3 if "inconclusive" in outcomes else 0


def _is_within(accuracy: Accuracy, budget: Budget, confidence: float) -> bool:
    """Whether the drop is shown to be within the budget."""
    return _upper(accuracy, confidence) <= budget.max_drop


def _is_beyond(accuracy: Accuracy, budget: Budget, confidence: float) -> bool:
    """Whether the drop is shown to be beyond the budget, which it never is without labels."""
    if accuracy.drop_upper is None:
        return False
    return drop_lower(*_flips(accuracy), accuracy.images, confidence) > budget.max_drop


def _upper(accuracy: Accuracy, confidence: float) -> float:
    """The upper bound of the drop; without labels it cannot exceed the rate of predictions that differ."""
    if accuracy.drop_upper is None:
        return binomial_upper(_differing(accuracy), accuracy.images, confidence)
    return drop_upper(*_flips(accuracy), accuracy.images, confidence)


def _flips(accuracy: Accuracy) -> tuple[int, int]:
    b, c = accuracy.negative_flips, accuracy.positive_flips
    if b is None or c is None or accuracy.drop is None:
        raise ValueError("an accuracy has the drop, its bound and the flips, or none of them")
    return b, c


def _differing(accuracy: Accuracy) -> int:
    return round((1 - accuracy.agreement) * accuracy.images)


def _judge_drop(accuracy: Accuracy, budget: Budget, held_to: Levels) -> _Finding:
    (b, c), n = _flips(accuracy), accuracy.images
    drop, allowed = (b - c) / n, f"the budget allows {_points(budget.max_drop)}"
    if _is_within(accuracy, budget, held_to.within):
        return _Finding("pass")
    if _is_beyond(accuracy, budget, held_to.beyond):
        lower = drop_lower(b, c, n, held_to.beyond)
        return _Finding(
            "fail",
            f"top-1 drops by {_points(drop)} points, by at least {_points(lower)} with "
            f"{_percent(held_to.beyond)} confidence; {allowed}.",
        )
    needed = images_needed(b, c, n, budget.max_drop, held_to.within)
    cure = f"about {needed:,} would settle it" if needed else "the drop lies on the limit itself"
    return _Finding(
        "inconclusive",
        f"top-1 drops by {_points(drop)} points, at most {_points(_upper(accuracy, held_to.within))} with "
        f"{_percent(held_to.within)} confidence; {allowed}. {n:,} images are too few: {cure}.",
        needed,
    )


def _judge_agreement(accuracy: Accuracy, budget: Budget, held_to: Levels) -> _Finding:
    """Without labels no drop is known, but it cannot exceed the rate of predictions that differ."""
    n, differ = accuracy.images, _differing(accuracy)
    upper = _upper(accuracy, held_to.within)
    known = (
        f"without labels only the agreement is known: {differ:,} of {n:,} predictions differ, at most "
        f"{100 * upper:.2f} % with {_percent(held_to.within)} confidence"
    )
    if upper <= budget.max_drop:
        return _Finding("pass", f"{known}, and top-1 cannot drop by more.")
    limit = f"the budget allows a drop of {_points(budget.max_drop)} points"
    needed = images_needed(differ, 0, n, budget.max_drop, held_to.within)
    if differ / n < budget.max_drop and needed:
        return _Finding("inconclusive", f"{known}; {limit}. About {needed:,} images would settle it.", needed)
    return _Finding("inconclusive", f"{known}; {limit}. Labels would settle it.")


def _judge_latency(latency: Latency, budget: Budget, *, stable: bool) -> _Finding:
    fails_below = budget.min_speedup
    passes_above = NOT_SLOWER_FROM if fails_below == 1 else fails_below
    passes, fails = latency.speedup_low >= passes_above, latency.speedup_high < fails_below
    if passes and stable:
        return _Finding("pass")
    measured = (
        f"runs at {latency.speedup:.2f}x eager's speed ({latency.speedup_low:.2f} to "
        f"{latency.speedup_high:.2f} with {_percent(budget.confidence)} confidence); the budget asks for "
        f"{budget.min_speedup:.4g}x"
    )
    if fails and stable:
        return _Finding("fail", f"{measured}.")
    if passes or fails:
        return _Finding("inconclusive", f"{measured}. An unstable run settles nothing: repeat it.")
    more = further_rounds(latency, passes_above, fails_below)
    cure = f"about {more:,} more would settle it" if more else "the ratio lies on the limit itself"
    return _Finding("inconclusive", f"{measured}. {latency.rounds} rounds are too few: {cure}.")


def _points(fraction: float) -> str:
    """A fraction in percentage points, in hundredths of one."""
    return f"{100 * fraction:.2f}"


def _percent(probability: float) -> str:
    return f"{100 * probability:.4g} %"


def _demand(holds: bool, option: str, value: float, expected: str) -> None:
    if not holds:
        raise UsageError(f"{value:g} is not possible.", where=option, cure=f"Expected: {expected}.")
