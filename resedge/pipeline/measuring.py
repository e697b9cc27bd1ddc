"""The stages that build engines and measure them against eager; a bench shares the measuring itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resedge.artifacts import (
    Accuracy,
    Artifact,
    EagerLatency,
    Engine,
    JsonValue,
    Latency,
    Preprocessing,
    SelfCheck,
    Stability,
    encode,
    sha256_json,
)
from resedge.engines import EngineName
from resedge.golden import agreement, read_golden
from resedge.images import ImageSet
from resedge.pipeline.differing import Differences, differences
from resedge.pipeline.energy import energy_and_settings, power_mode
from resedge.pipeline.options import Measuring
from resedge.pipeline.reporting import Reporter
from resedge.pipeline.running import evaluate, evaluation_batch
from resedge.pipeline.stages import EagerAnswers
from resedge.pipeline.staging import Data, Done, Places, Site, run_stage, versions
from resedge.pipeline.timing import (
    EAGER,
    EAGER_AGAIN,
    EAGER_BEST,
    MEMORY_FORMATS,
    Inputs,
    Job,
    Pace,
    arm_of,
    inputs_of,
    opened,
    time_here,
)
from resedge.pipeline.timing_processes import time_apart
from resedge.protocols import BuildOptions, Float32Array, Progress, RunOptions
from resedge.store import Key

if TYPE_CHECKING:
    from resedge.benchmarks.rounds import Samples

LATENCY_IMAGES = 16
EXPORT_PACE = Pace(rounds=8, block_seconds=0.2, min_calls=50, warm_seconds=2.0)
BENCH_PACE = Pace(rounds=20, block_seconds=0.5, min_calls=100, warm_seconds=3.0)


@dataclass(frozen=True)
class EngineLatency:
    """One engine's latency beside eager's."""

    runtime: str
    precision: str
    latency: Latency


@dataclass(frozen=True)
class Latencies:
    """All engines of one interleaved measurement, eager's own, and what it was made under.

    `partial`: it was interrupted, and this is what was measured until then.
    """

    engines: tuple[EngineLatency, ...]
    eager: EagerLatency
    stability: Stability
    conditions: Mapping[str, JsonValue]
    self_check: SelfCheck | None = None
    partial: bool = False

    def of(self, name: EngineName) -> Latency:
        """Return one engine's latency.

        Raises:
            KeyError: It was not among those measured.
        """
        return {(entry.runtime, entry.precision): entry.latency for entry in self.engines}[name]


def engine_digest(engine: Engine) -> str:
    """Return one digest of all files of an engine and of what runs it."""
    parts = [engine.artifact.sha256, *(companion.sha256 for companion in engine.companions)]
    return sha256_json([engine.runtime, engine.precision, *parts])


def built_engine(site: Site, name: EngineName, graph: Artifact, places: Places) -> Done[Engine]:
    """Build one engine.

    Raises:
        RuntimeUnavailable: The runtime is not here, or cannot do that.
    """
    runtime_name, precision = name
    key = Key(
        f"engine-{runtime_name}-{precision}",
        inputs={"graph": graph.sha256},
        versions=versions(runtime_name, "numpy"),
    )

    def make(folder: Path) -> Engine:
        from resedge.runtimes.table import runtime

        (folder / "engines").mkdir()
        return runtime(runtime_name).build(graph, folder / "engines", BuildOptions(precision))

    return run_stage(site, key, Engine, make, known=places)


@dataclass(frozen=True)
class Compared:
    """An engine against eager: on the test images, and on the golden ones (a fraction)."""

    accuracy: Accuracy
    differences: Differences
    golden_agreement: float


def measured_accuracy(
    site: Site, data: Data, engine: Engine, answers: Done[EagerAnswers], measuring: Measuring
) -> Done[Compared]:
    """Run the built engine over test and golden images and compare it with eager, image by image.

    Raises:
        RuntimeUnavailable: It cannot be opened or run.
        NotFinite: It gives NaN or infinite logits.
    """
    key = Key(
        f"accuracy-{engine.runtime}-{engine.precision}",
        inputs={
            "engine": engine_digest(engine),
            "eager": answers.value.test_logits.sha256,
            "golden": answers.value.golden.sha256,
            "test": data.test.sha256,
        },
        options={
            "outside": encode(data.outside),
            "confidence": measuring.confidence,
            "threads": measuring.threads,
        },
        versions=versions(engine.runtime, "numpy", "scipy"),
        machine=site.machine,
    )

    def make(_folder: Path) -> Compared:
        eager: Float32Array = np.load(answers.value.test_logits.path)
        found = accuracy_of(engine, data.test, data.outside, eager, measuring, site.reporter)
        return Compared(*found, golden_agreement(engine, answers.value.golden, measuring.threads))

    return run_stage(site, key, Compared, make)


def golden_agreement(engine: Engine, golden: Artifact, threads: int) -> float:
    """Return the fraction of the golden images on which an engine and eager choose the same class."""
    from resedge.runtimes.table import runtime

    (inputs, expected), size = read_golden(golden), evaluation_batch(engine)
    with runtime(engine.runtime).open(engine, RunOptions(threads)) as run:
        logits = [run(inputs[start : start + size]) for start in range(0, len(inputs), size)]
    return agreement(np.concatenate(logits), expected)


def accuracy_of(
    engine: Engine,
    test: ImageSet,
    outside: Preprocessing | None,
    eager: Float32Array,
    measuring: Measuring,
    progress: Progress,
) -> tuple[Accuracy, Differences]:
    """Compare an engine's logits on the test images with eager's, (N, classes) float32.

    `outside` is what is done to an image before the engine gets it; None: nothing, it takes frames.
    """
    from resedge.benchmarks.accuracy import compare
    from resedge.runtimes.table import runtime

    size = evaluation_batch(engine)
    with runtime(engine.runtime).open(engine, RunOptions(measuring.threads)) as run:
        label = f"{engine.runtime} {engine.precision}, test"
        logits = evaluate(run, test, outside, progress, label, size)
    accuracy = compare(eager, logits, test.labels, measuring.confidence)
    return accuracy, differences(eager, logits, test.labels)


def measured_latency(
    site: Site, data: Data, source: Artifact, engines: Sequence[Engine], measuring: Measuring
) -> Done[Latencies]:
    """Measure all engines beside eager in one interleaved run of short blocks.

    A measurement that was inconclusive is not kept for the next run: it is made again.
    """
    key = Key(
        "latency",
        inputs={
            "source": source.sha256,
            "engines": sha256_json([engine_digest(engine) for engine in engines]),
            "test": data.test.sha256,
        },
        options={
            "pace": encode(EXPORT_PACE),
            "confidence": measuring.confidence,
            "threads": site.threads,
            "seed": measuring.seed,
            **power_mode(),
        },
        versions=versions("torch", *{engine.runtime for engine in engines}),
        machine=site.machine,
    )

    def make(_folder: Path) -> Latencies:
        job = Job(source, tuple(engines), measuring.threads, measuring.seed, EXPORT_PACE)
        return latencies_of(job, data.test, data.preprocessing, measuring.confidence, None, site.reporter)

    done = run_stage(site, key, Latencies, make)
    if done.reused and any(entry.latency.relation == "inconclusive" for entry in done.value.engines):
        site.store.discard(key)
        done = run_stage(site, key, Latencies, make)
    return done


def say_disturbances(latencies: Latencies, reporter: Reporter) -> None:
    """Warn of what makes the ratios less certain."""
    for reason in latencies.stability.reasons:
        reporter.warn(f"{reason}: the ratios are less certain")


def latencies_of(
    job: Job,
    test: ImageSet,
    preprocessing: Preprocessing,
    confidence: float,
    processes: int | None,
    progress: Progress,
) -> Latencies:
    """Measure engines and eager at batch 1: in each round every one runs one block, in random order.

    On a Jetson each runs alone once more after the rounds, for its energy.

    Args:
        job: What is timed.
        test: Images to time with; the first few are taken.
        preprocessing: Makes them eager's input, and that of engines that take no frames.
        confidence: Of the intervals of all engines at once.
        processes: How many fresh processes share the rounds; None: all are in this one.
        progress: Told of each round.

    Raises:
        KeyboardInterrupt: Interrupted before there was enough to compare.
    """
    from resedge.benchmarks.conditions import Watch, conditions
    from resedge.benchmarks.latency import eager_latency, self_check
    from resedge.benchmarks.stability import stability
    from resedge.jetson import recording

    inputs = inputs_of(test.select(range(min(LATENCY_IMAGES, len(test)))), preprocessing)
    tegrastats = recording.find()
    with Watch(tegrastats) as watch:
        if processes is None:
            sessions, partial = [time_here(job, inputs, progress)], False
        else:
            sessions, partial = time_apart(job, inputs, processes, progress)
    of_jetson: Mapping[str, JsonValue] = {}
    if tegrastats and not partial:
        with opened(job, inputs) as arms:
            of_jetson = energy_and_settings(arms, tegrastats, progress)
    check = self_check(sessions, EAGER, EAGER_AGAIN) if job.self_check else None
    libraries = ("torch", *{engine.runtime for engine in job.engines})
    how: dict[str, JsonValue] = {
        "batch": 1,
        "computed": _computed(job.engines),
        "given": _given(job.engines, inputs),
        "unsettled": list(dict.fromkeys(name for session in sessions for name in session.unsettled)),
        "confidence": confidence,
        "comparisons": len(job.engines),
        "processes": processes,
    }
    return Latencies(
        _compared(job.engines, sessions, confidence),
        eager_latency(sessions, [(name, MEMORY_FORMATS[name]) for name in (EAGER, EAGER_BEST)]),
        stability(sessions, watch.seen(), check),
        {**conditions(job.threads, libraries), **watch.found(), **how, **of_jetson, **asdict(job.pace)},
        check,
        partial,
    )


def _compared(
    engines: Sequence[Engine], sessions: Sequence[Samples], confidence: float
) -> tuple[EngineLatency, ...]:
    """Compare each engine with eager, with intervals that hold for all of them at once."""
    from resedge.benchmarks.latency import compare

    return tuple(
        EngineLatency(
            engine.runtime,
            engine.precision,
            compare(sessions, EAGER, EAGER_BEST, arm_of(engine), confidence, len(engines)),
        )
        for engine in engines
    )


def _given(engines: Sequence[Engine], inputs: Inputs) -> dict[str, JsonValue]:
    """Return what each side of the comparison is handed; preparing an image outside is in no one's time."""
    given = {EAGER: inputs.prepared, **{arm_of(engine): inputs.of(engine) for engine in engines}}
    words = {"uint8": "frames", "float32": "prepared outside"}
    return {
        arm: f"(1, {', '.join(map(str, images.shape[1:]))}) {images.dtype}, {words[str(images.dtype)]}"
        for arm, images in given.items()
    }


def _computed(engines: Sequence[Engine]) -> dict[str, JsonValue]:
    """Return what each engine is computed in here, in its runtime's words."""
    from resedge.runtimes.table import runtime

    return {
        arm_of(engine): runtime(engine.runtime).probe().precisions[engine.precision] for engine in engines
    }
