"""A camera that does not wait: frames come at a fixed rate, and a late answer makes the next one late.

A loop that asks again when it was answered hides a stall: for as long as it lasts nothing is asked
("coordinated omission"). Here every frame has its time, and latency counts from then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from resedge.protocols import Int64Array

Arm = Callable[[], object]


@dataclass(frozen=True)
class CameraResult:
    """Frames at a fixed rate, and what became of them.

    `late` frames were answered after the next one was due. Milliseconds are from the moment a frame was due
    to its answer; `p99_ms` is None below 662 frames, `p999_ms` below 6,636 (what MLPerf's early stopping
    takes to allow one frame above them).
    """

    rate: float
    frames: int
    late: int
    p50_ms: float
    p99_ms: float | None
    p999_ms: float | None
    longest_ms: float


def drive(
    arm: Arm,
    rate: float,
    seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> CameraResult:
    """Answer frames at a fixed rate, one after the other.

    Args:
        arm: Makes one synchronous inference.
        rate: Frames a second, above 0.
        seconds: How long.
        clock: Nanoseconds, monotonic.
        sleep: Waits so many seconds.
    """
    period = 1e9 / rate
    latencies = np.empty(max(round(rate * seconds), 1), np.int64)
    begin = clock()
    for frame in range(len(latencies)):
        due = begin + round(frame * period)
        if (early := due - clock()) > 0:
            sleep(early / 1e9)
        arm()
        latencies[frame] = clock() - due
    return _result(latencies, rate, period)


def _result(latencies: Int64Array, rate: float, period: float) -> CameraResult:
    p50, p99, p999 = (float(value) / 1e6 for value in np.percentile(latencies, (50, 99, 99.9)))
    frames = len(latencies)
    return CameraResult(
        rate,
        frames,
        int((latencies > period).sum()),
        p50,
        p99 if frames >= 662 else None,
        p999 if frames >= 6636 else None,
        float(latencies.max()) / 1e6,
    )
