"""tegrastats beside a running benchmark: a process of its own, whose lines a thread collects."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from resedge.errors import InputRefused, RuntimeUnavailable
from resedge.jetson.tegrastats import TegraSample, parse

_PATIENCE_SECONDS = 2.0  # for a process that was asked to end, before it is killed


@dataclass(frozen=True)
class Reading:
    """A sample and when its line came, in seconds of `time.monotonic`."""

    seconds: float
    sample: TegraSample


@dataclass
class Recording:
    """What tegrastats has said so far; `refused` is the first line that was none of its own."""

    _readings: list[Reading] = field(default_factory=list)
    refused: str | None = None

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The readings in the order of their lines."""
        return tuple(self._readings)

    def add(self, line: str) -> None:
        """Keep one line, with the time."""
        now = time.monotonic()
        if not line.strip():
            return
        try:
            self._readings.append(Reading(now, parse(line)))
        except InputRefused as error:
            self.refused = self.refused or str(error)


def find() -> Path | None:
    """Return the tegrastats of this machine, None without one."""
    found = shutil.which("tegrastats")
    return Path(found) if found else None


@contextmanager
def watch(tegrastats: Path, interval_ms: int) -> Iterator[Recording]:
    """Record while a with-block runs; at its end, however it ends, the process is gone.

    Args:
        tegrastats: From `find`.
        interval_ms: Milliseconds from line to line.

    Raises:
        RuntimeUnavailable: tegrastats cannot be started.
    """
    command = [str(tegrastats), "--interval", str(interval_ms)]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own, so that it can be ended whole
        )
    except OSError as error:
        raise RuntimeUnavailable(
            f"cannot be started ({error.strerror}).",
            where=str(tegrastats),
            cure="It comes with L4T; run it by hand and see what it says.",
        ) from error
    recording = Recording()
    reader = threading.Thread(target=_collect, args=(process, recording), name="tegrastats", daemon=True)
    reader.start()
    try:
        yield recording
    finally:
        _end(process)
        reader.join()


def _collect(process: subprocess.Popen[str], recording: Recording) -> None:
    assert process.stdout is not None  # it is a pipe
    with process.stdout as lines:
        for line in lines:
            recording.add(line)


def _end(process: subprocess.Popen[str]) -> None:
    """End tegrastats and whatever it has started, which may hold its end of the pipe."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
