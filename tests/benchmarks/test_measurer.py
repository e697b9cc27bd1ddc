"""The measurer, measured: what it says of systems whose times are known.

The systems live on a clock that only they move, and every simulated session runs the real warm-up, rounds,
intervals and relations, its rounds shared between three processes. The full form (`-m slow`) has 400 sessions
a case and holds the promises of docs/verdict.md; the short one has few, and asks only for what a measurer
that keeps them would miss once in ten thousand times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import binom

from resedge.artifacts import Latency, Relation
from resedge.benchmarks.bounds import drop_upper
from resedge.benchmarks.distributions import binomial_upper
from resedge.benchmarks.latency import compare, self_check
from resedge.benchmarks.multiplicity import holm
from resedge.benchmarks.rounds import Samples

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Rig

MS = 1_000_000
SHORT, FULL = 30, 400
COVERAGE_OF_THREE_PROCESSES = 0.90
COVERAGE, FALSE_FASTER, FALSE_CERTIFICATES = 0.93, 0.06, 0.055
RATIOS = (0.90, 0.98, 1.00, 1.02, 1.10)  # of the engine's time to eager's
MACHINES: dict[str, dict[str, float]] = {
    "steady": {"noise": 0.01},
    "drifting": {"noise": 0.01, "drift": 0.10},
    "stalling": {"noise": 0.01, "stalls": 0.01},
    "humming": {"noise": 0.005, "hum": 0.004},
    "heavy-tailed": {"noise": 0.02, "heavy": True},
    "all at once": {"noise": 0.02, "heavy": True, "drift": 0.10, "hum": 0.002, "stalls": 0.01},
}


@dataclass(frozen=True)
class Promise:
    """How many of a number of sessions must be right, or may be wrong."""

    sessions: int
    exact: bool

    def at_least(self, rate: float) -> float:
        return rate * self.sessions if self.exact else float(binom.ppf(1e-4, self.sessions, rate))

    def at_most(self, rate: float) -> float:
        return rate * self.sessions if self.exact else float(binom.ppf(1 - 1e-4, self.sessions, rate))


short, full = Promise(SHORT, exact=False), Promise(FULL, exact=True)
both_forms = pytest.mark.parametrize(
    "promise", [pytest.param(short, id="short"), pytest.param(full, id="full", marks=pytest.mark.slow)]
)


def processes(rig: Rig, means_ns: dict[str, float], seed: int) -> list[Samples]:
    """Measure ten rounds, shared between three processes of one machine."""
    return [
        rig.run(means_ns, rounds=rounds, seed=1000 * seed + number, calls=8, warm_seconds=1.0)
        for number, rounds in enumerate((4, 3, 3))
    ]


def sessions(new_rig: type[Rig], machine: str, ratio: float, number: int) -> list[Latency]:
    found: list[Latency] = []
    for seed in range(number):
        rig = new_rig(seed, **MACHINES[machine])  # type: ignore[arg-type]
        means = {"eager": 20.0 * MS, "engine": 20.0 * MS * ratio}
        found.append(compare(processes(rig, means, seed), "eager", "eager", "engine", 0.95))
    return found


@both_forms
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_interval_covers_and_faster_is_true(
    new_rig: type[Rig], machine: str, ratio: float, promise: Promise
) -> None:
    found = sessions(new_rig, machine, ratio, promise.sessions)
    covered = sum(one.speedup_low <= 1 / ratio <= one.speedup_high for one in found)
    assert covered >= promise.at_least(COVERAGE)
    said = [one.relation for one in found]
    if ratio >= 1:
        assert said.count("faster") <= promise.at_most(FALSE_FASTER)
    if ratio <= 1:
        assert said.count("slower") <= promise.at_most(FALSE_FASTER)


@both_forms
@pytest.mark.parametrize("spread", [0.003, 0.005, 0.01, 0.02])
def test_processes_that_differ_are_not_taken_for_one(
    new_rig: type[Rig], spread: float, promise: Promise
) -> None:
    """Each process draws a factor of its own for the engine; three are few to tell how much they differ."""
    covered = 0
    for seed in range(promise.sessions):
        rig, factors = new_rig(seed, noise=0.01), np.random.default_rng(seed).normal(0, spread, 3)
        measured = [
            rig.run(
                {"eager": 20.0 * MS, "engine": 20.0 * MS * float(np.exp(factor))},
                rounds=rounds,
                seed=1000 * seed + number,
                calls=8,
                warm_seconds=1.0,
            )
            for number, (rounds, factor) in enumerate(zip((7, 7, 6), factors, strict=True))
        ]
        found = compare(measured, "eager", "eager", "engine", 0.95)
        covered += found.speedup_low <= 1 <= found.speedup_high
    assert covered >= promise.at_least(COVERAGE_OF_THREE_PROCESSES)


@pytest.mark.parametrize(("ratio", "word"), [(0.90, "faster"), (1.00, "equivalent"), (1.10, "slower")])
def test_what_is_plain_is_said(new_rig: type[Rig], ratio: float, word: Relation) -> None:
    said = [one.relation for one in sessions(new_rig, "steady", ratio, SHORT)]
    assert said.count(word) >= 0.9 * SHORT  # the others: true, and less sharp


@both_forms
def test_of_five_equal_engines_hardly_ever_one_is_said_to_be_faster(
    new_rig: type[Rig], promise: Promise
) -> None:
    engines = ("a", "b", "c", "d", "e")
    wrong = 0
    for seed in range(promise.sessions):
        rig = new_rig(seed, noise=0.01, hum=0.002)
        measured = processes(rig, dict.fromkeys(("eager", *engines), 20.0 * MS), seed)
        relations = [compare(measured, "eager", "eager", name, 0.95, 5).relation for name in engines]
        wrong += "faster" in relations
    assert wrong <= promise.at_most(FALSE_FASTER)


@both_forms
def test_an_honest_rig_gives_no_alarm(new_rig: type[Rig], promise: Promise) -> None:
    alarms = 0
    for seed in range(promise.sessions):
        rig = new_rig(seed, noise=0.01, hum=0.002, stalls=0.01)
        measured = processes(rig, {"eager": 20.0 * MS, "eager again": 20.0 * MS}, seed)
        alarms += self_check(measured, "eager", "eager again").alarm
    assert alarms <= promise.at_most(0.02)


def test_a_rig_that_favours_one_of_two_equals_is_found_out(new_rig: type[Rig]) -> None:
    rig = new_rig(noise=0.01)
    measured = processes(rig, {"eager": 20.0 * MS, "eager again": 21.0 * MS}, 0)
    assert self_check(measured, "eager", "eager again").alarm


# --- the certificate of accuracy -------------------------------------------------------------------


def false_certificates(
    images: int, flip_rate: float, margin: float, upper: Callable[[int, int, int], float]
) -> float:
    """Return the exact probability that an engine whose drop is the margin itself is certified.

    The negative flips b are binomial, and so are the positive ones c of the other images; the bound falls
    with c, so for each b there is a smallest c from which on it certifies.
    """
    negative, positive = (flip_rate + margin) / 2, (flip_rate - margin) / 2
    total = 0.0
    for b in range(int(binom.ppf(1e-9, images, negative)), int(binom.ppf(1 - 1e-9, images, negative)) + 1):
        refused, certified = -1, images - b + 1
        while certified - refused > 1:
            middle = (refused + certified) // 2
            if upper(b, middle, images) <= margin:
                certified = middle
            else:
                refused = middle
        chance = binom.pmf(b, images, negative)
        total += chance * binom.sf(certified - 1, images - b, positive / (1 - negative))
    return float(total)


def nominal(b: int, c: int, n: int) -> float:
    return drop_upper(b, c, n, 0.95)


SIMULATED = [(500, 0.03, 0.01), (1000, 0.02, 0.01), (2000, 0.006, 0.005), (5000, 0.03, 0.005)]
# Flip rate and margin, and the images that certify an observed drop of 0, and a true one of 0 at 80 % power.
PLANNED = [
    (0.005, 0.005, (542, 1237)),
    (0.01, 0.005, (1083, 2474)),
    (0.01, 0.01, (271, 619)),
    (0.03, 0.005, (3247, 7420)),
    (0.03, 0.01, (812, 1855)),
    (0.05, 0.005, (5412, 12366)),
    (0.05, 0.01, (1353, 3092)),
    (0.08, 0.005, (8658, 19785)),
    (0.08, 0.01, (2165, 4947)),
]


@pytest.mark.parametrize(
    ("images", "flip_rate", "margin"),
    [
        *SIMULATED,
        (539, 0.005, 0.005),
        (598, 0.005, 0.005),
        *(
            pytest.param(images, flip_rate, margin, marks=pytest.mark.slow)
            for flip_rate, margin, numbers in PLANNED
            for images in numbers
        ),
    ],
)
def test_an_engine_at_the_margin_is_hardly_ever_certified(
    images: int, flip_rate: float, margin: float
) -> None:
    assert false_certificates(images, flip_rate, margin, nominal) <= FALSE_CERTIFICATES


def test_nor_by_certifying_nothing() -> None:
    assert false_certificates(1000, 0.02, 0.01, nominal) > 0.04


@both_forms
def test_of_five_engines_at_the_margin_hardly_ever_one_is_certified(promise: Promise) -> None:
    generator = np.random.default_rng(0)
    wrong, number = 0, 5 * promise.sessions
    for _ in range(number):
        drawn = generator.multinomial(1000, [0.02, 0.01, 0.97], size=5)
        claims = {engine: partial(_certified, int(b), int(c)) for engine, (b, c, _) in enumerate(drawn)}
        held_to = holm(claims, 0.95)
        wrong += any(claims[engine](level) for engine, level in held_to.items())
    allowed = Promise(number, promise.exact)
    assert wrong <= allowed.at_most(FALSE_CERTIFICATES)


def _certified(b: int, c: int, confidence: float) -> bool:
    return drop_upper(b, c, 1000, confidence) <= 0.01


@pytest.mark.parametrize(("images", "differing"), [(1000, 3), (5000, 20)])
def test_agreement_bounds_the_drop_without_labels(images: int, differing: int) -> None:
    """At the upper bound so few differing predictions, or fewer, are seen in 5 % of all tests."""
    rate = binomial_upper(differing, images, 0.95)
    assert binom.cdf(differing, images, rate) == pytest.approx(0.05)
