"""`resedge build`: engines for this machine, from a bundle's graphs, in this machine's state folder.

Each is run on the golden images and timed, and where FP16 and INT8 are both there, one against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resedge import bundle as bundles
from resedge import files
from resedge.artifacts import Engine, Latency
from resedge.bundle import Bundle
from resedge.engines import GRAPHS, EngineName
from resedge.errors import InputRefused
from resedge.golden import read_golden
from resedge.pipeline import measuring
from resedge.pipeline.local import engines_folder, timing_folder
from resedge.pipeline.options import BuildingOptions
from resedge.pipeline.reporting import Reporter, Silent
from resedge.pipeline.vouching import demand_vouched_graph
from resedge.protocols import BuildOptions, Float32Array, RunOptions

if TYPE_CHECKING:
    from resedge.runtimes.tensorrt import TensorRT
    from resedge.runtimes.trt_run import TimedCalls

ROUNDS = 20
CALLS_PER_BLOCK = 20
BLOCK_SECONDS = 0.2
WARM_SECONDS = 3.0
CONFIDENCE = 0.95


@dataclass(frozen=True)
class BuiltHere:
    """The engines that were built, their folder, and INT8's gain over FP16 where both were."""

    engines: tuple[Engine, ...]
    folder: Path
    gain: Latency | None


def build(options: BuildingOptions, reporter: Reporter | None = None) -> BuiltHere:
    """Build engines for this machine, run them on the golden images, and time them.

    Raises:
        ResedgeError: Of the tree in `resedge.errors`: no bundle, no such runtime or GPU here, a graph that
            is refused, another process that is building.
    """
    reporter = reporter or Silent()
    bundle = bundles.read(options.bundle)
    bundles.check(bundle)
    engines = _build_all(bundle, options, reporter)
    return BuiltHere(engines, engines_folder(bundle), _measure(bundle, engines, options, reporter))


def gain_sentence(gain: Latency) -> str:
    """Say what INT8 gains over FP16, from `speedup`, FP16's time over INT8's."""
    measured = f"{gain.speedup:.2f} times FP16's speed ({gain.speedup_low:.2f} to {gain.speedup_high:.2f})"
    if gain.relation == "faster":
        return f"INT8 runs at {measured} on this device"
    if gain.relation == "inconclusive":
        return f"whether INT8 is faster than FP16 on this device is not settled: {measured}"
    return f"INT8 brings nothing on this device, use FP16: {measured}"


def _build_all(bundle: Bundle, options: BuildingOptions, reporter: Reporter) -> tuple[Engine, ...]:
    """Build into the state folder, one process at a time."""
    folder, timing = engines_folder(bundle), timing_folder()
    with files.disk_errors(folder, cure="Set RESEDGE_HOME to a folder that you may write to."):
        folder.mkdir(parents=True, exist_ok=True)
        timing.mkdir(parents=True, exist_ok=True)
    try:
        with files.locked_folder(folder, seconds=0):
            return tuple(
                _built(bundle, name, options, folder, timing, reporter) for name in options.selection.engines
            )
    except TimeoutError as error:
        raise InputRefused(
            "another process is building there.", where=str(folder), cure="Wait for it to end."
        ) from error


def _measure(
    bundle: Bundle, engines: Sequence[Engine], options: BuildingOptions, reporter: Reporter
) -> Latency | None:
    """Run what was built: against eager, for its times, and INT8 against FP16."""
    from resedge.runtimes.trt_run import SEMANTICS

    least = options.batch_range[0]
    images = _golden_images(bundle, least)
    for engine in engines:
        if least == 1:
            _verify(bundle, engine, reporter)
        _time(engine, images, reporter)
    reporter.note(f"times are of {SEMANTICS}")
    if least > 1:
        reporter.warn(f"not compared with eager, which takes one image at a time: these take {least} or more")
    return _gain(engines, images, reporter)


