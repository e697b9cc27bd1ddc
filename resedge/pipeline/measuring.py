"""The stages that build engines and measure them against eager; a bench shares the measuring itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal

import numpy as np

from resedge.artifacts import (
    Accuracy,
    Artifact,
    Engine,
    JsonValue,
    Latency,
    Preprocessing,
    encode,
    sha256_json,
)
from resedge.images import ImageSet
from resedge.pipeline.differing import Differences, differences
from resedge.pipeline.energy import Arm, energy_and_settings, power_mode
from resedge.pipeline.options import EngineName, Measuring
from resedge.pipeline.reporting import Reporter
from resedge.pipeline.running import eager_runtime, evaluate, evaluation_batch
from resedge.pipeline.stages import EagerAnswers
from resedge.pipeline.staging import Data, Done, Places, Site, run_stage, versions
from resedge.protocols import BuildOptions, Float32Array, Progress, Runner, RunOptions
from resedge.store import Key

LATENCY_IMAGES = 16
DISTURBING_CORES = 0.2
EAGER, EAGER_BEST = "eager", "eager channels_last"
_MEMORY_FORMATS: dict[str, Literal["contiguous", "channels_last"]] = {
    EAGER: "contiguous",
    EAGER_BEST: "channels_last",
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


EXPORT_PACE = Pace(rounds=8, block_seconds=0.2, min_calls=50, warm_seconds=2.0)
BENCH_PACE = Pace(rounds=20, block_seconds=0.5, min_calls=100, warm_seconds=5.0)


@dataclass(frozen=True)
class EngineLatency:
    """One engine's latency beside eager's."""

    runtime: str
    precision: str
    latency: Latency


@dataclass(frozen=True)
class Latencies:
    """All engines of one interleaved measurement, and what it was made under."""

    engines: tuple[EngineLatency, ...]
    conditions: Mapping[str, JsonValue]

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
            "preprocessing": encode(data.preprocessing),
            "confidence": measuring.confidence,
            "threads": measuring.threads,
        },
        versions=versions(engine.runtime, "numpy", "scipy"),
        machine=site.machine,
    )

    def make(_folder: Path) -> Compared:
        eager: Float32Array = np.load(answers.value.test_logits.path)
        found = accuracy_of(engine, data.test, data.preprocessing, eager, measuring, site.reporter)
        return Compared(*found, golden_agreement(engine, answers.value.golden, measuring.threads))

    return run_stage(site, key, Compared, make)


def golden_agreement(engine: Engine, golden: Artifact, threads: int) -> float:
    """Return the fraction of the golden images on which an engine and eager choose the same class."""
    from safetensors.numpy import load

    from resedge.runtimes.table import runtime

    tensors = load(golden.read())
    inputs, size = tensors["input"], evaluation_batch(engine)
    with runtime(engine.runtime).open(engine, RunOptions(threads)) as run:
        logits = [run(inputs[start : start + size]) for start in range(0, len(inputs), size)]
    chosen = np.concatenate(logits).argmax(axis=1)
    return float((chosen == tensors["logits"].argmax(axis=1)).mean())


def accuracy_of(
    engine: Engine,
    test: ImageSet,
    preprocessing: Preprocessing,
    eager: Float32Array,
    measuring: Measuring,
    progress: Progress,
) -> tuple[Accuracy, Differences]:
    """Compare an engine's logits on the test images with eager's, (N, classes) float32."""
    from resedge.benchmarks.accuracy import compare
    from resedge.runtimes.table import runtime

    size = evaluation_batch(engine)
    with runtime(engine.runtime).open(engine, RunOptions(measuring.threads)) as run:
        label = f"{engine.runtime} {engine.precision}, test"
        logits = evaluate(run, test, preprocessing, progress, label, size)
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
        return latencies_of(
            engines, source, data.test, data.preprocessing, measuring, EXPORT_PACE, site.reporter
        )

    done = run_stage(site, key, Latencies, make)
    if done.reused and any(entry.latency.relation == "inconclusive" for entry in done.value.engines):
        site.store.discard(key)
        done = run_stage(site, key, Latencies, make)
    return done


def say_disturbances(latencies: Latencies, reporter: Reporter) -> None:
    """Warn of what makes the ratios less certain: the work of others, engines that did not settle."""
    foreign, unsettled = latencies.conditions["foreign_cpu_cores"], latencies.conditions["unsettled"]
    if isinstance(foreign, float) and foreign > DISTURBING_CORES:
        reporter.warn(f"other programs kept {foreign:.1f} cores busy meanwhile: the ratios are less certain")
    if unsettled and isinstance(unsettled, (list, tuple)):
        reporter.warn(f"still changing after warm-up: {', '.join(map(str, unsettled))}")


def latencies_of(
    engines: Sequence[Engine],
    source: Artifact,
    test: ImageSet,
    preprocessing: Preprocessing,
    measuring: Measuring,
    pace: Pace,
    progress: Progress,
) -> Latencies:
    """Measure engines and eager at batch 1: in each round every one runs one block, in random order.

    All of them are open at once, and each call takes the next of the same few test images. On a Jetson each
    runs alone once more after the rounds, for its energy.
    """
    from resedge.benchmarks.conditions import Watch, conditions
    from resedge.benchmarks.latency import compare, measure
    from resedge.jetson import recording

    sample = test.select(range(min(LATENCY_IMAGES, len(test))))
    inputs = sample.prepared(preprocessing)
    tegrastats = recording.find()
    with ExitStack() as stack:
        with Watch(tegrastats) as watch:
            arms = _opened(stack, engines, source, inputs, measuring.threads)
            samples = measure(
                arms,
                EAGER,
                rounds=pace.rounds,
                block_seconds=pace.block_seconds,
                min_calls=pace.min_calls,
                seed=measuring.seed,
                progress=progress,
                warm_seconds=pace.warm_seconds,
            )
        of_jetson = energy_and_settings(arms, tegrastats, progress) if tegrastats else {}
    found = tuple(
        EngineLatency(
            engine.runtime,
            engine.precision,
            compare(samples, EAGER, EAGER_BEST, _arm(engine), measuring.confidence),
        )
        for engine in engines
    )
    made_under = conditions(measuring.threads, ("torch", *{engine.runtime for engine in engines}))
    settling: dict[str, JsonValue] = {
        "batch": 1,
        "computed": _computed(engines),
        "unsettled": list(samples.unsettled),
    }
    return Latencies(found, {**made_under, **watch.found(), **settling, **of_jetson, **asdict(pace)})


def _opened(
    stack: ExitStack, engines: Sequence[Engine], source: Artifact, inputs: Float32Array, threads: int
) -> dict[str, Arm]:
    """Open eager in both memory formats and all engines; return a function of one inference for each."""
    from resedge.runtimes.table import runtime

    run_options = RunOptions(threads, batch=1)
    arms: dict[str, Arm] = {}
    for name, memory_format in _MEMORY_FORMATS.items():
        eager = eager_runtime(memory_format)
        built = eager.build(source, source.path.parent, BuildOptions("fp32"))
        arms[name] = _one_image_at_a_time(stack.enter_context(eager.open(built, run_options)), inputs)
    for engine in engines:
        runner = stack.enter_context(runtime(engine.runtime).open(engine, run_options))
        arms[_arm(engine)] = _one_image_at_a_time(runner, inputs)
    return arms


def _computed(engines: Sequence[Engine]) -> dict[str, JsonValue]:
    """Return what each engine is computed in here, in its runtime's words."""
    from resedge.runtimes.table import runtime

    return {_arm(engine): runtime(engine.runtime).probe().precisions[engine.precision] for engine in engines}


def _arm(engine: Engine) -> str:
    return f"{engine.runtime}:{engine.precision}"


def _one_image_at_a_time(run: Runner, inputs: Float32Array) -> Arm:
    images = cycle([np.ascontiguousarray(inputs[i : i + 1]) for i in range(len(inputs))])
    return lambda: run(next(images))
