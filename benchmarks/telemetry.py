"""What tegrastats says of a Jetson while engines run: power, temperatures, clocks, memory, energy an image.

Nothing of it happens in the loop that takes times. While that loop runs, tegrastats gives one line a second,
from a process of its own. Energy is not taken from those rounds: their blocks are shorter than the rails need
to settle, and reading the rails more often would take the processor from what is being timed. Instead every
engine runs alone afterwards for a few seconds, back to back at batch 1, and the rails are read ten times a
second; what the reading itself takes is in the figure, for the rails feed it too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resedge.artifacts import JsonValue
from resedge.jetson.device import Jetson
from resedge.jetson.power import energy, total_rule, total_watts
from resedge.jetson.recording import Reading, Recording, watch
from resedge.jetson.tegrastats import TegraSample

ROUNDS_INTERVAL_MS = 1000
_ENERGY_INTERVAL_MS = 100
_SETTLE_SECONDS = 0.5
_ENERGY_SECONDS = 3.0


@dataclass(frozen=True)
class Energy:
    """One engine, run back to back alone, from the first reading of the rails to the last.

    `images` has fractions, because readings fall into inferences. `rails` maps each rail to its mean, watts.
    `watts` and `joules_per_image` are of the total, which follows from the rails by `rule`; None where the
    rails allow none, or there were fewer than two readings.
    """

    readings: int
    seconds: float
    images: float
    rails: Mapping[str, float]
    rule: str | None
    watts: float | None
    joules_per_image: float | None


def sustained(
    arm: Callable[[], object],
    tegrastats: Path,
    *,
    settle_seconds: float = _SETTLE_SECONDS,
    seconds: float = _ENERGY_SECONDS,
    interval_ms: int = _ENERGY_INTERVAL_MS,
) -> Energy:
    """Run one engine back to back and return the energy that it took.

    Args:
        arm: A function that makes one synchronous inference of one image.
        tegrastats: From `resedge.jetson.recording.find`.
        settle_seconds: How long it runs before readings count.
        seconds: How long it runs while they do.
        interval_ms: From reading to reading.

    Raises:
        RuntimeUnavailable: tegrastats cannot be started.
    """
    ends = [time.monotonic()]
    with watch(tegrastats, interval_ms) as recording:
        while ends[-1] < ends[0] + settle_seconds + seconds:
            arm()
            ends.append(time.monotonic())
    counted = [r for r in recording.readings if ends[0] + settle_seconds <= r.seconds <= ends[-1]]
    return energy_between(ends, counted)


def energy_between(ends: Sequence[float], readings: Sequence[Reading]) -> Energy:
    """Return the energy between the first and the last of some readings.

    Args:
        ends: Seconds at which the first inference began and at which each one ended.
        readings: Within that time, in its order.
    """
    rails = _mean_rails(reading.sample for reading in readings)
    if len(readings) < 2:
        return Energy(len(readings), 0.0, 0.0, rails, None, None, None)
    times = [reading.seconds for reading in readings]
    first, last = np.interp([times[0], times[-1]], ends, np.arange(len(ends)))
    seconds, images = times[-1] - times[0], float(last - first)
    watts = [total_watts(reading.sample.rails) for reading in readings]
    known = [value for value in watts if value is not None]
    if len(known) < len(watts):
        return Energy(len(readings), seconds, images, rails, None, None, None)
    joules = energy(list(zip(times, known, strict=True)))
    rule = total_rule(readings[0].sample.rails)
    return Energy(len(readings), seconds, images, rails, rule, joules / seconds, joules / images)


def summary(recording: Recording, interval_ms: int) -> dict[str, JsonValue]:
    """Return what was recorded: mean power (W), each sensor at its hottest (°C), spans of clocks.

    What no line said is left out. Clocks in MHz, memory in MB (2^20 bytes).
    """
    samples = [reading.sample for reading in recording.readings]
    watts = [value for sample in samples if (value := total_watts(sample.rails)) is not None]
    rules = [rule for sample in samples if (rule := total_rule(sample.rails))]
    sensors = sorted({name for sample in samples for name in sample.temperatures})
    found: dict[str, JsonValue] = {
        "rails_w": dict(_mean_rails(samples)),
        "power_w": statistics.fmean(watts) if watts else None,
        "power_rule": rules[0] if rules else None,
        "temperatures_c": {
            name: max(s.temperatures[name] for s in samples if name in s.temperatures) for name in sensors
        },
        "cpu_mhz": _span(clock for s in samples for core in s.cores if core for clock in core.clocks),
        "gpu_mhz": _span(clock for s in samples if s.gpu for clock in s.gpu.clocks),
        "emc_mhz": _span(clock for s in samples if s.emc for clock in s.emc.clocks),
        "ram_used_mb": max((s.ram.used for s in samples if s.ram), default=None),
        "ram_total_mb": max((s.ram.total for s in samples if s.ram), default=None),
        "refused": recording.refused,
    }
    said = {name: value for name, value in found.items() if value not in (None, {}, [])}
    return {"interval_ms": interval_ms, "readings": len(samples), **said}


def settings(device: Jetson) -> dict[str, JsonValue]:
    """Return those facts of a Jetson that decide how fast it is."""
    mode = device.power_mode
    return {
        "module": device.module or device.model,
        "l4t": device.l4t,
        "power_mode": (mode.name or str(mode.number)) if mode else None,
        "clocks_locked": device.clocks_locked,
    }


def _mean_rails(samples: Iterable[TegraSample]) -> dict[str, float]:
    """Return each rail's mean, watts."""
    watts: dict[str, list[float]] = {}
    for sample in samples:
        for name, rail in sample.rails.items():
            watts.setdefault(name, []).append(rail.current / 1e3)
    return {name: statistics.fmean(values) for name, values in watts.items()}


def _span(clocks: Iterable[int]) -> list[int]:
    """Return the lowest and the highest, or nothing of nothing."""
    values = list(clocks)
    return [min(values), max(values)] if values else []
