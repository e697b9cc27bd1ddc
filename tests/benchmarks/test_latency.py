"""What block medians say of a ratio: estimates, intervals, relations, and several engines at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from resedge.artifacts import Latency, Relation
from resedge.benchmarks.latency import (
    compare,
    eager_latency,
    further_rounds,
    ratio_interval,
    relation,
    self_check,
)
from resedge.benchmarks.rounds import Samples
from resedge.protocols import Int64Array

MS = 1_000_000


def session_of(**nanoseconds: Int64Array) -> Samples:
    """What a process has measured that saw these blocks, (rounds, calls)."""
    rounds = len(next(iter(nanoseconds.values())))
    began = {name: np.arange(rounds) for name in nanoseconds}
    return Samples(nanoseconds, began, ((),) * rounds, ())


def constant(rounds: int, calls: int, milliseconds: float) -> Int64Array:
    return np.full((rounds, calls), round(milliseconds * MS), np.int64)


def test_compare_takes_block_medians_round_by_round() -> None:
    eager = np.array([[9, 10, 90], [20, 20, 20]]) * MS
    best = eager // 2
    engine = np.array([[2, 1, 2], [4, 4, 99]]) * MS
    found = compare([session_of(eager=eager, best=best, engine=engine)], "eager", "best", "engine", 0.95)
    assert found.p50_ms == 3.0
    assert found.p50_ms_eager == 20.0
    assert found.speedup == pytest.approx(5.0)
    assert (found.speedup_low, found.speedup_high) == pytest.approx((5.0, 5.0))
    assert found.speedup_best_eager == pytest.approx(2.5)
    assert (found.relation, found.rounds, found.calls_per_block) == ("faster", 2, 3)


def test_hodges_lehmann_by_hand() -> None:
    logs = np.array([0.0, 0.1, 0.2, 0.4, 0.8, 1.6])
    walsh = sorted((logs[i] + logs[j]) / 2 for i in range(6) for j in range(i, 6))
    estimate, low, high = ratio_interval(logs, 0.95)
    assert math.log(estimate) == pytest.approx(walsh[10])  # the 11th of 21
    # P(T = 0) = 1/64 <= 2.5 % < P(T <= 1) = 2/64: the outermost averages are the ends, at 96.9 %.
    assert (math.log(low), math.log(high)) == pytest.approx((0.0, 1.6))


@pytest.mark.parametrize(("rounds", "left_out"), [(8, 3), (10, 8), (20, 52)])
def test_signed_rank_ends_are_those_of_the_tables(rounds: int, left_out: int) -> None:
    """Critical values at two-sided 5 %: 3 for n = 8, 8 for n = 10, 52 for n = 20."""
    logs = np.random.default_rng(0).normal(size=rounds)
    i, j = np.triu_indices(rounds)
    walsh = np.sort((logs[i] + logs[j]) / 2)
    _, low, high = ratio_interval(logs, 0.95)
    assert (math.log(low), math.log(high)) == pytest.approx((walsh[left_out], walsh[-1 - left_out]))


@pytest.mark.parametrize(("rounds", "confidence"), [(5, 0.95), (7, 0.999)])
def test_where_ranks_cannot_reach_the_confidence_it_is_students_t(rounds: int, confidence: float) -> None:
    logs = np.arange(rounds) / 10
    quantile = {5: 2.776445, 7: 5.958816}[rounds]
    half = quantile * float(logs.std(ddof=1)) / math.sqrt(rounds)
    estimate, low, high = ratio_interval(logs, confidence)
    assert math.log(estimate) == pytest.approx(logs.mean())
    assert (math.log(low), math.log(high)) == pytest.approx(
        (logs.mean() - half, logs.mean() + half), abs=1e-6
    )


def test_one_round_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two rounds"):
        ratio_interval(np.array([0.1]), 0.95)


@pytest.mark.parametrize("rounds", [4, 8, 20])
def test_the_interval_covers_under_heavy_tails(rounds: int) -> None:
    generator = np.random.default_rng(rounds)
    noise = 0.02 * generator.standard_t(3, size=(1500, rounds))
    covered = [low < 1.0 < high for _, low, high in (ratio_interval(row, 0.95) for row in noise)]
    assert 0.93 <= np.mean(covered) <= 0.985


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.90, 0.99, "faster"),
        (1.01, 1.10, "slower"),
        (1.001, 1.01, "equivalent"),
        (1.005, 1.03, "slower"),
        (0.99, 1.01, "equivalent"),
        (0.90, 1.01, "not slower"),
        (0.99, 1.05, "inconclusive"),
        (0.50, 1.50, "inconclusive"),
        (0.98, 1.01, "not slower"),
        (0.99, 1.02, "inconclusive"),
    ],
)
def test_relation_of_an_interval_of_time_ratios(low: float, high: float, expected: Relation) -> None:
    assert relation(low, high) == expected


@pytest.mark.parametrize(
    ("speedup", "half_width", "passes", "fails", "expected"),
    [
        (1.10, 0.20, 1.0, 1.0, 28),  # 8 (0.20 / ln 1.1)^2 = 35.2: 36 in all
        (0.90, 0.20, 1.0, 1.0, 21),  # 8 (0.20 / ln 0.9)^2 = 28.8: 29 in all
        (1.00, 0.02, 1 / 1.02, 1.0, 1),  # 8 (0.02 / ln 1.02)^2 = 8.2
        (1.00, 0.20, 1.0, 1.0, None),
    ],
)
def test_further_rounds(
    speedup: float, half_width: float, passes: float, fails: float, expected: int | None
) -> None:
    low, high = speedup * math.exp(-half_width), speedup * math.exp(half_width)
    found = Latency(1.0, 1.0, speedup, low, high, 1.0, "inconclusive", rounds=8, calls_per_block=9)
    assert further_rounds(found, passes, fails) == expected


def test_rounds_of_several_processes_are_joined_in_their_order() -> None:
    first = session_of(eager=constant(2, 4, 20.0), engine=constant(2, 6, 10.0))
    second = session_of(eager=constant(3, 5, 30.0), engine=constant(3, 9, 10.0))
    found = compare([first, second], "eager", "eager", "engine", 0.95)
    assert (found.rounds, found.processes, found.calls_per_block) == (5, (2, 3), 6)
    assert found.log_ratios == pytest.approx([math.log(2)] * 2 + [math.log(3)] * 3)
    assert found.distribution is not None
    assert found.distribution.counts == (2 * 6 + 3 * 9,)


def test_several_engines_widen_each_others_intervals() -> None:
    generator = np.random.default_rng(0)
    logs = generator.normal(0, 0.02, size=(20, 1))
    eager = np.rint(20 * MS * np.exp(logs)).astype(np.int64)
    session = session_of(eager=eager, engine=constant(20, 1, 20.0))
    alone = compare([session], "eager", "eager", "engine", 0.95)
    of_five = compare([session], "eager", "eager", "engine", 0.95, comparisons=5)
    at_99 = compare([session], "eager", "eager", "engine", 0.99)
    assert of_five.speedup == alone.speedup
    assert of_five.speedup_low < alone.speedup_low < alone.speedup_high < of_five.speedup_high
    assert (of_five.speedup_low, of_five.speedup_high) == (at_99.speedup_low, at_99.speedup_high)


def test_the_relation_is_read_from_the_widened_interval() -> None:
    steps = 0.001 + 0.004 * np.arange(-3, 17)[:, np.newaxis] / 10
    eager = np.rint(1000 * MS * np.exp(steps)).astype(np.int64)
    session = session_of(eager=eager, engine=constant(20, 1, 1000.0))
    relations = [
        compare([session], "eager", "eager", "engine", 0.95, comparisons=m).relation for m in (1, 10_000)
    ]
    assert relations == ["faster", "equivalent"]


def test_rounds_are_asked_for_where_the_relation_is_open_alone() -> None:
    generator = np.random.default_rng(1)
    logs = generator.normal(0, 0.1, size=(10, 1))
    noisy = session_of(eager=np.rint(20 * MS * np.exp(logs)).astype(np.int64), engine=constant(10, 1, 20.0))
    found = compare([noisy], "eager", "eager", "engine", 0.95)
    assert found.relation == "inconclusive"
    assert found.rounds_needed == further_rounds(found, 1 / 1.02, 1.0)
    assert found.rounds_needed
    steady = session_of(eager=constant(10, 1, 20.0), engine=constant(10, 1, 10.0))
    assert compare([steady], "eager", "eager", "engine", 0.95).rounds_needed is None


def test_eager_is_described_and_its_best_form_named() -> None:
    session = session_of(eager=constant(2, 50, 20.0), other=constant(2, 50, 15.0))
    found = eager_latency([session], [("eager", "contiguous"), ("other", "channels_last")])
    assert found.p50_ms == 20.0
    assert (found.best.memory_format, found.best.p50_ms) == ("channels_last", 15.0)
    assert found.p90_ms is not None
    assert (found.p90_ms.low, found.p90_ms.ms, found.p90_ms.high) == (20.0, 20.0, 20.0)
    assert found.p99_ms is None  # of 100 calls


@pytest.mark.parametrize(
    ("again", "relation", "alarm"),
    [(20.0, "equivalent", False), (20.6, "slower", True), (19.0, "faster", True)],
)
def test_eager_against_itself(again: float, relation: Relation, alarm: bool) -> None:
    session = session_of(eager=constant(10, 3, 20.0), again=constant(10, 3, again))
    found = self_check([session], "eager", "again")
    assert (found.relation, found.alarm) == (relation, alarm)
    assert found.ratio == pytest.approx(20.0 / again)
