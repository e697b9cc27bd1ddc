"""Times a stage of the pipeline from what it reports of its progress."""

from __future__ import annotations

import time
from dataclasses import dataclass

from resedge.pipeline.reporting import Silent


@dataclass(frozen=True)
class Took:
    """Seconds of the clock, and of all processors' time for this process."""

    wall: float
    cpu: float

    @classmethod
    def until_now(cls) -> Took:
        """Return both since some fixed moment."""
        return cls(time.monotonic(), time.process_time())

    def __add__(self, other: Took) -> Took:
        return Took(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Took) -> Took:
        return Took(self.wall - other.wall, self.cpu - other.cpu)


class Stopwatch(Silent):
    """Adds up what each step took that is started, and what lies between its end and the next one."""

    def __init__(self) -> None:
        self._steps: dict[str, Took] = {}
        self._running, self._since = "before the first step", Took.until_now()

    def start(self, label: str, total: int) -> None:
        """Begin a step."""
        self._turn_to(label)

    def finish(self) -> None:
        """End a step."""
        self._turn_to(f"after {self._running}")

    def read(self) -> dict[str, Took]:
        """Return what each step took, in the order in which they began."""
        self._turn_to(self._running)
        return dict(self._steps)

    def _turn_to(self, step: str) -> None:
        now = Took.until_now()
        self._steps[self._running] = self._steps.get(self._running, Took(0, 0)) + (now - self._since)
        self._running, self._since = step, now
