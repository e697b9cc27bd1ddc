"""Processes that differ widen an interval; processes that do not leave it as it is."""

import math

import numpy as np
import pytest
from scipy.stats import kruskal

from resedge.benchmarks.intervals import ratio_interval
from resedge.benchmarks.processes import interval_over_processes, kruskal_wallis


@pytest.mark.parametrize("seed", range(5))
def test_kruskal_wallis_is_scipys(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = [generator.normal(0.3 * i, 1, n) for i, n in enumerate((7, 7, 6))]
    assert kruskal_wallis(groups) == pytest.approx(kruskal(*groups).pvalue)


def test_groups_of_one_value_are_alike() -> None:
    assert kruskal_wallis([np.zeros(4), np.zeros(3)]) == 1.0


def test_alike_processes_leave_the_interval_of_their_rounds() -> None:
    groups = [np.array([0.01, -0.02, 0.03]), np.array([0.02, -0.01, 0.0, 0.015])]
    assert interval_over_processes(groups, 0.95) == ratio_interval(np.concatenate(groups), 0.95)


def test_one_process_has_the_interval_of_its_rounds() -> None:
    logs = np.array([0.01, -0.02, 0.03, 0.2])
    assert interval_over_processes([logs], 0.95) == ratio_interval(logs, 0.95)


def test_processes_that_differ_count_by_their_estimates() -> None:
    groups = [np.full(7, 0.10) + np.arange(7) / 1e4, np.full(7, 0.12), np.full(6, 0.14)]
    groups[1][2] = 0.9  # one round that was disturbed
    estimate, low, high = interval_over_processes(groups, 0.95)
    half = 4.302653 * float(np.std([0.1003, 0.12, 0.14], ddof=1)) / math.sqrt(3)  # t of 2 degrees
    assert estimate == ratio_interval(np.concatenate(groups), 0.95)[0]
    assert (math.log(low), math.log(high)) == pytest.approx(
        (math.log(estimate) - half, math.log(estimate) + half), abs=1e-6
    )


def test_the_interval_never_becomes_narrower() -> None:
    groups = [np.array([-0.1, 0.0]), np.array([0.05, 0.08]), np.array([0.0, 0.2, 0.3])]
    _, low, high = ratio_interval(np.concatenate(groups), 0.95)
    _, wider_low, wider_high = interval_over_processes(groups, 0.95)
    assert wider_low <= low < high <= wider_high
