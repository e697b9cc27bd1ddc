"""What interleaved rounds say of the ratio of two systems' times.

A round gives one log ratio of block medians, and only those few are treated as independent: single calls are
autocorrelated. Several engines that are measured at once share the risk of a wrong word: each interval has
the confidence 1 - (1 - c) / m for m engines (Bonferroni), so that all of them hold at once with confidence c,
and the relation is read from that interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from resedge.artifacts import BestEager, EagerLatency, Latency, Relation, SelfCheck
from resedge.benchmarks.intervals import Float64Array
from resedge.benchmarks.intervals import ratio_interval as ratio_interval
from resedge.benchmarks.processes import interval_over_processes
from resedge.benchmarks.rounds import Samples
from resedge.benchmarks.tails import distribution, percentile
from resedge.protocols import Int64Array

EQUIVALENT_WITHIN = 0.02
NOT_SLOWER_FROM = 1 / (1 + EQUIVALENT_WITHIN)

# An honest rig gives an alarm in one run of a hundred, not of twenty: an alarm ends a gate.
SELF_CHECK_CONFIDENCE = 0.99


def compare(
    sessions: Sequence[Samples],
    reference: str,
    best_eager: str,
    engine: str,
    confidence: float,
    comparisons: int = 1,
) -> Latency:
    """Compare one arm with the reference and with eager's other form.

    Args:
        sessions: From `measure`, one of each process, in order; none without a round, and two or more in all.
        reference: The arm of eager as it was loaded.
        best_eager: The arm of eager in the other memory format.
        engine: The arm that is judged.
        confidence: Of the two-sided intervals of all arms at once, such as 0.95.
        comparisons: How many arms are judged in this run.
    """
    log_ratios = _log_ratios(sessions, reference, engine)
    each = 1 - (1 - confidence) / comparisons
    speedup, low, high = interval_over_processes(log_ratios, each)
    over_best, _, _ = interval_over_processes(_log_ratios(sessions, best_eager, engine), confidence)
    calls = _calls(sessions, engine)
    found = Latency(
        p50_ms=_p50_ms(calls),
        p50_ms_eager=_p50_ms(_calls(sessions, reference)),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        speedup_best_eager=over_best,
        relation=relation(1 / high, 1 / low),
        rounds=sum(map(len, log_ratios)),
        calls_per_block=min(session.nanoseconds[engine].shape[1] for session in sessions),
        p90_ms=percentile(calls, 0.9),
        p95_ms=percentile(calls, 0.95),
        p99_ms=percentile(calls, 0.99),
        p999_ms=percentile(calls, 0.999),
        log_ratios=tuple(map(float, np.concatenate(log_ratios))),
        processes=tuple(map(len, log_ratios)),
        distribution=distribution(calls),
    )
    if found.relation != "inconclusive":
        return found
    return replace(found, rounds_needed=further_rounds(found, NOT_SLOWER_FROM, 1.0))


def eager_latency(sessions: Sequence[Samples], forms: Sequence[tuple[str, str]]) -> EagerLatency:
    """Return eager's own latency.

    Args:
        sessions: As for `compare`.
        forms: Arm and memory format of each of eager's forms, the one as it was loaded first.
    """
    best = min((_p50_ms(_calls(sessions, arm)), memory_format) for arm, memory_format in forms)
    calls = _calls(sessions, forms[0][0])
    return EagerLatency(
        p50_ms=_p50_ms(calls),
        p90_ms=percentile(calls, 0.9),
        p95_ms=percentile(calls, 0.95),
        p99_ms=percentile(calls, 0.99),
        p999_ms=percentile(calls, 0.999),
        distribution=distribution(calls),
        best=BestEager(best[1], best[0]),
    )


def self_check(sessions: Sequence[Samples], reference: str, again: str) -> SelfCheck:
    """Compare the reference with a second instance of itself; a difference is an alarm.

    Args:
        sessions: As for `compare`.
        reference: The arm of eager as it was loaded.
        again: The arm of the second instance.
    """
    log_ratios = _log_ratios(sessions, reference, again)
    ratio, low, high = interval_over_processes(log_ratios, SELF_CHECK_CONFIDENCE)
    found = relation(1 / high, 1 / low)
    return SelfCheck(found, ratio, low, high, alarm=found in ("faster", "slower"))


def relation(low: float, high: float, eps: float = EQUIVALENT_WITHIN) -> Relation:
    """Say what an interval of the engine's time over eager's means.

    Args:
        low: The lower end; above 1 the engine is slower.
        high: The upper end; below 1 the engine is faster.
        eps: By how much two times may differ and count as equal.
    """
    if high < 1:
        return "faster"
    if high < 1 + eps:
        return "equivalent" if low > 1 - eps else "not slower"
    return "slower" if low > 1 else "inconclusive"


def further_rounds(latency: Latency, passes_above: float, fails_below: float) -> int | None:
    """Return about how many more rounds would settle whether the speed-up is enough.

    An interval narrows with the square root of the rounds; it has to leave the nearer line outside:
    `passes_above` below it, or `fails_below` above it. None if the estimate lies on the line.
    """
    half_width = math.log(latency.speedup_high / latency.speedup_low) / 2
    distance = max(math.log(latency.speedup / passes_above), math.log(fails_below / latency.speedup))
    if distance <= 0:
        return None
    needed = math.ceil(latency.rounds * (half_width / distance) ** 2)
    return max(needed - latency.rounds, 1)


def log_medians(samples: Samples, arm: str) -> Float64Array:
    """Return the logarithm of the median of each of an arm's blocks, (rounds,) float64."""
    medians: Float64Array = np.log(np.median(samples.nanoseconds[arm], axis=1))
    return medians


def _log_ratios(sessions: Sequence[Samples], numerator: str, denominator: str) -> list[Float64Array]:
    """Return each session's log ratios, (rounds,) float64."""
    return [log_medians(samples, numerator) - log_medians(samples, denominator) for samples in sessions]


def _calls(sessions: Sequence[Samples], arm: str) -> Int64Array:
    """Return the nanoseconds of all calls of an arm, (N,) int64."""
    return np.concatenate([session.nanoseconds[arm].ravel() for session in sessions])


def _p50_ms(calls: Int64Array) -> float:
    return float(np.median(calls)) / 1e6
