"""From what was measured to a verdict: is this engine shown to be within the budget?

A part passes when its interval lies within the budget, fails when it lies outside, and is inconclusive
in between, with how much more it takes. The worse part decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from resedge.artifacts import Accuracy, JsonValue, Latency, Outcome, Verdict
from resedge.benchmarks.accuracy import drop_lower, images_needed
from resedge.benchmarks.distributions import binomial_upper
from resedge.benchmarks.latency import EQUIVALENT_WITHIN, further_rounds
from resedge.errors import RuntimeUnavailable, UsageError

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
class _Finding:
    outcome: Outcome
    reason: str = ""


def judge(
    runtime: str,
    precision: str,
    accuracy: Accuracy,
    latency: Latency,
    budget: Budget,
    conditions: Mapping[str, JsonValue],
) -> Verdict:
    """Judge one engine; `accuracy` and `latency` were compared at the budget's confidence.

    Args:
        runtime: The name of its runtime.
        precision: Its precision.
        accuracy: Against eager on the test images.
        latency: Against eager in the same interleaved run.
        budget: What it may cost.
        conditions: What it was measured under.
    """
    accuracy_finding = (
        _judge_agreement(accuracy, budget) if accuracy.drop_upper is None else _judge_drop(accuracy, budget)
    )
    findings = (accuracy_finding, _judge_latency(latency, budget))
    return Verdict(
        runtime,
        precision,
        outcome=min((finding.outcome for finding in findings), key=_WORST_FIRST.index),
        reasons=tuple(finding.reason for finding in findings if finding.reason),
        accuracy=accuracy,
        latency=latency,
        conditions=conditions,
    )


def unavailable(runtime: str, precision: str, reason: str) -> Verdict:
    """Return the verdict of an engine that could not be built or opened."""
    return Verdict(runtime, precision, "unavailable", reasons=(reason,))


def exit_code(verdicts: Sequence[Verdict], owed: AbstractSet[str]) -> int:
    """Return the exit code of a run that ended with these verdicts.

    Args:
        verdicts: Of all engines.
        owed: The runtimes that must have an engine: those that the user named, and those that are
            installed.

    Returns:
        4 if one that is owed was not there, or none was; else 1 if a verdict failed, else 3 if one is
        inconclusive, else 0.
    """
    missing = [verdict for verdict in verdicts if verdict.outcome == "unavailable"]
    nothing_there = bool(verdicts) and len(missing) == len(verdicts)
    if nothing_there or any(verdict.runtime in owed for verdict in missing):
        return RuntimeUnavailable.exit_code
    outcomes = {verdict.outcome for verdict in verdicts}
    return 1 if "fail" in outcomes else 3 if "inconclusive" in outcomes else 0


def _judge_drop(accuracy: Accuracy, budget: Budget) -> _Finding:
    b, c, n = accuracy.negative_flips, accuracy.positive_flips, accuracy.images
    drop, upper = accuracy.drop, accuracy.drop_upper
    if b is None or c is None or drop is None or upper is None:
        raise ValueError("an accuracy has the drop, its bound and the flips, or none of them")
    if upper <= budget.max_drop:
        return _Finding("pass")
    lower = drop_lower(b, c, n, budget.confidence)
    allowed = f"the budget allows {_points(budget.max_drop)}"
    if lower > budget.max_drop:
        return _Finding(
            "fail",
            f"top-1 drops by {_points(drop)} points, by at least {_points(lower)} with "
            f"{_percent(budget.confidence)} confidence; {allowed}.",
        )
    needed = images_needed(b, c, n, budget.max_drop, budget.confidence)
    cure = f"about {needed:,} would settle it" if needed else "the drop lies on the limit itself"
    return _Finding(
        "inconclusive",
        f"top-1 drops by {_points(drop)} points, at most {_points(upper)} with "
        f"{_percent(budget.confidence)} confidence; {allowed}. {n:,} images are too few: {cure}.",
    )


def _judge_agreement(accuracy: Accuracy, budget: Budget) -> _Finding:
    """Without labels no drop is known, but it cannot exceed the rate of predictions that differ."""
    n = accuracy.images
    differ = round((1 - accuracy.agreement) * n)
    upper = binomial_upper(differ, n, budget.confidence)
    known = (
        f"without labels only the agreement is known: {differ:,} of {n:,} predictions differ, at most "
        f"{100 * upper:.2f} % with {_percent(budget.confidence)} confidence"
    )
    if upper <= budget.max_drop:
        return _Finding("pass", f"{known}, and top-1 cannot drop by more.")
    limit = f"the budget allows a drop of {_points(budget.max_drop)} points"
    needed = images_needed(differ, 0, n, budget.max_drop, budget.confidence)
    if differ / n < budget.max_drop and needed:
        return _Finding("inconclusive", f"{known}; {limit}. About {needed:,} images would settle it.")
    return _Finding("inconclusive", f"{known}; {limit}. Labels would settle it.")


def _judge_latency(latency: Latency, budget: Budget) -> _Finding:
    fails_below = budget.min_speedup
    passes_above = 1 / (1 + EQUIVALENT_WITHIN) if fails_below == 1 else fails_below
    if latency.speedup_low >= passes_above:
        return _Finding("pass")
    measured = (
        f"runs at {latency.speedup:.2f}x eager's speed ({latency.speedup_low:.2f} to "
        f"{latency.speedup_high:.2f} with {_percent(budget.confidence)} confidence); the budget asks for "
        f"{budget.min_speedup:.4g}x"
    )
    if latency.speedup_high < fails_below:
        return _Finding("fail", f"{measured}.")
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
