"""Calling a system until its time has settled."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

Arm = Callable[[], object]
Clock = Callable[[], int]
Stop = Callable[[], bool]

_WINDOW_NS = 100_000_000
_WINDOW_CALLS = 5
_WINDOWS = 3
_AGREEMENT = 0.01


@dataclass(frozen=True)
class Warmed:
    """The median of the last window, nanoseconds, and whether the last windows agreed."""

    call_ns: float
    settled: bool


def warm_up(arm: Arm, seconds: float, clock: Clock, stop: Stop) -> Warmed:
    """Call until the medians of the last three windows agree within 1 %.

    Args:
        arm: Makes one inference.
        seconds: How long to wait for that at most.
        clock: Nanoseconds, monotonic.
        stop: Asked after each window; true ends the warm-up.
    """
    begin = clock()
    medians: deque[float] = deque(maxlen=_WINDOWS)
    while True:
        medians.append(_window_median(arm, clock))
        if len(medians) == _WINDOWS and max(medians) <= min(medians) * (1 + _AGREEMENT):
            return Warmed(medians[-1], settled=True)
        if stop() or clock() - begin >= seconds * 1e9:
            return Warmed(medians[-1], settled=False)


def _window_median(arm: Arm, clock: Clock) -> float:
    begin = clock()
    times: list[int] = []
    while len(times) < _WINDOW_CALLS or clock() - begin < _WINDOW_NS:
        called = clock()
        arm()
        times.append(clock() - called)
    return max(statistics.median(times), 1.0)
