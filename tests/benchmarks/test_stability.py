"""What disturbs a run is named; steady runs are left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from resedge.artifacts import SelfCheck, Stability
from resedge.benchmarks.rounds import Samples
from resedge.benchmarks.stability import Seen, drift, stability

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Rig

MS = 1_000_000
MEANS = {"eager": 20.0 * MS, "engine": 10.0 * MS}
QUIET = Seen(foreign_cores=0.1, clock_mhz=(2980.0, 3000.0), throttled=0, swapped_in=0)


@pytest.fixture
def steady(new_rig: type[Rig]) -> Samples:
    return new_rig(noise=0.01).run(MEANS)


@pytest.mark.parametrize("seen", [Seen(), QUIET])
def test_a_quiet_run_is_stable(steady: Samples, seen: Seen) -> None:
    assert stability([steady], seen, SelfCheck("equivalent", 1.0, 0.99, 1.01, alarm=False)) == Stability(True)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Seen(foreign_cores=0.31), "other programs kept 0.3 cores busy meanwhile"),
        (Seen(clock_mhz=(2900.0, 3000.0)), "the processor's clock moved between 2900 and 3000 MHz"),
        (Seen(throttled=2), "cores were slowed down for heat 2 times"),
        (Seen(swapped_in=1234), "1,234 pages were read back from swap"),
    ],
)
def test_what_the_machine_did_is_named(steady: Samples, seen: Seen, words: str) -> None:
    assert stability([steady], seen, None) == Stability(False, (words,))


def test_arms_that_did_not_settle_are_named_once(steady: Samples) -> None:
    unsettled = Samples(steady.nanoseconds, steady.began, steady.orders, ("engine",))
    found = stability([unsettled, unsettled], Seen(), None)
    assert found == Stability(False, ("still changing after warm-up: engine",))


def test_an_alarm_makes_a_run_unstable(steady: Samples) -> None:
    found = stability([steady], Seen(), SelfCheck("slower", 0.95, 0.94, 0.96, alarm=True))
    assert not found.stable
    assert found.reasons[0].startswith("eager came out slower than itself (0.950x, 0.940 to 0.960)")


def test_a_machine_that_slows_down_is_said_to_drift(new_rig: type[Rig]) -> None:
    rig = new_rig(drift=0.1, noise=0.01)
    found = stability([rig.run(MEANS, rounds=12, calls=30)], Seen(), None)
    assert not found.stable
    (reason,) = found.reasons
    assert reason.startswith("times drifted over the run: eager by +")
    assert "engine by +" in reason


def test_drift_is_seen_from_one_process_to_the_next(new_rig: type[Rig]) -> None:
    rig = new_rig(noise=0.002)
    cold = rig.run(MEANS, rounds=4)
    warm = rig.run({name: 1.05 * mean for name, mean in MEANS.items()}, rounds=4)
    assert stability([cold], Seen(), None).stable
    assert not stability([cold, warm], Seen(), None).stable


def test_the_change_over_a_run_by_hand() -> None:
    seconds = np.arange(8.0)
    assert drift(seconds, 0.01 * seconds, 0.01) == pytest.approx(0.07)
    assert drift(seconds, -0.01 * seconds, 0.01) == pytest.approx(-0.07)
    assert drift(seconds, np.zeros(8), 0.01) is None
    assert drift(seconds[:5], 0.01 * seconds[:5], 0.01) is None  # too few to tell


def test_scatter_is_no_drift() -> None:
    """Steady times with 10 % of scatter, at a risk of 1 %: of 1000 runs hardly more than ten are accused."""
    generator = np.random.default_rng(0)
    accused = [drift(np.arange(20.0), generator.normal(0, 0.1, 20), 0.01) for _ in range(1000)]
    assert 1 <= sum(change is not None for change in accused) <= 20
