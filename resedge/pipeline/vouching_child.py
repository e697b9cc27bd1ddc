"""Run as a module by `vouching.py`: put files through the gate, then load and run them once, under limits.

The argument is the file of a `Trial`. Exits with 0 where it held, with the code of the error and its message
on standard error where not; a runtime that is not installed is told from one that refuses a file.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from resedge import gate
from resedge.artifacts import Artifact, Engine
from resedge.errors import InputRefused, ResedgeError, RuntimeUnavailable, UsageError
from resedge.pipeline.vouching import Trial, read_trial
from resedge.protocols import RunOptions
from resedge.runtimes.table import runtime


@runtime_checkable
class _Parser(Protocol):
    """A runtime that builds engines on the device: it reads a graph without building one."""

    def parse(self, graph: Artifact) -> None: ...


def limit(trial: Trial) -> None:
    """Limit this process's own memory and time, and leave it no file to write.

    Not the address space: half a gigabyte of it is mapped files of the libraries.
    """
    for what, most in (
        (resource.RLIMIT_DATA, trial.memory_bytes),
        (resource.RLIMIT_CPU, trial.cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def check(trial: Trial) -> None:
    """Put the first file through the gate, then have the runtime parse it, or load all and run one image.

    Raises:
        InputRefused: The gate or the runtime refuses a file, or it takes more memory than it may.
    """
    first, *others = trial.files
    try:
        (_pass_xml if trial.runtime == "openvino" else _pass_gate)(first)
        if trial.runtime is not None and trial.task == "parse":
            _parser(trial.runtime).parse(first)
        elif trial.runtime is not None:
            _run(Engine(first, trial.runtime, "", "", "", tuple(others)))
    except (RuntimeUnavailable, MemoryError, ValueError) as error:
        raise InputRefused(str(error) or "it takes more memory than it may") from error


def _pass_gate(file: Artifact) -> None:
    """Check a graph: in full, or by its bytes alone on a device that has no onnx library."""
    data, where = file.read(), str(file.path)
    try:
        gate.check_onnx(data, where)
    except RuntimeUnavailable:
        gate.check_fields(data, where)


def _pass_xml(file: Artifact) -> None:
    """Check that OpenVINO's XML is XML, as it reads other formats too, and declares no entities."""
    data = file.read()
    if not data.lstrip().startswith(b"<") or b"<!" in data:
        raise InputRefused("is not the XML that OpenVINO writes.", where=str(file.path))


def _parser(name: str) -> _Parser:
    found = runtime(name)
    if not isinstance(found, _Parser):
        raise UsageError(f"{name} has no parser of its own.")
    return found


def _run(engine: Engine) -> None:
    """Load an engine and have it answer one image of zeros."""
    with runtime(engine.runtime).open(engine, RunOptions(threads=1)) as run:
        spec = engine.artifact.inputs[0]
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        run(np.zeros(shape, spec.dtype))


def main(arguments: list[str]) -> int:
    """Answer one trial; return the exit code."""
    trial = read_trial(Path(arguments[0]))
    try:
        if trial.runtime is not None:
            runtime(trial.runtime).probe()  # before the limits: what fails afterwards is the files' doing
        limit(trial)
        check(trial)
    except ResedgeError as error:
        sys.stderr.write(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
