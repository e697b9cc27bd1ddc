"""Run as a module by `timing_processes.py`: time one job in this fresh process, and write what was measured.

The argument is the folder of `timing_files.py`. Each round is a line on standard output. An interrupt ends
the rounds after the block that is running, and what is whole is written. Exits with the code of the error,
and its message on standard error, where there is no answer.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from resedge.errors import ResedgeError
from resedge.pipeline.timing import time_here
from resedge.pipeline.timing_files import read_job, write_samples
from resedge.protocols import NoProgress

ROUND = "round"


class _Told(NoProgress):
    """Writes a line a round; where nobody reads any more, that fails and so ends this process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def advance(self, units: int) -> None:
        self._stream.write(f"{ROUND}\n" * units)
        self._stream.flush()


def main(arguments: list[str]) -> int:
    """Time one job; return the exit code."""
    stopping = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    folder = Path(arguments[0])
    try:
        with _own_output() as stream:
            job, inputs = read_job(folder)
            write_samples(folder, time_here(job, inputs, _Told(stream), stopping.is_set))
    except ResedgeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _own_output() -> TextIO:
    """Return standard output for the rounds alone; what libraries print goes to standard error."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return stream


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
