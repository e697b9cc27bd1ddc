"""How long an engine takes from the start of a process to its first answer, and what memory it then holds.

    python -m resedge.pipeline.coldstart BUNDLE NAME:PRECISION THREADS

answers one frame and prints when it did, on the clock that all processes share, as JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from resedge.engines import EngineName
from resedge.errors import RuntimeUnavailable

STARTS = 5
_LONGEST_SECONDS = 300.0
_REASON_LINES = 3


@dataclass(frozen=True)
class ColdStart:
    """Starts of a process each, files in the page cache: milliseconds to the first answer, and memory.

    `peak_mib` is the largest resident size of any, MiB; `file_mb` the engine's files, millions of bytes.
    """

    starts: int
    first_answer_ms: float
    fastest_ms: float
    slowest_ms: float
    peak_mib: float
    file_mb: float


def cold_start(bundle: Path, name: EngineName, threads: int, size: int, starts: int = STARTS) -> ColdStart:
    """Start processes one after the other, and have each answer one frame.

    Args:
        bundle: The bundle's folder.
        name: The engine.
        threads: Compute threads.
        size: Bytes of the engine's files.
        starts: How many, after one that is not counted.

    Raises:
        RuntimeUnavailable: A process failed; the end of what it said is in the message.
    """
    found = [_start(bundle, name, threads) for _ in range(starts + 1)][1:]
    milliseconds = [taken for taken, _ in found]
    return ColdStart(
        starts,
        statistics.median(milliseconds),
        min(milliseconds),
        max(milliseconds),
        max(peak for _, peak in found),
        size / 1e6,
    )


def _start(bundle: Path, name: EngineName, threads: int) -> tuple[float, float]:
    """Return the milliseconds to a process's first answer, and its peak in MiB."""
    command = [sys.executable, "-m", __name__, str(bundle), ":".join(name), str(threads)]
    begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailable(
            f"{' '.join(name)} gave no first answer in {_LONGEST_SECONDS:g} s.", where=str(bundle)
        ) from error
    if done.returncode:
        reason = " ".join(done.stderr.strip().splitlines()[-_REASON_LINES:])
        raise RuntimeUnavailable(f"{' '.join(name)} failed in a new process ({reason}).", where=str(bundle))
    told = json.loads(done.stdout.splitlines()[-1])
    return (told["answered_ns"] - begin) / 1e6, told["peak_mib"]


def main() -> None:
    """Open an engine, answer one frame, and say when."""
    import numpy as np

    from resedge.pipeline.session import open_session

    bundle, engine, threads = sys.argv[1:]
    with open_session(Path(bundle), engine, threads=int(threads)) as session:
        size = session.bundle.manifest.preprocessing
        session.predict(np.zeros((1, *size.frame_shape), np.uint8))
        answered = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    sys.stdout.write(json.dumps({"answered_ns": answered, "peak_mib": _peak_mib()}) + "\n")


def _peak_mib() -> float:
    """Return the largest resident size of this program, MiB.

    getrusage's would begin with that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    main()
