"""The agent's children, in which everything runs that could crash, hang or take all memory.

The agent itself loads no runtime, so that whatever becomes of one, it is there to write down the outcome.
What a child is asked goes to its standard input, and its answer, or its error, comes as an envelope.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Final, TypeVar

from resedge.artifacts import Artifact, Engine
from resedge.codec import canonical_json, encode
from resedge.errors import BuildFailed, MachineFailure, RuntimeUnavailable
from resedge.shipping import wire

_CHILD: Final = "resedge.agent.child"
_LAST: Final = 300

T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """Say what these runtimes are here."""

    runtimes: tuple[str, ...]


@dataclass(frozen=True)
class Build:
    """Build an engine from a graph; `graph` and `out`, which exists, are relative to `folder`."""

    runtime: str
    precision: str
    folder: str
    graph: Artifact
    out: str
    timing: str


@dataclass(frozen=True)
class Replay:
    """Open an engine, run it on the golden images and time it; files are relative to `folder`."""

    folder: str
    engine: Engine
    golden: Artifact
    thresholds: Artifact
    limits: wire.Limits


@dataclass(frozen=True)
class Probed:
    """The answer to `Probe`."""

    runtimes: tuple[wire.RuntimeFacts, ...]


def ask(kind: type[T], request: Probe | Build | Replay, seconds: float | None = None) -> T:
    """Have a child do something; return its answer.

    Args:
        kind: What it answers.
        request: What it is to do.
        seconds: After how many it is ended; None: it may take its time.

    Raises:
        ResedgeError: The one that it raised.
        BuildFailed: It crashed, did not come to an end, or failed in another way.
        MachineFailure: It could not be started, or was killed, as happens when memory runs out.
    """
    verb = type(request).__name__.lower()
    try:
        done = subprocess.run(
            [sys.executable, "-m", _CHILD, verb],
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            input=canonical_json(encode(request)).encode(),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"the {verb} did not come to an end within {seconds:g} seconds.") from error
    except OSError as error:
        raise MachineFailure(f"a child process cannot be started ({error.strerror}).") from error
    said = " ".join(done.stderr.decode(errors="replace").split())[-_LAST:]
    if done.returncode < 0:
        raise _ended(verb, -done.returncode)
    if not done.stdout:
        raise BuildFailed(f"the {verb} failed ({said or f'exit code {done.returncode}'}).")
    return wire.read_answer(kind, done.stdout.decode(errors="replace"), verb)


def _ended(verb: str, number: int) -> RuntimeUnavailable | MachineFailure:
    """Return what a signal that ended a child means: who kills is the system that is short of memory."""
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return MachineFailure(
            f"the {verb} was killed ({name}), as happens when memory runs out.",
            cure="End other programs there, or add swap, and run the same command again.",
        )
    return BuildFailed(f"the {verb} crashed ({name}).")