def _built(
    bundle: Bundle,
    name: EngineName,
    options: BuildingOptions,
    folder: Path,
    timing: Path,
    reporter: Reporter,
) -> Engine:
    from resedge.runtimes.trt_plans import read_record

    runtime_name, precision = name
    graph = bundle.file(GRAPHS[name])
    demand_vouched_graph(graph, parser=runtime_name)
    made = _runtime(runtime_name).build(
        graph,
        folder,
        BuildOptions(
            precision,
            options.batch_range,
            options.optimization_level,
            timing,
            options.dla,
            reporter,
        ),
    )
    (beside,) = made.companions
    record = read_record(beside.read(), str(beside.path))
    size = made.artifact.path.stat().st_size / 1e6
    reporter.stage("build", f"{runtime_name} {precision}, {size:.2f} MB: {record.layers.sentence()}")
    if record.low_memory:
        reporter.note("built in the way of boards with little memory: fewer kernels were tried")
    if record.layers.fell_back:
        reporter.warn(
            f"{runtime_name} {precision}: {len(record.layers.fell_back)} of {record.layers.convolutions} "
            "convolutions do not run in INT8 on this device"
        )
    return made


def _verify(bundle: Bundle, engine: Engine, reporter: Reporter) -> None:
    """Say on how many of the golden images the engine agrees with eager."""
    golden = bundle.file(bundles.GOLDEN)
    agreement = measuring.golden_agreement(engine, golden, threads=1)
    called = f"{engine.runtime} {engine.precision}"
    reporter.stage("verify", f"{called} agrees with eager on {agreement:.1%} of the golden images")
    if agreement < 1:
        reporter.warn(f"{called} disagrees with eager on images that eager is sure of; run `resedge bench`")


def _time(engine: Engine, images: Float32Array, reporter: Reporter) -> None:
    timed: TimedCalls = _runtime(engine.runtime).time(engine, RunOptions(1), images, CALLS_PER_BLOCK)
    spans = timed.median
    reporter.stage(
        "time",
        f"{engine.runtime} {engine.precision}, batch {timed.batch}: {spans.end_to_end_ms:.3f} ms end to end; "
        f"host to device {spans.host_to_device_ms:.3f}, GPU {spans.gpu_ms:.3f}, "
        f"device to host {spans.device_to_host_ms:.3f}",
    )


def _gain(engines: Sequence[Engine], images: Float32Array, reporter: Reporter) -> Latency | None:
    """Compare INT8 with FP16 in interleaved blocks, where a runtime has both."""
    by_name = {engine.precision: engine for engine in engines}
    if not {"fp16", "int8"} <= set(by_name):
        return None
    gain = compare_precisions({name: by_name[name] for name in ("fp16", "int8")}, images, reporter)
    say = reporter.note if gain.relation == "faster" else reporter.warn
    say(gain_sentence(gain))
    return gain


def compare_precisions(engines: Mapping[str, Engine], images: Float32Array, reporter: Reporter) -> Latency:
    """Measure "int8" against "fp16"; the `eager` of the result is FP16."""
    from resedge.benchmarks.latency import compare
    from resedge.benchmarks.rounds import measure

    with ExitStack() as stack:
        arms: dict[str, Callable[[], object]] = {}
        for name, engine in engines.items():
            options = RunOptions(1, batch=len(images))
            run = stack.enter_context(_runtime(engine.runtime).open(engine, options))
            batches = cycle([np.ascontiguousarray(np.roll(images, shift, axis=-1)) for shift in range(4)])
            arms[name] = lambda run=run, batches=batches: run(next(batches))  # type: ignore[misc]
        samples = measure(
            arms,
            "fp16",
            rounds=ROUNDS,
            block_seconds=BLOCK_SECONDS,
            min_calls=CALLS_PER_BLOCK,
            seed=0,
            progress=reporter,
            warm_seconds=WARM_SECONDS,
        )
    return compare([samples], "fp16", "fp16", "int8", CONFIDENCE)


def _golden_images(bundle: Bundle, number: int) -> Float32Array:
    """Return that many of the golden images, from the first again where there are fewer."""
    images, _ = read_golden(bundle.file(bundles.GOLDEN))
    return np.resize(images, (number, *images.shape[1:]))


def _runtime(name: str) -> TensorRT:
    from resedge.runtimes.table import runtime
    from resedge.runtimes.tensorrt import TensorRT

    made = runtime(name)
    assert isinstance(made, TensorRT)
    return made
