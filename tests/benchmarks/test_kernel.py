"""What the kernel's files say, and the clock that is read beside a run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from resedge.benchmarks.kernel import (
    Clocks,
    fastest_clock,
    pages_swapped_in,
    span_of_thirds,
    text,
    throttle_events,
)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine of two cores that shows everything."""
    for core, (kilohertz, events) in enumerate([(1_500_000, 2), (2_400_000, 5)]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}"
        for name, value in (
            ("cpufreq/scaling_cur_freq", kilohertz),
            ("thermal_throttle/core_throttle_count", events),
        ):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("pgpgin 7\npswpin 12\npswpout 3\n")
    return tmp_path


def test_what_a_machine_shows(machine: Path) -> None:
    assert fastest_clock(machine) == 2400.0
    assert throttle_events(machine) == 7
    assert pages_swapped_in(machine) == 12


def test_what_a_machine_does_not_show_is_unknown(tmp_path: Path) -> None:
    assert (fastest_clock(tmp_path), throttle_events(tmp_path), pages_swapped_in(tmp_path)) == (None,) * 3
    assert text(tmp_path / "scaling_governor") == ""


def test_a_clock_that_cannot_be_read_is_left_out(machine: Path) -> None:
    (machine / "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq").write_text("<unknown>\n")
    assert fastest_clock(machine) == 1500.0


@pytest.mark.parametrize(
    ("clocks", "span"),
    [
        ([], None),
        ([2.0] * 5, None),
        ([2.0, 9.0, 2.0, 2.0, 2.0, 2.0, 1.8, 1.8, 0.1], (1.8, 2.0)),
        ([3.0] * 12, (3.0, 3.0)),
    ],
)
def test_thirds_of_a_run(clocks: list[float], span: tuple[float, float] | None) -> None:
    assert span_of_thirds(clocks) == span


def test_clocks_are_read_while_the_block_runs(machine: Path) -> None:
    with Clocks(machine, seconds=0.001) as clocks:
        while len(clocks.megahertz) < 3:
            time.sleep(0.001)
    number = len(clocks.megahertz)
    time.sleep(0.01)
    assert clocks.megahertz == [2400.0] * number


def test_no_clock_no_thread(tmp_path: Path) -> None:
    with Clocks(tmp_path) as clocks:
        assert clocks._reader is None
    assert clocks.megahertz == []
