"""Percentiles against published counts and simulation, and the histogram."""

from __future__ import annotations

import numpy as np
import pytest

from resedge.benchmarks.tails import distribution, enough_calls, percentile

MS = 1_000_000


@pytest.mark.parametrize(("rate", "number"), [(0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_the_fewest_calls_are_those_of_early_stopping(rate: float, number: int) -> None:
    assert enough_calls(number, rate)
    assert not enough_calls(number - 1, rate)
    calls = np.arange(1, number + 1) * MS
    assert percentile(calls, rate) is not None
    assert percentile(calls[1:], rate) is None


@pytest.mark.parametrize("number", [1, 2, 10])
def test_few_calls_have_no_tail(number: int) -> None:
    assert percentile(np.arange(1, number + 1) * MS, 0.9) is None


def test_ranks_of_the_99th_of_a_thousand_calls() -> None:
    found = percentile(np.random.default_rng(0).permutation(np.arange(1, 1001)) * MS, 0.99)
    assert found is not None
    assert (found.ms, found.low, found.high) == (990.0, 983.0, 997.0)


@pytest.mark.parametrize(("rate", "number"), [(0.9, 100), (0.95, 400), (0.99, 1000)])
def test_the_interval_covers(rate: float, number: int) -> None:
    generator = np.random.default_rng(7)
    true = -np.log(1 - rate) * 1000
    covered = 0
    for _ in range(800):
        found = percentile(np.rint(generator.exponential(1000, number) * MS).astype(np.int64), rate)
        assert found is not None
        covered += found.low <= true <= found.high
    assert covered >= 0.95 * 800 - 18  # three standard deviations


def test_the_distribution_counts_every_call_between_edges_of_one_factor() -> None:
    calls = np.rint(np.random.default_rng(1).lognormal(1, 0.5, 5000) * MS).astype(np.int64)
    found = distribution(calls)
    edges = np.array(found.edges_ms)
    assert sum(found.counts) == 5000
    assert len(edges) == len(found.counts) + 1
    assert (edges[0], edges[-1]) == (calls.min() / 1e6, calls.max() / 1e6)
    factors = edges[1:] / edges[:-1]
    np.testing.assert_allclose(factors, factors[0])


@pytest.mark.parametrize("value", [0, 5 * MS])
def test_calls_that_are_all_alike_are_one_bin(value: int) -> None:
    found = distribution(np.full(9, value))
    assert found.counts == (9,)
    assert found.edges_ms[0] < max(value, 1) / 1e6 < found.edges_ms[1]
