"""Calling a system until its time has settled."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Arm = Callable[[], object]
Clock = Callable[[], int]
Stop = Callable[[], bool]

_WINDOW_NS = 100_000_000
_WINDOW_CALLS = 5
_WINDOWS = 3
_AGREEMENT = 0.01
_FEWEST_FOR_A_TREND = 8  # the fewest with which a trend can be significant
_TREND = 3.2905  # standard deviations: 0.1 %, two-sided, as a bench warms up some twenty times


@dataclass(frozen=True)
class Warmed:
    """The median of the last window, nanoseconds, and whether times had stopped changing by then."""

    call_ns: float
    settled: bool


def warm_up(arm: Arm, seconds: float, clock: Clock, stop: Stop) -> Warmed:
    """Call until the medians of the last three windows agree within 1 %.

    Where a machine is too noisy for that, times have settled if the second half of the windows, or the last
    eight, has no trend.

    Args:
        arm: Makes one inference.
        seconds: How long to wait for agreement at most.
        clock: Nanoseconds, monotonic.
        stop: Asked after each window; true ends the warm-up.
    """
    begin = clock()
    medians: list[float] = []
    while True:
        medians.append(_window_median(arm, clock))
        last = medians[-_WINDOWS:]
        if len(last) == _WINDOWS and max(last) <= min(last) * (1 + _AGREEMENT):
            return Warmed(medians[-1], settled=True)
        if stop() or clock() - begin >= seconds * 1e9:
            late = max(_FEWEST_FOR_A_TREND, len(medians) // 2)
            return Warmed(medians[-1], settled=without_trend(medians[-late:]))


def without_trend(values: Sequence[float]) -> bool:
    """Say whether values rise or fall no more than chance makes independent ones do, at 0.1 %.

    The test of Mann (1945) and Kendall on the signs of all differences; it asks nothing of their
    distribution. Fewer than eight values show nothing, so they are not without a trend.
    """
    count = len(values)
    if count < _FEWEST_FOR_A_TREND:
        return False
    score = sum((later > earlier) - (later < earlier) for earlier, later in itertools.combinations(values, 2))
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return abs(score) - 1 <= _TREND * deviation


def _window_median(arm: Arm, clock: Clock) -> float:
    begin = clock()
    times: list[int] = []
    while len(times) < _WINDOW_CALLS or clock() - begin < _WINDOW_NS:
        called = clock()
        arm()
        times.append(clock() - called)
    return max(statistics.median(times), 1.0)
