"""Run as a module by `children.py`: load a runtime, build with it, or run an engine on the golden images.

The first argument says what; the request comes on standard input. What a runtime prints goes to standard
error, where it is no answer.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from resedge import bundle as bundles
from resedge.agent.children import Build, Probe, Probed, Replay
from resedge.artifacts import Engine
from resedge.codec import decode, parse_json
from resedge.errors import MachineFailure, NotFinite, ResedgeError, RuntimeUnavailable
from resedge.golden import Thresholds, agreement, read_golden, read_thresholds
from resedge.protocols import Array, BuildOptions, Runner, RunOptions
from resedge.runtimes.table import runtime
from resedge.shipping import moments, wire

LEAST_CALLS: Final = 50
MOST_CALLS: Final = 500
MOST_SECONDS: Final = 5.0

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_OUT_OF_MEMORY: Final = MachineFailure(
    "there is too little memory.", cure="End other programs there, or add swap, and try again."
)


def probe(request: Probe) -> Probed:
    """Say what runtimes are here; one that is not is said to be absent, with the reason."""
    return Probed(tuple(_probed(name) for name in request.runtimes))


def build(request: Build) -> Engine:
    """Build an engine; its files are relative to the request's folder."""
    folder = Path(request.folder)
    made = runtime(request.runtime).build(
        request.graph.under(folder),
        folder / request.out,
        BuildOptions(request.precision, timing_caches=Path(request.timing)),
    )
    return replace(
        made,
        artifact=made.artifact.relative_to(folder),
        companions=tuple(companion.relative_to(folder) for companion in made.companions),
    )


def replay(request: Replay) -> wire.Trial:
    """Run an engine on the golden images, one at a time as an application does, and time it.

    Raises:
        NotFinite: A logit is none.
        ResedgeError: As a runtime's `open`, or the golden images are not sound.
    """
    folder = Path(request.folder)
    images, expected = read_golden(request.golden.under(folder))
    thresholds = read_thresholds(request.thresholds.under(folder))
    engine = bundles.resolve(request.engine, folder)
    threads = len(os.sched_getaffinity(0))
    with runtime(engine.runtime).open(engine, RunOptions(threads, batch=1)) as run:
        logits = np.concatenate([run(image[np.newaxis]) for image in images])
        if not np.isfinite(logits).all():
            raise NotFinite("gives logits that are no finite numbers.", where=str(engine.artifact.path))
        times = _timed(run, images)
    found = wire.Trial(
        engine=f"{engine.runtime}:{engine.precision}",
        threads=threads,
        images=len(images),
        agreement=agreement(logits, expected),
        min_agreement=thresholds.min_agreement,
        calls=len(times),
        p50_ms=float(np.percentile(times, 50)) * 1e3,
        p95_ms=float(np.percentile(times, 95)) * 1e3,
        peak_memory_bytes=_peak_memory(),
        limits=request.limits,
        reasons=(),
        at=moments.to_text(moments.now()),
    )
    return replace(found, reasons=tuple(reasons_against(found, thresholds)))


def reasons_against(trial: wire.Trial, thresholds: Thresholds) -> Iterator[str]:
    """Yield what speaks against an engine."""
    limits = trial.limits
    if trial.images != thresholds.images:
        yield f"there are {trial.images} golden images, and {thresholds.images} are demanded"
    if trial.agreement < trial.min_agreement:
        yield (
            f"it agrees with eager on {trial.agreement:.1%} of {trial.images} golden images, "
            f"and {trial.min_agreement:.1%} are demanded"
        )
    for what, found, limit in (
        ("the median", trial.p50_ms, limits.p50_ms),
        ("the 95th percentile", trial.p95_ms, limits.p95_ms),
    ):
        if limit is not None and found > limit:
            yield f"a call takes {found:.3f} ms at {what}, and {limit:.3f} ms are allowed"
    if limits.memory_bytes is not None and trial.peak_memory_bytes > limits.memory_bytes:
        found_mb, limit_mb = trial.peak_memory_bytes / 1e6, limits.memory_bytes / 1e6
        yield f"it takes {found_mb:.1f} MB of memory, and {limit_mb:.1f} MB are allowed"


def _probed(name: str) -> wire.RuntimeFacts:
    try:
        found = runtime(name).probe()
    except RuntimeUnavailable as error:
        return wire.RuntimeFacts(name, None, None, (), str(error))
    return wire.RuntimeFacts(name, found.version, found.device, tuple(found.precisions), None)


def _timed(run: Runner, images: Array) -> list[float]:
    """Return the seconds of single calls, from array in to array out; the engine is warm by now."""
    times: list[float] = []
    end = time.perf_counter() + MOST_SECONDS
    while len(times) < LEAST_CALLS or (len(times) < MOST_CALLS and time.perf_counter() < end):
        image = images[len(times) % len(images)][np.newaxis]
        start = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - start)
    return times


def _peak_memory() -> int:
    """Return what this process has had resident at most, in bytes.

    Not getrusage's figure, which a process inherits from the one that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise MachineFailure("/proc/self/status does not say how much memory was taken.")


_VERBS: Final[dict[str, tuple[type[Any], Callable[[Any], object]]]] = {
    "probe": (Probe, probe),
    "build": (Build, build),
    "replay": (Replay, replay),
}


def answer(verb: str, text: str) -> tuple[int, str]:
    """Return the exit code and the envelope for a request."""
    kind, act = _VERBS[verb]
    try:
        return 0, wire.answer_text(act(decode(kind, parse_json(text, verb), verb)))
    except MemoryError:
        return _OUT_OF_MEMORY.exit_code, wire.error_text(_OUT_OF_MEMORY)
    except ResedgeError as error:
        return error.exit_code, wire.error_text(error)


def main(arguments: list[str]) -> int:
    """Answer one request."""
    _die_with_the_agent()
    _be_the_first_to_go()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    code, text = answer(arguments[0], sys.stdin.read())
    with answers:
        answers.write(text)
    return code


def _die_with_the_agent() -> None:
    """Have the system kill this process when the agent dies, lest it write while the next one does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _be_the_first_to_go() -> None:
    """Have the system, when memory runs out, kill this process before the one that serves."""
    with suppress(OSError):  # where it cannot be said, the system chooses
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
