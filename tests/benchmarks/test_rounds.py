"""The measurer on a machine whose time passes in its arms alone."""

from __future__ import annotations

import gc
import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from resedge.benchmarks.rounds import measure
from resedge.benchmarks.warmup import without_trend
from resedge.protocols import NoProgress

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Rig

MS = 1_000_000


def test_every_call_of_a_block_is_timed_and_three_before_it_are_not(new_rig: type[Rig]) -> None:
    rig = new_rig()
    samples = rig.run({"eager": 20.0 * MS, "engine": 5.0 * MS}, rounds=4, calls=7)
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


def test_every_arm_runs_once_a_round_in_an_order_drawn_from_the_seed(new_rig: type[Rig]) -> None:
    means = dict.fromkeys("abc", 10.0 * MS)
    orders = new_rig().run(means, rounds=300, seed=1, calls=1).orders
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6  # all orders occur, each about 50 times
    assert sum((count - 50) ** 2 / 50 for count in counts) < 20.5  # chi-squared, 5 degrees, 0.1 %
    assert orders == new_rig().run(means, rounds=300, seed=1, calls=1).orders
    assert orders != new_rig().run(means, rounds=300, seed=2, calls=1).orders


def test_a_block_lasts_as_long_as_asked_and_has_the_fewest_calls(new_rig: type[Rig]) -> None:
    rig = new_rig()
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


def test_a_slow_start_is_waited_for(new_rig: type[Rig]) -> None:
    rig = new_rig()
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


def test_an_arm_that_never_settles_is_named_and_waited_for_no_longer_than_asked(new_rig: type[Rig]) -> None:
    rig = new_rig()
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


def test_noise_is_no_change(new_rig: type[Rig]) -> None:
    samples = new_rig(noise=0.2).run({"noisy": 30.0 * MS, "steady": 10.0 * MS}, rounds=2, warm_seconds=5.0)
    assert samples.unsettled == ()


@pytest.mark.parametrize(
    ("values", "settled"),
    [
        ([3.0, 1.0, 2.0, 3.0, 2.0, 1.0, 2.5, 2.0], True),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0], False),
        ([1.0, 2.0, 4.0, 3.0, 5.0, 6.0, 7.0, 8.0, 9.0], False),
        ([1.0] * 7, False),
        ([1.0] * 8, True),
    ],
)
def test_a_trend_is_told_from_noise(values: list[float], settled: bool) -> None:
    assert without_trend(values) == settled


def test_independent_values_seldom_have_a_trend() -> None:
    drawn = np.random.default_rng(3).standard_t(2, (2000, 15))
    trends = sum(not without_trend(values.tolist()) for values in drawn)
    assert trends <= 6  # 0.1 % of 2,000 are expected; more than 6 in one of 200 such draws


def test_garbage_is_not_collected_while_timing_and_is_afterwards(new_rig: type[Rig]) -> None:
    rig = new_rig()
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


def test_garbage_is_collected_again_after_an_arm_that_fails(new_rig: type[Rig]) -> None:
    rig = new_rig()
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


def test_progress_hears_of_every_round(new_rig: type[Rig]) -> None:
    heard: list[object] = []

    class Recorder:
        def start(self, label: str, total: int) -> None:
            heard.append((label, total))

        def advance(self, units: int) -> None:
            heard.append(units)

        def finish(self) -> None:
            heard.append("end")

    rig = new_rig()
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
    ("reference", "rounds", "min_calls"), [("other", 8, 5), ("arm", 0, 5), ("arm", 8, 0)]
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


def test_the_start_of_every_block_is_kept(new_rig: type[Rig]) -> None:
    rig = new_rig()
    samples = rig.run({"a": 10.0 * MS, "b": 10.0 * MS}, rounds=3, calls=4)
    starts = sorted(int(start) for starts in samples.began.values() for start in starts)
    lengths = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert lengths == [70 * MS] * 5  # four calls, and three before the next block
    for number, order in enumerate(samples.orders):
        assert samples.began[order[0]][number] < samples.began[order[1]][number]


@pytest.mark.parametrize(("blocks", "whole"), [(0, 0), (1, 0), (2, 1), (5, 2), (6, 3)])
def test_a_stop_keeps_the_rounds_that_are_whole(new_rig: type[Rig], blocks: int, whole: int) -> None:
    rig = new_rig()
    warming, block = 2 * 3 * 10, 3 + 4  # calls of both warm-ups (three windows of 100 ms), and of a block

    def stop() -> bool:
        return len(rig.calls) >= warming + blocks * block

    samples = rig.run({"a": 10.0 * MS, "b": 10.0 * MS}, rounds=4, calls=4, stop=stop)
    assert len(samples.orders) == whole
    assert samples.interrupted
    assert {times.shape for times in samples.nanoseconds.values()} == {(whole, 4)}
    assert {len(starts) for starts in samples.began.values()} == {whole}


def test_a_stop_ends_the_warm_up(new_rig: type[Rig]) -> None:
    rig = new_rig(noise=0.3)
    samples = rig.run({"a": 10.0 * MS}, warm_seconds=1e9, stop=lambda: len(rig.calls) >= 50)
    assert (samples.orders, samples.interrupted) == ((), True)
    assert len(rig.calls) < 70
