"""What makes a run unfit to settle a question of time.

Interleaved rounds cancel most of what a machine does meanwhile, not all of it: a clock that falls changes
engines that compute and engines that read memory differently, and a foreign program takes caches from some
more than from others. So a run that was disturbed is called unstable, and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resedge.artifacts import SelfCheck, Stability
from resedge.benchmarks.distributions import student_quantile
from resedge.benchmarks.intervals import Float64Array
from resedge.benchmarks.latency import log_medians
from resedge.benchmarks.rounds import Samples

FOREIGN_CORES = 0.2
CLOCK_CHANGE = 0.02
DRIFT = 0.03
_DRIFT_CONFIDENCE = 0.99
_FEWEST_BLOCKS = 6


@dataclass(frozen=True)
class Seen:
    """What the machine did during a run; None where it does not say.

    `foreign_cores`: kept busy by others on average. `clock_mhz`: the lowest and the highest of the three
    thirds of the run. `throttled`: how often a core was slowed down for heat. `swapped_in`: pages.
    """

    foreign_cores: float | None = None
    clock_mhz: tuple[float, float] | None = None
    throttled: int | None = None
    swapped_in: int | None = None


def stability(sessions: Sequence[Samples], seen: Seen, check: SelfCheck | None) -> Stability:
    """Say whether a run was undisturbed.

    Args:
        sessions: From `measure`, one of each process, in order.
        seen: What the machine did meanwhile.
        check: Eager against itself in the same rounds, if that was measured.
    """
    reasons = [*_disturbances(seen), *_unsettled(sessions), *_drifts(sessions)]
    if check and check.alarm:
        reasons.append(
            f"eager came out {check.relation} than itself ({check.ratio:.3f}x, {check.low:.3f} to "
            f"{check.high:.3f}): something here favours one of two equals"
        )
    return Stability(not reasons, tuple(reasons))


def drift(seconds: Float64Array, logs: Float64Array, risk: float) -> float | None:
    """Return by how much times changed over a run, as a logarithm, by least squares on the blocks' medians.

    Args:
        seconds: When each block began, (blocks,) float64.
        logs: The logarithm of its median, (blocks,) float64, in the same order.
        risk: How often steady times may be said to drift, such as 0.01.

    Returns:
        None where the blocks are too few, or their scatter explains the change (Student's t, two-sided).
    """
    if len(seconds) < _FEWEST_BLOCKS:
        return None
    centred = seconds - seconds.mean()
    spread = float(centred @ centred)
    slope = float(centred @ logs) / spread
    residuals = logs - logs.mean() - slope * centred
    error = math.sqrt(float(residuals @ residuals) / (len(seconds) - 2) / spread)
    if abs(slope) <= student_quantile(1 - risk / 2, len(seconds) - 2) * error:
        return None
    return slope * float(seconds.max() - seconds.min())


def _disturbances(seen: Seen) -> list[str]:
    reasons: list[str] = []
    if seen.foreign_cores is not None and seen.foreign_cores > FOREIGN_CORES:
        reasons.append(f"other programs kept {seen.foreign_cores:.1f} cores busy meanwhile")
    if seen.clock_mhz is not None and seen.clock_mhz[1] > seen.clock_mhz[0] * (1 + CLOCK_CHANGE):
        low, high = seen.clock_mhz
        reasons.append(f"the processor's clock moved between {low:.0f} and {high:.0f} MHz")
    if seen.throttled:
        reasons.append(f"cores were slowed down for heat {seen.throttled:,} times")
    if seen.swapped_in:
        reasons.append(f"{seen.swapped_in:,} pages were read back from swap")
    return reasons


def _unsettled(sessions: Sequence[Samples]) -> list[str]:
    names = dict.fromkeys(name for session in sessions for name in session.unsettled)
    return [f"still changing after warm-up: {', '.join(names)}"] if names else []


def _drifts(sessions: Sequence[Samples]) -> list[str]:
    """Name the arms that became slower or faster by more than 3 % over the run."""
    measured = [session for session in sessions if session.orders]
    if not measured:
        return []
    arms = list(measured[0].nanoseconds)
    risk = (1 - _DRIFT_CONFIDENCE) / len(arms)
    found: dict[str, float] = {}
    for arm in arms:
        seconds = np.concatenate([session.began[arm] for session in measured]) / 1e9
        logs = np.concatenate([log_medians(session, arm) for session in measured])
        changed = drift(seconds, logs, risk)
        if changed is not None and abs(changed) > DRIFT:
            found[arm] = changed
    changes = [f"{arm} by {100 * math.expm1(change):+.1f} %" for arm, change in found.items()]
    return [f"times drifted over the run: {', '.join(changes)}"] if changes else []
