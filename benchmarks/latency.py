"""Interleaved timing of engines beside eager, and what it says of their ratio.

Timing one system after the other calls equal systems different as soon as the machine warms up. Here every
system ("arm") runs one block in each round, in random order; a round gives one log ratio of block
medians, and only those few are treated as independent: single calls are autocorrelated.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Latency, Relation
from resedge.benchmarks.distributions import signed_rank_cdf, student_quantile
from resedge.protocols import Int64Array, Progress

Arm = Callable[[], object]
Clock = Callable[[], int]
Float64Array = npt.NDArray[np.float64]

EQUIVALENT_WITHIN = 0.02

_CALLS_BEFORE_A_BLOCK = 3
_WARM_WINDOW_NS = 100_000_000
_WARM_WINDOW_CALLS = 5
_WARM_WINDOWS = 3
_WARM_AGREEMENT = 0.03
_FEWEST_PAIRS_FOR_RANKS = 6


@dataclass(frozen=True)
class Samples:
    """What `measure` saw: the nanoseconds of every call.

    `nanoseconds` maps an arm to (rounds, calls) int64, `orders` has each round's order of the arms,
    and `unsettled` names the arms that were still changing when their warm-up ended.
    """

    nanoseconds: Mapping[str, Int64Array]
    orders: tuple[tuple[str, ...], ...]
    unsettled: tuple[str, ...]


def measure(
    arms: Mapping[str, Arm],
    reference: str,
    *,
    rounds: int,
    block_seconds: float,
    min_calls: int,
    seed: int,
    progress: Progress,
    warm_seconds: float = 5.0,
    clock: Clock = time.perf_counter_ns,
) -> Samples:
    """Time arms in interleaved blocks.

    Args:
        arms: Functions that make one synchronous inference each.
        reference: The arm that the others will be compared with.
        rounds: Blocks of each arm, at least 2.
        block_seconds: How long a block is to last; an arm's number of calls follows from its warm-up
            and is the same in all rounds.
        min_calls: The fewest calls of a block, at least 1.
        seed: Of the order of the arms, drawn anew for each round.
        progress: Told of each round.
        warm_seconds: When to stop warming an arm up that does not settle.
        clock: Nanoseconds, monotonic.

    Raises:
        ValueError: The reference is not an arm, or there are too few rounds or calls.
    """
    if reference not in arms or rounds < 2 or min_calls < 1:
        raise ValueError(f"{reference=} of {list(arms)}, {rounds=}, {min_calls=} cannot be measured")
    calls: dict[str, int] = {}
    unsettled: list[str] = []
    progress.start("latency", rounds)
    for name, arm in arms.items():
        call_ns, settled = _warm_up(arm, warm_seconds, clock)
        calls[name] = max(min_calls, math.ceil(block_seconds * 1e9 / call_ns))
        if not settled:
            unsettled.append(name)
    nanoseconds = {name: np.empty((rounds, calls[name]), np.int64) for name in arms}
    orders: list[tuple[str, ...]] = []
    shuffle = random.Random(seed)
    for number in range(rounds):
        order = tuple(shuffle.sample(list(arms), len(arms)))
        for name in order:
            with _no_garbage_collection():
                _time_block(arms[name], nanoseconds[name][number], clock)
        orders.append(order)
        progress.advance(1)
    progress.finish()
    return Samples(nanoseconds, tuple(orders), tuple(unsettled))


def compare(samples: Samples, reference: str, best_eager: str, engine: str, confidence: float) -> Latency:
    """Compare one arm with the reference and with eager's best form.

    Args:
        samples: From `measure`.
        reference: The arm of eager as it was loaded.
        best_eager: The arm of eager in its fastest memory format.
        engine: The arm that is judged.
        confidence: Of the two-sided interval of the ratio, such as 0.95.
    """
    speedup, low, high = ratio_interval(_log_ratios(samples, reference, engine), confidence)
    over_best, _, _ = ratio_interval(_log_ratios(samples, best_eager, engine), confidence)
    rounds, calls = samples.nanoseconds[engine].shape
    return Latency(
        p50_ms=_p50_ms(samples, engine),
        p50_ms_eager=_p50_ms(samples, reference),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        speedup_best_eager=over_best,
        relation=relation(1 / high, 1 / low),
        rounds=rounds,
        calls_per_block=calls,
    )


def ratio_interval(log_ratios: Float64Array, confidence: float) -> tuple[float, float, float]:
    """Return the estimate of a ratio and its two-sided interval, (estimate, low, high).

    From six rounds on: the Hodges-Lehmann estimate (the median of the Walsh averages) and the interval
    of the signed-rank test's order statistics (Hodges and Lehmann 1963, Ann. Math. Statist. 34:598-611;
    Hollander and Wolfe, Nonparametric Statistical Methods, section 3.3), whose confidence is at least
    the one asked for. With fewer, or where the ranks of so few cannot reach that confidence: the mean
    and Student's t.

    Args:
        log_ratios: (rounds,) float64, natural logarithms of one round's ratio each.
        confidence: In (0, 1).

    Raises:
        ValueError: There are fewer than two rounds.
    """
    pairs = len(log_ratios)
    if pairs < 2:
        raise ValueError("an interval needs at least two rounds")
    # Of the ordered Walsh averages, this many are left out at either end.
    outside = int((signed_rank_cdf(pairs) <= (1 - confidence) / 2).sum())
    if pairs >= _FEWEST_PAIRS_FOR_RANKS and outside:
        i, j = np.triu_indices(pairs)
        walsh = np.sort((log_ratios[i] + log_ratios[j]) / 2)
        middle, low, high = float(np.median(walsh)), walsh[outside - 1], walsh[-outside]
    else:
        middle = float(log_ratios.mean())
        error = float(log_ratios.std(ddof=1)) / math.sqrt(pairs)
        half_width = student_quantile((1 + confidence) / 2, pairs - 1) * error
        low, high = middle - half_width, middle + half_width
    return math.exp(middle), math.exp(low), math.exp(high)


def relation(low: float, high: float, eps: float = EQUIVALENT_WITHIN) -> Relation:
    """Say what an interval of the engine's time over eager's means.

    Args:
        low: The lower end; above 1 the engine is slower.
        high: The upper end; below 1 the engine is faster.
        eps: By how much two times may differ and count as equal.
    """
    if high < 1:
        return "faster"
    if high < 1 + eps:
        return "equivalent" if low > 1 - eps else "not slower"
    return "slower" if low > 1 else "inconclusive"


def further_rounds(latency: Latency, passes_above: float, fails_below: float) -> int | None:
    """Return about how many more rounds would settle whether the speed-up is enough.

    An interval narrows with the square root of the rounds; it has to leave the nearer line outside:
    `passes_above` below it, or `fails_below` above it. None if the estimate lies on the line.
    """
    half_width = math.log(latency.speedup_high / latency.speedup_low) / 2
    distance = max(math.log(latency.speedup / passes_above), math.log(fails_below / latency.speedup))
    if distance <= 0:
        return None
    needed = math.ceil(latency.rounds * (half_width / distance) ** 2)
    return max(needed - latency.rounds, 1)


def _log_ratios(samples: Samples, numerator: str, denominator: str) -> Float64Array:
    above, below = (np.log(np.median(samples.nanoseconds[name], axis=1)) for name in (numerator, denominator))
    ratios: Float64Array = above - below
    return ratios


def _p50_ms(samples: Samples, arm: str) -> float:
    return float(np.median(samples.nanoseconds[arm])) / 1e6


def _warm_up(arm: Arm, seconds: float, clock: Clock) -> tuple[float, bool]:
    """Call until three windows' medians agree; return the last in ns, and whether they did."""
    begin = clock()
    medians: deque[float] = deque(maxlen=_WARM_WINDOWS)
    while True:
        medians.append(_window_median(arm, clock))
        if len(medians) == _WARM_WINDOWS and max(medians) <= min(medians) * (1 + _WARM_AGREEMENT):
            return medians[-1], True
        if clock() - begin >= seconds * 1e9:
            return medians[-1], False


def _window_median(arm: Arm, clock: Clock) -> float:
    begin = clock()
    times: list[int] = []
    while len(times) < _WARM_WINDOW_CALLS or clock() - begin < _WARM_WINDOW_NS:
        called = clock()
        arm()
        times.append(clock() - called)
    return max(statistics.median(times), 1.0)


def _time_block(arm: Arm, into: Int64Array, clock: Clock) -> None:
    """Call once for each place of `into`, (calls,) int64, and write the nanoseconds there."""
    for _ in range(_CALLS_BEFORE_A_BLOCK):
        arm()
    for call in range(len(into)):
        begin = clock()
        arm()
        into[call] = clock() - begin


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
