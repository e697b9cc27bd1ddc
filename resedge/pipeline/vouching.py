"""Who vouches for a file that a native parser is about to read.

The digests of a bundle say that its files are those of its manifest, and not who made them: a stranger's
bundle is as consistent as one's own. Parsers crash on crafted files, or take all memory. So what an export
of this machine wrote is known by digest, and anything else goes through the gate and is loaded and run once
in a child process with limits, before this process touches it. What held is kept, too:

    state/vouched/DIGEST    of the files together, the runtime, and the versions of its library

The child shows that a file does not crash, hang or blow up. It does not show that the file is honest, and it
is no sandbox: a parser that a file takes over can do what its user can.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from resedge import files, home
from resedge.artifacts import (
    Artifact,
    Engine,
    JsonValue,
    canonical_json,
    decode,
    encode,
    parse_json,
    read_text,
    sha256_json,
)
from resedge.errors import InputRefused, MachineFailure, RuntimeUnavailable
from resedge.pipeline.staging import versions

Task = Literal["run", "parse"]

_CHILD: Final = "resedge.pipeline.vouching_child"
_ROOT: Final = Path("/")
_LAST: Final = 500
_CURE: Final = "Do not use files of people that you do not trust; export the model yourself."


@dataclass(frozen=True)
class Limits:
    """What a child may take: seconds by the clock and of all cores together, and bytes of its own memory.

    `memory_bytes` comes on top of `memory_factor` times the size of the files. A ResNet-50 in FP32 takes
    0.45 GB and five seconds of this on two cores.
    """

    seconds: float = 120.0
    cpu_seconds: int = 240
    memory_bytes: int = 2 << 30
    memory_factor: int = 16


PARSING: Final = Limits(memory_bytes=8 << 30)
"""For TensorRT's parser, whose process also holds what CUDA takes of the host's memory."""


@dataclass(frozen=True)
class Trial:
    """What a child is asked to load, once it has passed the gate.

    The files of an engine are opened and run; a graph is parsed by its runtime, or by none where `runtime`
    is None. Paths are relative to the file system's root.
    """

    runtime: str | None
    task: Task
    files: tuple[Artifact, ...]
    cpu_seconds: int
    memory_bytes: int


def vouch(engines: Iterable[Engine], graphs: Iterable[Artifact]) -> None:
    """Keep that an export of this machine made these engines and graphs.

    Raises:
        InputRefused: The state folder may not be written to.
        MachineFailure: The disk is full or failing.
    """
    for engine in engines:
        _keep(_made(engine.runtime, _files_of(engine)))
    for graph in graphs:
        _keep(_made(None, (graph,)))


def demand_vouched(engine: Engine, limits: Limits | None = None) -> None:
    """Refuse an engine that was not made here and that a child process with limits does not load and run.

    Where its runtime is not installed nothing is done, as nothing can be opened either.

    Raises:
        InputRefused: The gate or the runtime refuses it, it crashed the child, or it ran into a limit.
        StaleArtifact: A file has changed.
        MachineFailure: The child could not be run.
    """
    made = _made(engine.runtime, _files_of(engine))
    _demand(made, engine.runtime, "run", _files_of(engine), limits or Limits())


def demand_vouched_graph(graph: Artifact, limits: Limits | None = None, *, parser: str | None = None) -> None:
    """Refuse an ONNX graph that was not made here and that does not pass the gate.

    Args:
        graph: The file.
        limits: What the child may take.
        parser: The runtime whose parser is to read it in the child too; it has a method `parse`.

    Raises:
        InputRefused, MachineFailure: As `demand_vouched`.
    """
    usual = Limits() if parser is None else PARSING
    _demand(_made(None, (graph,)), parser, "parse", (graph,), limits or usual)


def refusal_of_graph(graph: Artifact, limits: Limits | None = None) -> str:
    """Say why the gate refuses an ONNX graph, whoever made it; "" where it passes. Nothing is kept.

    The gate is asked in a child process, as the onnx library crashes on some graphs.

    Raises:
        StaleArtifact: The file has changed.
        MachineFailure: The child could not be run.
    """
    limits = limits or Limits()
    return _refusal(_trial(None, "parse", (graph,), limits), limits.seconds)


def write_trial(trial: Trial, path: Path) -> None:
    """Write what a child is asked."""
    path.write_text(canonical_json(encode(trial)), encoding="utf-8")


def read_trial(path: Path) -> Trial:
    """Read what a child is asked, with absolute paths."""
    trial = decode(Trial, parse_json(read_text(path), str(path)), str(path))
    return replace(trial, files=tuple(file.under(_ROOT) for file in trial.files))


def _files_of(engine: Engine) -> tuple[Artifact, ...]:
    return (engine.artifact, *engine.companions)


def _demand(
    made: str, runtime: str | None, task: Task, artifacts: tuple[Artifact, ...], limits: Limits
) -> None:
    if _is_kept(made):
        return
    tried = _digest([runtime, task, versions("onnx", *filter(None, [runtime]))], artifacts)
    if _is_kept(tried):
        return
    try:
        reason = _refusal(_trial(runtime, task, artifacts, limits), limits.seconds)
    except RuntimeUnavailable:
        return  # and the caller will be told so, when it opens the engine
    if reason:
        what = f"is not from an export of this machine, and {reason}."
        raise InputRefused(what, where=str(artifacts[0].path), cure=_CURE)
    with suppress(InputRefused, MachineFailure):  # where nothing can be kept, it is tried again next time
        _keep(tried)


def _trial(runtime: str | None, task: Task, artifacts: tuple[Artifact, ...], limits: Limits) -> Trial:
    size = sum(len(artifact.read()) for artifact in artifacts)
    return Trial(
        runtime,
        task,
        tuple(replace(a, path=a.path.absolute()).relative_to(_ROOT) for a in artifacts),
        limits.cpu_seconds,
        limits.memory_bytes + limits.memory_factor * size,
    )


def _refusal(trial: Trial, seconds: float) -> str:
    """Have a child load the files; return why it did not, or "".

    Raises:
        RuntimeUnavailable: Their runtime is not installed.
        MachineFailure: The child could not be run.
    """
    with tempfile.TemporaryDirectory(prefix="resedge-trial-") as folder:
        request = Path(folder) / "trial.json"
        write_trial(trial, request)
        try:
            done = subprocess.run(
                [sys.executable, "-m", _CHILD, str(request)],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"was not loaded within {seconds:g} seconds"
        except OSError as error:
            raise MachineFailure(f"a child process cannot be started ({error.strerror}).") from error
    said = " ".join(done.stderr.decode(errors="replace").split())
    if done.returncode == RuntimeUnavailable.exit_code:
        raise RuntimeUnavailable(said)
    return _reason(done.returncode, said)


def _reason(code: int, said: str) -> str:
    if code == 0:
        return ""
    if code < 0:
        return f"its parser crashed or ran into a limit ({signal.Signals(-code).name})"
    end = said[-_LAST:].rstrip(".")
    return f"was refused: {end}" if code == InputRefused.exit_code else f"loading it failed: {end}"


# --- what is kept --------------------------------------------------------------------------------


def _made(runtime: str | None, artifacts: tuple[Artifact, ...]) -> str:
    return _digest([runtime, "made here"], artifacts)


def _digest(how: JsonValue, artifacts: tuple[Artifact, ...]) -> str:
    return sha256_json([how, [artifact.sha256 for artifact in artifacts]])


def _is_kept(digest: str) -> bool:
    return (_folder() / digest).is_file()


def _keep(digest: str) -> None:
    kept = _folder() / digest
    if not kept.is_file():
        with files.disk_errors(kept, cure="Set RESEDGE_HOME to a folder that you may write to."):
            kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(kept, b"")


def _folder() -> Path:
    return home.state_folder() / "vouched"
