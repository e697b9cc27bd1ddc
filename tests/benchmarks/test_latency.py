"""The measurer, measured: synthetic systems on a clock that only they move."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from resedge.artifacts import Latency, Relation
from resedge.benchmarks.latency import (
    Samples,
    compare,
    further_rounds,
    measure,
    ratio_interval,
    relation,
)
from resedge.protocols import NoProgress

MS = 1_000_000


@dataclass
class Rig:
    """A machine whose time passes in its arms alone; it drifts, hums (autocorrelated) and stalls."""

    seed: int = 0
    drift: float = 0.0
    hum: float = 0.0
    noise: float = 0.0
    stalls: float = 0.0
    now: int = 0
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.level = 0.0

    def clock(self) -> int:
        return self.now

    def arm(self, name: str, mean_ns: float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.level = 0.98 * self.level + self.random.gauss(0, self.hum)
            deviation = self.level + self.random.gauss(0, self.noise) + self.drift * self.now * 1e-10
            stall = 20 * mean_ns if self.random.random() < self.stalls else 0.0
            self.now += round(mean_ns * math.exp(deviation) + stall)

        return call


def run(rig: Rig, means: dict[str, float], *, rounds: int = 8, seed: int = 0, calls: int = 12) -> Samples:
    arms = {name: rig.arm(name, mean) for name, mean in means.items()}
    return measure(
        arms,
        next(iter(means)),
        rounds=rounds,
        block_seconds=0.0,
        min_calls=calls,
        seed=seed,
        progress=NoProgress(),
        clock=rig.clock,
    )


# --- measuring -----------------------------------------------------------------------------------


def test_every_call_of_a_block_is_timed_and_three_before_it_are_not() -> None:
    rig = Rig()
    samples = run(rig, {"eager": 20.0 * MS, "engine": 5.0 * MS}, rounds=4, calls=7)
    assert {name: times.shape for name, times in samples.nanoseconds.items()} == {
        "eager": (4, 7),
        "engine": (4, 7),
    }
    assert set(samples.nanoseconds["eager"].ravel()) == {20 * MS}
    assert set(samples.nanoseconds["engine"].ravel()) == {5 * MS}
    blocks = [rig.calls[-80:][i : i + 10] for i in range(0, 80, 10)]  # 4 rounds, 2 arms, 3 + 7 calls
    assert [len(set(block)) for block in blocks] == [1] * 8
    assert [block[0] for block in blocks] == [name for order in samples.orders for name in order]
    assert samples.unsettled == ()


def test_every_arm_runs_once_a_round_in_an_order_drawn_from_the_seed() -> None:
    means = dict.fromkeys("abc", 10.0 * MS)
    orders = run(Rig(), means, rounds=300, seed=1, calls=1).orders
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6  # all orders occur, each about 50 times
    assert sum((count - 50) ** 2 / 50 for count in counts) < 20.5  # chi-squared, 5 degrees, 0.1 %
    assert orders == run(Rig(), means, rounds=300, seed=1, calls=1).orders
    assert orders != run(Rig(), means, rounds=300, seed=2, calls=1).orders


def test_a_block_lasts_as_long_as_asked_and_has_the_fewest_calls() -> None:
    rig = Rig()
    samples = measure(
        {"slow": rig.arm("slow", 40.0 * MS), "fast": rig.arm("fast", 0.3 * MS)},
        "slow",
        rounds=2,
        block_seconds=0.1,
        min_calls=5,
        seed=0,
        progress=NoProgress(),
        clock=rig.clock,
    )
    assert samples.nanoseconds["slow"].shape == (2, 5)
    assert samples.nanoseconds["fast"].shape == (2, 334)


def test_a_slow_start_is_waited_for() -> None:
    rig = Rig()
    steps = iter([50 * MS] * 12 + [30 * MS] * 7)

    def warming() -> None:
        rig.now += next(steps, 10 * MS)

    samples = measure(
        {"arm": warming},
        "arm",
        rounds=2,
        block_seconds=0.0,
        min_calls=4,
        seed=0,
        progress=NoProgress(),
        clock=rig.clock,
        warm_seconds=30.0,
    )
    assert set(samples.nanoseconds["arm"].ravel()) == {10 * MS}
    assert samples.unsettled == ()


def test_an_arm_that_never_settles_is_named_and_waited_for_no_longer_than_asked() -> None:
    rig = Rig()
    length = iter(range(10**9))
    begun: list[int] = []

    def slowing() -> None:
        rig.now += (10 + next(length)) * MS

    def steady() -> None:
        begun.append(rig.now)
        rig.now += MS

    samples = measure(
        {"slowing": slowing, "steady": steady},
        "steady",
        rounds=2,
        block_seconds=0.0,
        min_calls=1,
        seed=0,
        progress=NoProgress(),
        clock=rig.clock,
        warm_seconds=3.0,
    )
    assert samples.unsettled == ("slowing",)
    assert 3000 * MS <= begun[0] < 3600 * MS  # a window of five calls more, at most


def test_garbage_is_not_collected_while_timing_and_is_afterwards() -> None:
    rig = Rig()
    seen: list[bool] = []

    def arm() -> None:
        seen.append(gc.isenabled())
        rig.now += 10 * MS

    assert gc.isenabled()
    measure(
        {"arm": arm},
        "arm",
        rounds=2,
        block_seconds=0.0,
        min_calls=5,
        seed=0,
        progress=NoProgress(),
        clock=rig.clock,
    )
    assert seen[-16:] == [False] * 16
    assert gc.isenabled()


def test_garbage_is_collected_again_after_an_arm_that_fails() -> None:
    rig = Rig()
    calls = iter(range(1000))

    def arm() -> None:
        rig.now += 10 * MS
        if next(calls) == 40:
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        measure(
            {"arm": arm},
            "arm",
            rounds=2,
            block_seconds=0.0,
            min_calls=50,
            seed=0,
            progress=NoProgress(),
            clock=rig.clock,
        )
    assert gc.isenabled()


def test_progress_hears_of_every_round() -> None:
    heard: list[object] = []

    class Recorder:
        def start(self, label: str, total: int) -> None:
            heard.append((label, total))

        def advance(self, units: int) -> None:
            heard.append(units)

        def finish(self) -> None:
            heard.append("end")

    rig = Rig()
    arms = {"arm": rig.arm("arm", 10.0 * MS)}
    measure(
        arms,
        "arm",
        rounds=3,
        block_seconds=0.0,
        min_calls=1,
        seed=0,
        progress=Recorder(),
        clock=rig.clock,
    )
    assert heard == [("latency", 3), 1, 1, 1, "end"]


@pytest.mark.parametrize(
    ("reference", "rounds", "min_calls"), [("other", 8, 5), ("arm", 1, 5), ("arm", 8, 0)]
)
def test_what_cannot_be_measured_is_refused(reference: str, rounds: int, min_calls: int) -> None:
    with pytest.raises(ValueError, match="cannot be measured"):
        measure(
            {"arm": lambda: None},
            reference,
            rounds=rounds,
            block_seconds=0.0,
            min_calls=min_calls,
            seed=0,
            progress=NoProgress(),
        )


# --- comparing -----------------------------------------------------------------------------------


def test_compare_takes_block_medians_round_by_round() -> None:
    eager = np.array([[9, 10, 90], [20, 20, 20]]) * MS
    best = eager // 2
    engine = np.array([[2, 1, 2], [4, 4, 99]]) * MS
    samples = Samples({"eager": eager, "best": best, "engine": engine}, (), ())
    found = compare(samples, "eager", "best", "engine", 0.95)
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


# --- sessions on a machine that drifts, hums and stalls --------------------------------------------


@pytest.mark.parametrize("time_ratio", [0.98, 1.00, 1.02, 1.10])
def test_sessions_on_a_disturbed_machine(time_ratio: float) -> None:
    """400 sessions: the interval covers the true ratio, and "faster" is said wrongly at most 6 % of times.

    Calls of 20 ms on a machine that slows down by 6 % over the session, with 1 % of autocorrelated hum,
    1 % of noise, and a stall of twenty times its length in every hundredth call.
    """
    found: list[Latency] = []
    for seed in range(400):
        rig = Rig(seed, drift=0.10, hum=0.002, noise=0.01, stalls=0.01)
        means = {"eager": 20.0 * MS, "engine": 20.0 * MS * time_ratio}
        samples = run(rig, means, rounds=8, seed=seed)
        found.append(compare(samples, "eager", "eager", "engine", 0.95))
    covered = [one.speedup_low <= 1 / time_ratio <= one.speedup_high for one in found]
    assert np.mean(covered) >= 0.93
    relations = [one.relation for one in found]
    if time_ratio >= 1:
        assert relations.count("faster") <= 24
    if time_ratio == 1.10:
        assert relations.count("slower") >= 390
    if time_ratio == 0.98:
        assert relations.count("slower") <= 24
        assert relations.count("faster") >= 200
