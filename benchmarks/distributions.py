"""The quantiles and the root finder behind the statistics; scipy is imported in this file alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from resedge.errors import RuntimeUnavailable


def normal_quantile(probability: float) -> float:
    """Return the standard normal quantile of a probability in (0, 1)."""
    return statistics.NormalDist().inv_cdf(probability)


def student_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t with `degrees` of freedom.

    Raises:
        RuntimeUnavailable: scipy is not installed.
    """
    with _scipy_needed():
        from scipy.special import stdtrit
    return float(stdtrit(degrees, probability))


def binomial_upper(events: int, trials: int, confidence: float) -> float:
    """Return the one-sided upper bound of a rate (Clopper and Pearson 1934, Biometrika 26:404-413).

    Raises:
        RuntimeUnavailable: scipy is not installed.
    """
    with _scipy_needed():
        from scipy.special import betaincinv
    return 1.0 if events == trials else float(betaincinv(events + 1, trials - events, confidence))


def binomial_cdf(events: int, trials: int, rate: float) -> float:
    """Return the probability of at most so many events.

    Raises:
        RuntimeUnavailable: scipy is not installed.
    """
    with _scipy_needed():
        from scipy.special import bdtr
    return float(bdtr(events, trials, rate))


def binomial_quantile(probability: float, trials: int, rate: float) -> int:
    """Return the smallest number of events that is not exceeded with at least that probability.

    Raises:
        RuntimeUnavailable: scipy is not installed.
    """
    below, enough = -1, trials
    while enough - below > 1:
        middle = (below + enough) // 2
        if binomial_cdf(middle, trials, rate) >= probability:
            enough = middle
        else:
            below = middle
    return enough


def chi_squared_tail(value: float, degrees: int) -> float:
    """Return the probability that chi-squared with `degrees` of freedom exceeds a value.

    Raises:
        RuntimeUnavailable: scipy is not installed.
    """
    with _scipy_needed():
        from scipy.special import chdtrc
    return float(chdtrc(degrees, value))


def beta_cdf(value: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I(value; a, b).

    Raises:
        RuntimeUnavailable: scipy is not installed.
    """
    with _scipy_needed():
        from scipy.special import betainc
    return float(betainc(a, b, value))


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where `function`, of different signs at `low` and `high`, crosses zero (Brent 1973).

    Raises:
        RuntimeUnavailable: scipy is not installed.
    """
    with _scipy_needed():
        from scipy.optimize import brentq
    return float(brentq(function, low, high, xtol=1e-12))


def signed_rank_cdf(pairs: int) -> npt.NDArray[np.float64]:
    """Return P(T <= t) for t = 0 ... pairs (pairs + 1) / 2, T the Wilcoxon signed-rank statistic.

    Exact under symmetry about zero: each rank 1 ... pairs is in the sum or not, with equal odds.
    """
    mass = np.zeros(pairs * (pairs + 1) // 2 + 1)
    mass[0] = 1.0
    for rank in range(1, pairs + 1):
        with_rank = np.zeros_like(mass)
        with_rank[rank:] = mass[:-rank]
        mass = (mass + with_rank) / 2
    return np.cumsum(mass)


@contextmanager
def _scipy_needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise RuntimeUnavailable(
            "scipy, which the statistics of a verdict need, is not installed.",
            cure="Try: pip install 'resedge[bench]'",
        ) from error
