"""What a measurement was made under: the processor, the software, and what else the machine was doing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from resedge.artifacts import JsonValue
from resedge.benchmarks.kernel import Clocks, pages_swapped_in, span_of_thirds, text, throttle_events
from resedge.benchmarks.stability import Seen
from resedge.benchmarks.telemetry import ROUNDS_INTERVAL_MS, summary
from resedge.jetson.recording import Recording, watch

# The extensions of the instruction set that decide how fast INT8 and FP32 engines are on x86.
ISA_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")

_GOVERNOR = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"


def conditions(threads: int, libraries: Iterable[str]) -> dict[str, JsonValue]:
    """Describe this machine and its software.

    Args:
        threads: The compute threads that every arm was given.
        libraries: Names of installed distributions, such as "torch"; numpy is added, and one that is
            not installed is left out.
    """
    cpuinfo = text("/proc/cpuinfo")
    cpus = sorted(os.sched_getaffinity(0))
    return {
        "cpu": cpu_model(cpuinfo),
        "cpus_available": len(cpus),
        "isa": list(isa_flags(cpuinfo)),
        "governor": governor([text(_GOVERNOR.format(cpu)) for cpu in cpus]),
        "threads": threads,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": dict(library_versions(("numpy", *libraries))),
    }


class Watch:
    """Watches the machine while a with-block runs; `found` says what else it did meanwhile.

    Args:
        tegrastats: A Jetson's, None elsewhere.
    """

    def __init__(self, tegrastats: Path | None = None) -> None:
        self._tegrastats = tegrastats
        self._recording: Recording | None = None
        self._open = ExitStack()

    def __enter__(self) -> Watch:
        """Begin.

        Raises:
            RuntimeUnavailable: tegrastats cannot be started.
        """
        if self._tegrastats:
            self._recording = self._open.enter_context(watch(self._tegrastats, ROUNDS_INTERVAL_MS))
        self._clocks = self._open.enter_context(Clocks())
        self._load = os.getloadavg()[0]
        self._before = self._after = _moment()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        self._after = _moment()
        self._open.close()

    def seen(self) -> Seen:
        """Return what the machine did during the block."""
        return Seen(
            foreign_cores(self._before, self._after),
            span_of_thirds(self._clocks.megahertz),
            _increase(self._before.throttled, self._after.throttled),
            _increase(self._before.swapped_in, self._after.swapped_in),
        )

    def found(self) -> dict[str, JsonValue]:
        """Return the load average before, and what else the machine did during the block.

        None where the system does not say. On a Jetson: what tegrastats said, too.
        """
        seen = self.seen()
        found: dict[str, JsonValue] = {
            "load_average_before": round(self._load, 2),
            "foreign_cpu_cores": seen.foreign_cores,
            "clock_mhz": seen.clock_mhz,
            "throttled": seen.throttled,
            "pages_swapped_in": seen.swapped_in,
        }
        if self._recording:
            found["tegrastats"] = summary(self._recording, ROUNDS_INTERVAL_MS)
        return found


@dataclass(frozen=True)
class Moment:
    """Seconds: of the clock, of CPU used by the whole machine (None: unknown), and by this process.

    `throttled` and `swapped_in` count since the machine's start (None: unknown).
    """

    clock: float
    machine: float | None
    own: float
    throttled: int | None = None
    swapped_in: int | None = None


def foreign_cores(before: Moment, after: Moment) -> float | None:
    """Return how many cores others kept busy on average between two moments."""
    seconds = after.clock - before.clock
    if before.machine is None or after.machine is None or seconds <= 0:
        return None
    foreign = (after.machine - before.machine) - (after.own - before.own)
    return round(max(foreign, 0.0) / seconds, 3)  # the two counters tick apart by up to 10 ms


def busy_ticks(stat: str) -> int | None:
    """Return the busy clock ticks of all cores from the text of /proc/stat, None if it has none.

    Time stolen by a hypervisor counts, idle time and waiting for a disk do not; a guest's time is
    in the user time already.
    """
    for line in stat.splitlines():
        name, *fields = line.split()
        if name == "cpu" and len(fields) >= 8:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            return user + nice + system + irq + softirq + steal
    return None


def cpu_model(cpuinfo: str) -> str | None:
    """Return the processor's name from the text of /proc/cpuinfo, None if it is not named."""
    return _field(cpuinfo, "model name")


def isa_flags(cpuinfo: str) -> tuple[str, ...]:
    """Return those of `ISA_FLAGS` that the text of /proc/cpuinfo names."""
    flags = (_field(cpuinfo, "flags") or "").split()
    return tuple(flag for flag in ISA_FLAGS if flag in flags)


def governor(texts: Iterable[str]) -> str | None:
    """Return the frequency governors of the cores, "performance" say, None if they cannot be read."""
    return ", ".join(sorted({text.strip() for text in texts} - {""})) or None


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # eager alone needs no runtime, a device no torch
    return versions


def _moment() -> Moment:
    ticks = busy_ticks(text("/proc/stat"))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Moment(
        clock=time.monotonic(),
        machine=None if ticks is None else ticks / os.sysconf("SC_CLK_TCK"),
        own=sum(usage.ru_utime + usage.ru_stime for usage in used),
        throttled=throttle_events(),
        swapped_in=pages_swapped_in(),
    )


def _increase(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _field(cpuinfo: str, name: str) -> str | None:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
