"""What the kernel counts while a measurement runs: clocks, throttling, pages swapped in."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_ROOT = Path("/")
_CLOCKS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
_THROTTLES = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
_VMSTAT = "proc/vmstat"
_SECONDS_BETWEEN_CLOCKS = 1.0
_FEWEST_CLOCKS = 6


def throttle_events(root: Path = _ROOT) -> int | None:
    """Return how often the cores have been slowed down for heat since the start; None: it is not said."""
    counts = [text(path) for path in root.glob(_THROTTLES)]
    return sum(int(count) for count in counts if count.strip().isdigit()) if any(counts) else None


def pages_swapped_in(root: Path = _ROOT) -> int | None:
    """Return how many pages the machine has read back from swap since the start; None: it is not said."""
    for line in text(root / _VMSTAT).splitlines():
        name, _, value = line.partition(" ")
        if name == "pswpin":
            return int(value)
    return None


def fastest_clock(root: Path = _ROOT) -> float | None:
    """Return the clock of the fastest core now, MHz, which is the one that works; None: it is not said."""
    found = [text(path).strip() for path in root.glob(_CLOCKS)]
    return max((int(kilohertz) / 1e3 for kilohertz in found if kilohertz.isdigit()), default=None)


def span_of_thirds(clocks: Sequence[float]) -> tuple[float, float] | None:
    """Return the lowest and the highest median of the three thirds of a run; None: too few clocks."""
    if len(clocks) < _FEWEST_CLOCKS:
        return None
    third = len(clocks) // 3
    medians = [statistics.median(clocks[i * third : (i + 1) * third]) for i in range(3)]
    return min(medians), max(medians)


class Clocks:
    """Reads the fastest core's clock once a second while a with-block runs, where the machine shows it."""

    def __init__(self, root: Path = _ROOT, seconds: float = _SECONDS_BETWEEN_CLOCKS) -> None:
        self.megahertz: list[float] = []
        self._root, self._seconds = root, seconds
        self._ended = threading.Event()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Clocks:
        if fastest_clock(self._root) is not None:
            self._reader = threading.Thread(target=self._read, name="clocks", daemon=True)
            self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._reader:
            self._reader.join()

    def _read(self) -> None:
        while not self._ended.wait(self._seconds):
            clock = fastest_clock(self._root)
            if clock is not None:
                self.megahertz.append(clock)


def text(path: Path | str) -> str:
    """Return a file of the kernel's, or nothing where this system does not have it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
