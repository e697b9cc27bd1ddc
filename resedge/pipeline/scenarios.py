"""Further ways to measure an engine: from frame to class, MLPerf's LoadGen, a camera, a cold start.

Each engine runs alone, one scenario after the other; the figures stand beside the verdicts and decide none of
them, but for one: a run of LoadGen that LoadGen does not call valid is a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import numpy as np

from resedge import images
from resedge.artifacts import Engine, JsonValue, encode
from resedge.bundle import Bundle
from resedge.engines import EngineName
from resedge.images import ImageSet
from resedge.pipeline.coldstart import cold_start
from resedge.pipeline.options import Scenarios
from resedge.pipeline.reporting import Reporter
from resedge.pipeline.running import evaluation_batch
from resedge.protocols import Array, Runner, RunOptions

_FRAMES: Final = 64
_FAILED: Final = 1

Found = dict[str, JsonValue]


@dataclass(frozen=True)
class FrameToClass:
    """Calls of a decoded frame in, a class out, in milliseconds.

    `prepare_ms` of that is preprocessing outside of the engine.
    """

    calls: int
    p50_ms: float
    prepare_ms: float


def run(
    bundle: Bundle,
    engines: Mapping[EngineName, Engine],
    sizes: Mapping[EngineName, int],
    test: ImageSet,
    wanted: Scenarios,
    threads: int,
    reporter: Reporter,
) -> dict[EngineName, Found]:
    """Measure every engine in every scenario that is wanted.

    Args:
        bundle: Where they are from.
        engines: By name.
        sizes: Bytes of their files.
        test: Images to ask them.
        wanted: Which scenarios, and how long.
        threads: Compute threads.
        reporter: Told of each scenario.

    Returns:
        For each engine the scenarios by name, as the document has them.

    Raises:
        RuntimeUnavailable: LoadGen is not installed, or an engine cannot be opened.
    """
    from resedge.benchmarks.sentences import scenario_sentence

    found: dict[EngineName, Found] = {name: {} for name in engines}
    for name, engine in engines.items():
        for scenario in wanted.names:
            reporter.start(f"{':'.join(name)}, {scenario}", 0)
            if scenario == "cold-start":
                value = encode(cold_start(bundle.path, name, threads, sizes[name]))
            else:
                value = encode(_MEASURES[scenario](bundle, engine, test, wanted, threads))
            reporter.finish()
            found[name][scenario] = value
            reporter.stage("scenario", f"{' '.join(name)}, {scenario_sentence(scenario, value)}")
    return found


def failed(found: Mapping[EngineName, Found]) -> bool:
    """Say whether LoadGen calls any of its runs not valid."""
    return any(
        isinstance(value, Mapping) and value.get("valid") is False
        for scenarios in found.values()
        for value in scenarios.values()
    )


def joined(code: int, found: Mapping[EngineName, Found]) -> int:
    """Return the exit code of the verdicts and of the scenarios together: a failure goes before doubt."""
    return _FAILED if failed(found) and code in (0, 3) else code


def with_scenarios(document: dict[str, JsonValue], found: Mapping[EngineName, Found]) -> dict[str, JsonValue]:
    """Return the document with the scenarios beside each engine's verdict."""
    engines = document["engines"]
    assert isinstance(engines, list)
    entries: list[JsonValue] = []
    for entry in engines:
        assert isinstance(entry, dict)
        name = (str(entry["runtime"]), str(entry["precision"]))
        entries.append({**entry, "scenarios": found[name]} if found.get(name) else entry)
    return {**document, "engines": entries}


# --- one scenario each ---------------------------------------------------------------------------


def _end_to_end(
    bundle: Bundle, engine: Engine, test: ImageSet, wanted: Scenarios, threads: int
) -> FrameToClass:
    outside = bundle.manifest.outside
    frames = test.decode(range(min(_FRAMES, len(test))))
    following = cycle([frames[i : i + 1] for i in range(len(frames))])
    calls: list[float] = []
    prepared: list[float] = []
    with _opened(engine, threads, batch=1) as run:
        end = time.perf_counter() + wanted.seconds
        while time.perf_counter() < end or len(calls) < _FRAMES:
            frame, begin = next(following), time.perf_counter()
            batch = images.as_input(frame, outside)
            between = time.perf_counter()
            int(run(batch).argmax())
            calls.append(time.perf_counter() - begin)
            prepared.append(between - begin)
    counted = slice(len(calls) // 5, None)  # the first fifth warms up
    p50, part = (1000 * float(np.median(times[counted])) for times in (calls, prepared))
    return FrameToClass(len(calls[counted]), p50, part)


def _camera(bundle: Bundle, engine: Engine, test: ImageSet, wanted: Scenarios, threads: int) -> object:
    from resedge.benchmarks.camera import drive

    following = cycle(list(_inputs(bundle, test)[:, None]))
    with _opened(engine, threads, batch=1) as run:
        for _ in range(_FRAMES):
            run(next(following))
        return drive(lambda: run(next(following)), wanted.rate, wanted.seconds)


def _single_stream(bundle: Bundle, engine: Engine, test: ImageSet, wanted: Scenarios, threads: int) -> object:
    from resedge.benchmarks.loadgen import drive

    with _opened(engine, threads, batch=1) as run:
        return drive(run, _inputs(bundle, test), "single stream", wanted.seconds, batch=1)


def _offline(bundle: Bundle, engine: Engine, test: ImageSet, wanted: Scenarios, threads: int) -> object:
    from resedge.benchmarks.loadgen import drive

    with _opened(engine, threads, batch=None) as run:
        batch = evaluation_batch(engine)
        return drive(run, _inputs(bundle, test), "offline", wanted.seconds, batch)


def _inputs(bundle: Bundle, test: ImageSet) -> Array:
    return test.select(range(min(_FRAMES, len(test)))).all_inputs(bundle.manifest.outside)


def _opened(engine: Engine, threads: int, batch: int | None) -> AbstractContextManager[Runner]:
    from resedge.runtimes.table import runtime

    return runtime(engine.runtime).open(engine, RunOptions(threads, batch))


_MEASURES: Final[Mapping[str, Callable[[Bundle, Engine, ImageSet, Scenarios, int], object]]] = {
    "end-to-end": _end_to_end,
    "camera": _camera,
    "single-stream": _single_stream,
    "offline": _offline,
}
