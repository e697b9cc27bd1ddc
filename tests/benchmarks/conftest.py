"""A machine that only its own systems keep busy, shared by the tests of what times them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from resedge.benchmarks.rounds import Samples, measure, never
from resedge.protocols import NoProgress

MS = 1_000_000


@dataclass
class Rig:
    """A machine whose time passes in its arms alone.

    `drift` is by how much it slows down in ten seconds, `hum` the scatter of the steps of an AR(1) process
    (phi 0.98) of all calls, `noise` that of single calls, whose tails are Student's with three degrees of
    freedom if `heavy`; `stalls` is how often a call takes twenty times as long.
    """

    seed: int = 0
    drift: float = 0.0
    hum: float = 0.0
    noise: float = 0.0
    heavy: bool = False
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
            deviation = self.level + self.scatter() + self.drift * self.now * 1e-10
            stall = 20 * mean_ns if self.random.random() < self.stalls else 0.0
            self.now += round(mean_ns * math.exp(deviation) + stall)

        return call

    def scatter(self) -> float:
        scatter = self.random.gauss(0, self.noise)
        return scatter / math.sqrt(self.random.gammavariate(1.5, 2 / 3)) if self.heavy else scatter

    def run(
        self,
        means_ns: Mapping[str, float],
        *,
        rounds: int = 8,
        seed: int = 0,
        calls: int = 12,
        warm_seconds: float = 5.0,
        stop: Callable[[], bool] = never,
    ) -> Samples:
        """Measure arms of these mean times; the first is the reference."""
        return measure(
            {name: self.arm(name, mean) for name, mean in means_ns.items()},
            next(iter(means_ns)),
            rounds=rounds,
            block_seconds=0.0,
            min_calls=calls,
            seed=seed,
            progress=NoProgress(),
            warm_seconds=warm_seconds,
            clock=self.clock,
            stop=stop,
        )


@pytest.fixture(scope="session")
def new_rig() -> type[Rig]:
    return Rig
