"""The camera's clock: latency counts from when a frame was due, on a clock that is moved by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from resedge.benchmarks import camera


@pytest.fixture
def world() -> SimpleNamespace:
    """A clock in nanoseconds, a sleep that moves it, and an arm whose calls take what `takes` gives."""
    found = SimpleNamespace(now=0, takes=lambda _call: 6_000_000, calls=0)

    def arm() -> None:
        found.now += found.takes(found.calls)
        found.calls += 1

    def sleep(seconds: float) -> None:
        found.now += round(seconds * 1e9)

    found.arm, found.sleep, found.clock = arm, sleep, lambda: found.now
    return found


def drive(world: SimpleNamespace, rate: float, seconds: float) -> camera.CameraResult:
    return camera.drive(world.arm, rate, seconds, world.clock, world.sleep)


def test_an_engine_that_keeps_up_is_as_slow_as_it_is(world: SimpleNamespace) -> None:
    result = drive(world, rate=100, seconds=10)
    assert (result.frames, result.late) == (1000, 0)
    assert result.p50_ms == result.p99_ms == result.longest_ms == 6
    assert world.now == 999 * 10_000_000 + 6_000_000


def test_a_stall_delays_the_frames_behind_it(world: SimpleNamespace) -> None:
    world.takes = lambda call: 200_000_000 if call % 500 == 100 else 6_000_000
    result = drive(world, rate=100, seconds=20)
    assert result.p50_ms == 6
    assert result.p99_ms is not None
    assert 150 < result.p99_ms < 200  # a loop that waits for its answers would have seen 6
    assert result.longest_ms == 200
    # Each of the four stalls leaves 190 ms behind, and each frame after it makes 4 of them up.
    assert result.late == 4 * (1 + 47)


def test_an_engine_that_is_too_slow_falls_behind_for_good(world: SimpleNamespace) -> None:
    world.takes = lambda _call: 11_000_000
    result = drive(world, rate=100, seconds=5)
    assert result.late == 500
    assert result.longest_ms == 11 + 499


def test_tails_only_where_there_are_frames_enough(world: SimpleNamespace) -> None:
    assert drive(world, rate=100, seconds=6.61).p99_ms is None
    assert drive(world, rate=100, seconds=6.62).p99_ms == 6
    assert drive(world, rate=100, seconds=66.35).p999_ms is None
    assert drive(world, rate=100, seconds=66.36).p999_ms == 6
