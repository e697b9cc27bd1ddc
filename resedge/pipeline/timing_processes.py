"""Timing in several fresh processes, one after the other.

How memory is laid out and which kernels a library chooses is drawn once a process, and is then the same in
all of its rounds; so the rounds are shared between processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from resedge.errors import InputRefused, MachineFailure, ResedgeError, RuntimeUnavailable
from resedge.pipeline.timing import Inputs, Job
from resedge.pipeline.timing_child import ROUND
from resedge.pipeline.timing_files import read_samples, write_job
from resedge.protocols import Progress

if TYPE_CHECKING:
    from resedge.benchmarks.rounds import Samples

FEWEST_ROUNDS = 2

_CHILD = "resedge.pipeline.timing_child"
_ERRORS: dict[int, type[ResedgeError]] = {
    kind.exit_code: kind for kind in (InputRefused, RuntimeUnavailable, MachineFailure)
}
_LAST = 2000  # characters of what a child said


def shares(rounds: int, processes: int) -> tuple[int, ...]:
    """Return the rounds of each process, as equal as they can be; (7, 7, 6) of 20."""
    each, more = divmod(rounds, processes)
    return tuple(each + (number < more) for number in range(processes))


def time_apart(job: Job, inputs: Inputs, processes: int, progress: Progress) -> tuple[list[Samples], bool]:
    """Time a job in fresh processes.

    An interrupt ends the rounds; with two or more of them, what was measured is returned.

    Args:
        job: What is timed, with the rounds of all processes together.
        inputs: A few images.
        processes: How many, at most one a round.
        progress: Told of each round.

    Returns:
        What each process has measured, and whether that was interrupted.

    Raises:
        ResedgeError: The child's, or MachineFailure where it crashed; with the end of what it said.
        KeyboardInterrupt: Interrupted with fewer than two rounds.
    """
    each = shares(job.pace.rounds, processes)
    measured: list[Samples] = []
    interrupted = False
    progress.start("latency", job.pace.rounds)
    try:
        for number, rounds in enumerate(each):
            share = replace(job, seed=job.seed + number, pace=replace(job.pace, rounds=rounds))
            measured.append(_time_in_child(share, inputs, progress))
            if measured[-1].interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        if sum(len(samples.orders) for samples in measured) < FEWEST_ROUNDS:
            raise
        interrupted = True
    progress.finish()
    return [samples for samples in measured if samples.orders], interrupted


def _time_in_child(job: Job, inputs: Inputs, progress: Progress) -> Samples:
    """Time a job in one process of its own."""
    with tempfile.TemporaryDirectory(prefix="resedge-timing-") as name:
        folder = Path(name)
        write_job(folder, job, inputs)
        with (folder / "errors.txt").open("w+b") as errors:
            with _child(folder, errors) as process:
                try:
                    _follow(process, progress)
                except KeyboardInterrupt:
                    process.send_signal(signal.SIGINT)
                    _follow(process, progress)
                    if process.returncode:
                        raise
            if process.returncode:
                errors.seek(0)
                raise _failure(process.returncode, errors.read().decode(errors="replace"))
        return read_samples(folder)


@contextmanager
def _child(folder: Path, errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """Start a child with the modules of this process; at the end of the block it is gone.

    It has a session of its own, so that an interrupt from the keyboard reaches it through this process alone.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", _CHILD, str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def _follow(process: subprocess.Popen[str], progress: Progress) -> None:
    """Pass a child's rounds on until it ends."""
    assert process.stdout is not None  # it is a pipe
    for line in process.stdout:
        if line.strip() == ROUND:
            progress.advance(1)
    process.wait()


def _failure(code: int, said: str) -> ResedgeError:
    """Return the error that a child's end is."""
    last = " ".join(said.split())[-_LAST:]
    if code < 0:
        return MachineFailure(
            f"a process that timed engines crashed ({signal.Signals(-code).name}). {last}".strip(),
            cure="Leave engines out with --backend to find the one that crashes.",
        )
    if code in _ERRORS:
        return _ERRORS[code](last)
    return MachineFailure(f"a process that timed engines ended with {code}: {last}")
