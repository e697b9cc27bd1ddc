"""Percentiles of single calls, where their number allows them, and their distribution.

The bounds are those of order statistics, which need nothing of the distribution but that calls do not depend
on one another; where neighbours are alike, the bounds are narrower than they should be.
"""

from __future__ import annotations

import math

import numpy as np

from resedge.artifacts import Distribution, Percentile
from resedge.benchmarks.distributions import beta_cdf, binomial_quantile
from resedge.protocols import Int64Array

CONFIDENCE = 0.95
_EARLY_STOPPING_CONFIDENCE = 0.99
_BINS = 48


def percentile(calls: Int64Array, rate: float) -> Percentile | None:
    """Return a percentile by nearest rank, with the interval between two order statistics.

    Source: Conover, Practical Nonparametric Statistics (1999), section 3.2.

    Args:
        calls: (N,) int64 nanoseconds, in any order.
        rate: Such as 0.99.

    Returns:
        None where the calls are fewer than MLPerf's early stopping asks for (`enough_calls`), or too few for
        a finite upper bound.
    """
    number = len(calls)
    tail = (1 - CONFIDENCE) / 2
    # How many of the calls lie below the percentile is binomial: outside of these ranks with 5 % at most.
    low = binomial_quantile(tail, number, rate)
    high = binomial_quantile(1 - tail, number, rate) + 1
    if not enough_calls(number, rate) or low < 1 or high > number:
        return None
    ordered = np.sort(calls) / 1e6
    return Percentile(
        ms=float(ordered[math.ceil(rate * number) - 1]),
        low=float(ordered[low - 1]),
        high=float(ordered[high - 1]),
    )


def enough_calls(number: int, rate: float) -> bool:
    """Whether so many calls tell a percentile with 99 % confidence if one of them may be above it.

    Source: MLPerf Inference rules, appendix on early stopping: I(rate; h, t + 1) <= 1 - 0.99 with t = 1 call
    above and h = number - 1 below.
    """
    return number > 1 and beta_cdf(rate, number - 1, 2) <= 1 - _EARLY_STOPPING_CONFIDENCE


def distribution(calls: Int64Array) -> Distribution:
    """Count calls, (N,) int64 nanoseconds above 0, between edges that grow by one factor."""
    milliseconds = np.maximum(calls, 1) / 1e6
    low, high = float(milliseconds.min()), float(milliseconds.max())
    if low == high:
        return Distribution((low * 0.99, high * 1.01), (len(calls),))
    edges = np.geomspace(low, high, _BINS + 1)
    edges[0], edges[-1] = low, high
    counts, _ = np.histogram(milliseconds, edges)
    return Distribution(tuple(map(float, edges)), tuple(map(int, counts)))
