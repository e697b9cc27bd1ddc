"""Timing engines beside eager: what is timed, how long, and the timing itself in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Literal

import numpy as np

from resedge.artifacts import Artifact, Engine, Preprocessing
from resedge.images import Frames, ImageSet, prepare
from resedge.pipeline.energy import Arm
from resedge.pipeline.running import eager_runtime
from resedge.protocols import Array, BuildOptions, Float32Array, Progress, Runner, RunOptions

if TYPE_CHECKING:
    from resedge.benchmarks.rounds import Samples

EAGER, EAGER_BEST, EAGER_AGAIN = "eager", "eager channels_last", "eager again"
MEMORY_FORMATS: dict[str, Literal["contiguous", "channels_last"]] = {
    EAGER: "contiguous",
    EAGER_BEST: "channels_last",
    EAGER_AGAIN: "contiguous",
}


@dataclass(frozen=True)
class Pace:
    """How long latency is measured: rounds of one block an engine, and the least length of a block.

    `warm_seconds` bounds how long an engine may take to settle before.
    """

    rounds: int
    block_seconds: float
    min_calls: int
    warm_seconds: float


@dataclass(frozen=True)
class Job:
    """What is timed: eager in both memory formats, and engines, all at batch 1.

    `self_check` adds a second instance of eager. `model` is what the user named again, where eager is made by
    code: it is run.
    """

    source: Artifact
    engines: tuple[Engine, ...]
    threads: int
    seed: int
    pace: Pace
    self_check: bool = False
    model: str | None = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """The same few images as each side takes them.

    `prepared` are (N, C, H, W) float32, `frames` (N, H, W, 3 or 4) uint8.
    """

    prepared: Float32Array
    frames: Frames

    def of(self, engine: Engine) -> Array:
        """Return what an engine takes."""
        (spec,) = engine.artifact.inputs
        return self.frames if spec.dtype == "uint8" else self.prepared


def inputs_of(images: ImageSet, preprocessing: Preprocessing) -> Inputs:
    """Return images, few enough for memory, as each side takes them."""
    frames = images.decode(range(len(images)))
    return Inputs(prepare(frames, preprocessing), frames)


def arm_of(engine: Engine) -> str:
    """Return the name of an engine among those that are timed."""
    return f"{engine.runtime}:{engine.precision}"


def time_here(
    job: Job, inputs: Inputs, progress: Progress, stop: Callable[[], bool] = lambda: False
) -> Samples:
    """Open everything, and time it in interleaved rounds.

    Args:
        job: What is timed.
        inputs: A few images.
        progress: Told of each round.
        stop: Asked between blocks; true ends the rounds.

    Raises:
        StaleArtifact: A file is not the one that was built, by its digest.
        RuntimeUnavailable: An engine cannot be opened.
    """
    from resedge.benchmarks.rounds import measure

    pace = job.pace
    with _named(job.model), opened(job, inputs) as arms:
        return measure(
            arms,
            EAGER,
            rounds=pace.rounds,
            block_seconds=pace.block_seconds,
            min_calls=pace.min_calls,
            seed=job.seed,
            progress=progress,
            warm_seconds=pace.warm_seconds,
            stop=stop,
        )


@contextmanager
def _named(model: str | None) -> Iterator[None]:
    """Let eager be made by what the user named; without a name, what was named before stays so."""
    from resedge.export.names import parse
    from resedge.export.sources import given

    if model is None:
        yield
        return
    with given(parse(model)):
        yield


@contextmanager
def opened(job: Job, inputs: Inputs) -> Iterator[dict[str, Arm]]:
    """Open eager's forms and all engines, all at once; yield a function of one inference for each.

    Each call takes the next of the same few images.
    """
    from resedge.runtimes.table import runtime

    run_options = RunOptions(job.threads, batch=1)
    arms: dict[str, Arm] = {}
    with ExitStack() as stack:
        for name, memory_format in MEMORY_FORMATS.items():
            if name == EAGER_AGAIN and not job.self_check:
                continue
            eager = eager_runtime(memory_format)
            built = eager.build(job.source, job.source.path.parent, BuildOptions("fp32"))
            runner = stack.enter_context(eager.open(built, run_options))
            arms[name] = _one_image_at_a_time(runner, inputs.prepared)
        for engine in job.engines:
            runner = stack.enter_context(runtime(engine.runtime).open(engine, run_options))
            arms[arm_of(engine)] = _one_image_at_a_time(runner, inputs.of(engine))
        yield arms


def _one_image_at_a_time(run: Runner, inputs: Array) -> Arm:
    images = cycle([np.ascontiguousarray(inputs[i : i + 1]) for i in range(len(inputs))])
    return lambda: run(next(images))
