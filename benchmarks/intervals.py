"""The estimate of a ratio from a few independent log ratios, and its interval."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from resedge.benchmarks.distributions import signed_rank_cdf, student_quantile

Float64Array = npt.NDArray[np.float64]

_FEWEST_PAIRS_FOR_RANKS = 6


def ratio_interval(log_ratios: Float64Array, confidence: float) -> tuple[float, float, float]:
    """Return the estimate of a ratio and its two-sided interval, (estimate, low, high).

    From six rounds on: the Hodges-Lehmann estimate (the median of the Walsh averages) and the interval
    of the signed-rank test's order statistics (Hodges and Lehmann 1963, Ann. Math. Statist. 34:598-611;
    Hollander and Wolfe, Nonparametric Statistical Methods, section 3.3), whose confidence is at least
    the one asked for. With fewer, or where the ranks of so few cannot reach that confidence: the mean
    and Student's t.

    Args:
        log_ratios: (rounds,) float64, natural logarithms of one round's ratio each.
        confidence: In (0, 1).

    Raises:
        ValueError: There are fewer than two rounds.
    """
    pairs = len(log_ratios)
    if pairs < 2:
        raise ValueError("an interval needs at least two rounds")
    # Of the ordered Walsh averages, this many are left out at either end.
    outside = int((signed_rank_cdf(pairs) <= (1 - confidence) / 2).sum())
    if pairs >= _FEWEST_PAIRS_FOR_RANKS and outside:
        walsh = np.sort(_walsh_averages(log_ratios))
        middle, low, high = float(np.median(walsh)), walsh[outside - 1], walsh[-outside]
    else:
        middle = float(log_ratios.mean())
        error = float(log_ratios.std(ddof=1)) / math.sqrt(pairs)
        half_width = student_quantile((1 + confidence) / 2, pairs - 1) * error
        low, high = middle - half_width, middle + half_width
    return math.exp(middle), math.exp(low), math.exp(high)


def hodges_lehmann(values: Float64Array) -> float:
    """Return the median of the averages of all pairs, each value with itself among them."""
    return float(np.median(_walsh_averages(values)))


def _walsh_averages(values: Float64Array) -> Float64Array:
    i, j = np.triu_indices(len(values))
    averages: Float64Array = (values[i] + values[j]) / 2
    return averages
