"""A ratio measured in several processes, which may differ by more than their rounds do.

How memory is laid out is drawn once a process. Where that moves a ratio, the rounds of one process are alike
and tell less than their number says: pooled, a 95 % interval then covers the truth in as little as 55 % of
all runs. So where the processes look different at all, their estimates count in place of the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from resedge.benchmarks.distributions import chi_squared_tail, student_quantile
from resedge.benchmarks.intervals import Float64Array, hodges_lehmann, ratio_interval

# Far above the usual 5 %: a difference that is missed makes wrong words, one that is none a wide interval.
_LOOK_DIFFERENT = 0.5


def interval_over_processes(
    log_ratios: Sequence[Float64Array], confidence: float
) -> tuple[float, float, float]:
    """Return the estimate of a ratio and its two-sided interval, (estimate, low, high).

    That of all rounds together; where the processes look different, the wider of that and Student's t on the
    processes' own Hodges-Lehmann estimates, around the same middle.

    Args:
        log_ratios: Of each process, (rounds,) float64, at least one round each and two in all.
        confidence: In (0, 1).
    """
    estimate, low, high = ratio_interval(np.concatenate(log_ratios), confidence)
    if len(log_ratios) < 2 or kruskal_wallis(log_ratios) >= _LOOK_DIFFERENT:
        return estimate, low, high
    of_processes = np.array([hodges_lehmann(each) for each in log_ratios])
    error = float(of_processes.std(ddof=1)) / math.sqrt(len(of_processes))
    factor = math.exp(student_quantile((1 + confidence) / 2, len(of_processes) - 1) * error)
    return estimate, min(low, estimate / factor), max(high, estimate * factor)


def kruskal_wallis(groups: Sequence[Float64Array]) -> float:
    """Return the p-value of the test that several groups are alike, by their ranks.

    Source: Kruskal and Wallis 1952, J. Am. Statist. Assoc. 47:583-621; no correction for ties, which only
    makes it slower to see a difference.

    Args:
        groups: At least two, (n,) float64 each, none empty.
    """
    together = np.sort(np.concatenate(groups))
    number = len(together)
    between = 0.0
    for group in groups:
        ranks = (np.searchsorted(together, group, "left") + np.searchsorted(together, group, "right") + 1) / 2
        between += len(group) * (float(ranks.mean()) - (number + 1) / 2) ** 2
    return chi_squared_tail(12 / (number * (number + 1)) * between, len(groups) - 1)
