"""Documents of benches with known ratios, and a machine that only its own systems keep busy."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resedge.benchmarks.rounds import Samples, measure, never
from resedge.protocols import NoProgress

Document = dict[str, Any]
RESULTS = Path(__file__).parents[2] / "benchmarks/results/notebook-zen3.json"


@pytest.fixture
def older_document() -> Document:
    """A document as it was written before the newer keys were there."""
    document: Document = json.loads(RESULTS.read_text())
    return document


@pytest.fixture
def make_document() -> Callable[..., Document]:
    return full_document


def full_document(
    speedups: tuple[float, ...] = (2.0, 4.0), *, seed: int = 0, spread: float = 0.005, flips: int = 12
) -> Document:
    """Return a document with every key: one engine for each speed-up, and one that is not there."""
    from resedge.benchmarks.latency import ratio_interval, relation

    drawn = np.random.default_rng(seed)
    names = [("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "int8"), ("onnxruntime", "fp32")]
    engines: list[Document] = []
    for (runtime, precision), speedup in zip(names, speedups, strict=False):
        ratios = np.log(speedup) + drawn.normal(0, spread, 20)
        estimate, low, high = ratio_interval(ratios, 0.95)
        engines.append(
            {
                "runtime": runtime,
                "precision": precision,
                "outcome": "pass",
                "reasons": [],
                "accuracy": {
                    **{"images": 10_000, "agreement": 0.99, "max_abs_logit_error": 0.2},
                    **{"top1": 0.92, "top1_eager": 0.92 + (flips - 9) / 10_000},
                    **{"drop": (flips - 9) / 10_000, "drop_upper": 0.0015},
                    **{"negative_flips": flips, "positive_flips": 9},
                    **{"top5": 0.99, "top5_eager": 0.991, "kl": 2.5e-4, "images_needed": 20_000},
                    "worst_class": {"class": 1, "images": 1000, "drop": 0.004, "drop_upper": 0.01},
                },
                "latency": {
                    **{"p50_ms": 4 / speedup, "p50_ms_eager": 4.0},
                    **{"speedup": estimate, "speedup_low": low, "speedup_high": high},
                    **{"speedup_best_eager": estimate, "relation": relation(1 / high, 1 / low)},
                    **{"rounds": 20, "calls_per_block": 100, "processes": [7, 7, 6], "rounds_needed": None},
                    "log_ratios": ratios.tolist(),
                    **{"p90_ms": None, "p95_ms": None, "p999_ms": None},
                    "p99_ms": {"ms": 5 / speedup, "low": 4.9 / speedup, "high": 5.2 / speedup},
                    "distribution": distribution(4 / speedup),
                },
            }
        )
    missing = {"runtime": "tensorrt", "precision": "int8", "outcome": "unavailable"}
    engines.append({**missing, "reasons": ["to be built on the device"], "accuracy": None, "latency": None})
    return {
        "schema": 1,
        "model": "notebook",
        "reference": "eager, as trained",
        "conditions": {
            **{"cpu": "AMD EPYC", "threads": 2, "python": "3.11.7", "test_images": "ab" * 32},
            **{"libraries": {"torch": "2.13.0", "numpy": "2.4.6"}, "weights": "cd" * 32},
            "budget": {"max_drop": 0.005, "min_speedup": 1.0, "confidence": 0.95},
        },
        "engines": engines,
        "eager": {
            **{"p50_ms": 4.0, "p90_ms": None, "p95_ms": None, "p99_ms": None, "p999_ms": None},
            **{"distribution": distribution(4.0), "best": {"memory_format": "channels_last", "p50_ms": 3.9}},
        },
        "stability": {"stable": True, "reasons": []},
        "self_check": None,
        "partial": False,
    }


def distribution(p50: float) -> Document:
    return {"edges_ms": [p50 * factor for factor in (0.9, 1.0, 1.1, 1.3)], "counts": [40, 50, 10]}


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
