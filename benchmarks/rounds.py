"""Timing systems in interleaved rounds.

Timing one system after the other calls equal systems different as soon as the machine warms up. Here every
system ("arm") runs one block in each round, in random order, so that each arm's block makes a pair with the
reference's of the same round, in either order with the same odds.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from resedge.benchmarks.warmup import Arm, Clock, Stop, warm_up
from resedge.protocols import Int64Array, Progress

_CALLS_BEFORE_A_BLOCK = 3


@dataclass(frozen=True)
class Samples:
    """What one process has measured: the nanoseconds of every call.

    `nanoseconds` maps an arm to (rounds, calls) int64, `began` to the clock at the start of each of its
    blocks, (rounds,) int64. `orders` has each round's order of the arms, and `unsettled` names the arms that
    were still changing when their warm-up ended. `interrupted`: fewer rounds than asked for, all of them
    whole.
    """

    nanoseconds: Mapping[str, Int64Array]
    began: Mapping[str, Int64Array]
    orders: tuple[tuple[str, ...], ...]
    unsettled: tuple[str, ...]
    interrupted: bool = False


def never() -> bool:
    """Go on to the end."""
    return False


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
    stop: Stop = never,
) -> Samples:
    """Time arms in interleaved blocks.

    Args:
        arms: Functions that make one synchronous inference each.
        reference: The arm that the others will be compared with.
        rounds: Blocks of each arm.
        block_seconds: How long a block is to last; an arm's number of calls follows from its warm-up
            and is the same in all rounds.
        min_calls: The fewest calls of a block, at least 1.
        seed: Of the order of the arms, drawn anew for each round.
        progress: Told of each round.
        warm_seconds: When to stop warming an arm up that does not settle.
        clock: Nanoseconds, monotonic, the same for all processes of the machine.
        stop: Asked between blocks; true ends the measurement with the rounds that are whole.

    Raises:
        ValueError: The reference is not an arm, or there are too few rounds or calls.
    """
    if reference not in arms or rounds < 1 or min_calls < 1:
        raise ValueError(f"{reference=} of {list(arms)}, {rounds=}, {min_calls=} cannot be measured")
    progress.start("latency", rounds)
    warmed = {name: warm_up(arm, warm_seconds, clock, stop) for name, arm in arms.items()}
    calls = {name: max(min_calls, math.ceil(block_seconds * 1e9 / w.call_ns)) for name, w in warmed.items()}
    nanoseconds = {name: np.empty((rounds, calls[name]), np.int64) for name in arms}
    began = {name: np.empty(rounds, np.int64) for name in arms}
    orders: list[tuple[str, ...]] = []
    shuffle = random.Random(seed)
    for number in range(rounds):
        order = tuple(shuffle.sample(list(arms), len(arms)))
        starts = _time_round([(arms[name], nanoseconds[name][number]) for name in order], clock, stop)
        if starts is None:
            break
        for name, start in zip(order, starts, strict=True):
            began[name][number] = start
        orders.append(order)
        progress.advance(1)
    progress.finish()
    whole = len(orders)
    return Samples(
        {name: times[:whole] for name, times in nanoseconds.items()},
        {name: times[:whole] for name, times in began.items()},
        tuple(orders),
        tuple(name for name, w in warmed.items() if not w.settled),
        interrupted=whole < rounds,
    )


def _time_round(blocks: Sequence[tuple[Arm, Int64Array]], clock: Clock, stop: Stop) -> list[int] | None:
    """Time one block of each arm into its place; return their starts, None where a stop came between."""
    starts: list[int] = []
    for arm, into in blocks:
        if stop():
            return None
        with _no_garbage_collection():
            starts.append(_time_block(arm, into, clock))
    return starts


def _time_block(arm: Arm, into: Int64Array, clock: Clock) -> int:
    """Call once for each place of `into`, (calls,) int64, and write its nanoseconds; return the start."""
    for _ in range(_CALLS_BEFORE_A_BLOCK):
        arm()
    start = clock()
    for call in range(len(into)):
        begin = clock()
        arm()
        into[call] = clock() - begin
    return start


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
