"""`resedge bench`: measure a bundle's engines on this machine again, accuracy and latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from resedge import bundle as bundles
from resedge.artifacts import (
    Accuracy,
    Artifact,
    Engine,
    JsonValue,
    Preprocessing,
    Verdict,
    encode,
)
from resedge.bundle import Bundle
from resedge.engines import BUILT_ON_DEVICE, GRAPHS, EngineName
from resedge.export.names import parse
from resedge.export.sources import given
from resedge.images import ImageSet
from resedge.pipeline import judging, measuring, presenting, scenarios
from resedge.pipeline.datasets import bench_images, warn_of_labels
from resedge.pipeline.differing import Differences
from resedge.pipeline.energy import say_energy
from resedge.pipeline.extras import require
from resedge.pipeline.inspecting import SATURATES, saturates_here
from resedge.pipeline.judging import Findings
from resedge.pipeline.local import engine_here
from resedge.pipeline.measuring import Latencies
from resedge.pipeline.options import BenchOptions, Measuring
from resedge.pipeline.piloting import Piloting
from resedge.pipeline.reporting import Reporter, Silent
from resedge.pipeline.running import eager_runtime, evaluate
from resedge.pipeline.timing import Job
from resedge.protocols import BuildOptions, Float32Array, RunOptions

if TYPE_CHECKING:
    from resedge.benchmarks.comparing import Changes


@dataclass(frozen=True)
class Benched:
    """What a bench found: verdicts, their document as JSON, and what they come to as an exit code.

    `changes` is None unless an older document was to be compared with; `findings` and `test` are what pages
    are made from.
    """

    bundle: Bundle
    test: ImageSet
    findings: Findings
    changes: Changes | None
    verdicts: tuple[Verdict, ...]
    sizes: Mapping[EngineName, int]
    document: Mapping[str, JsonValue]
    exit_code: int


def bench(options: BenchOptions, reporter: Reporter | None = None) -> Benched:
    """Measure the engines of a bundle against its eager reference; the bundle is not changed.

    Raises:
        ResedgeError: Of the tree in `resedge.errors`: no bundle, changed files, images shared with
            calibration, and so on.
    """
    named = parse(options.model) if options.model else None
    require("a bench", "export", "bench")
    with given(named):
        return _bench(options, str(named) if named else None, reporter or Silent())


def _bench(options: BenchOptions, named: str | None, reporter: Reporter) -> Benched:
    if {"single-stream", "offline"}.intersection(options.scenarios.names):
        require("MLPerf's LoadGen", "loadgen")
    bundle = bundles.read(options.bundle)
    bundles.check(bundle)
    reporter.stage("bundle", f"{options.bundle}: {len(bundle.manifest.files)} files, all as named")
    model = bundle.manifest.model
    before = presenting.older(options.compare, model) if options.compare else None
    if saturates_here(bundle):
        reporter.warn(SATURATES)
    test, preprocessing = bench_images(bundle, options, reporter), bundle.manifest.preprocessing
    source = bundle.file("reference/source.json")
    eager = _eager_logits(source, test, preprocessing, options, reporter)
    warn_of_labels(eager, test, reporter)
    how, findings = options.measuring, Findings()
    there = {
        name: engine
        for name in options.selection.engines
        if (engine := _engine(bundle, name, findings)) is not None
    }
    piloting = Piloting(how.max_drop, how.confidence, len(there))
    opened = {
        name: engine
        for name, engine in there.items()
        if _verify(engine, test, bundle.manifest.outside, eager, how, findings, piloting, reporter)
    }
    pace = replace(measuring.BENCH_PACE, rounds=options.rounds)
    job = Job(source, tuple(opened.values()), how.threads, how.seed, pace, options.self_check, named)
    latencies = measuring.latencies_of(job, test, preprocessing, how.confidence, options.processes, reporter)
    _say_timed(latencies, options, reporter)
    latencies = judging.with_inputs(latencies, how, test, bundle.manifest.parents["weights"])
    verdicts = judging.judge_all(options.selection.engines, findings, latencies, how, demand_stable=True)
    document = judging.document_of(verdicts, model.name, model.reference, latencies)
    code = judging.exit_code(verdicts, options.selection.named, findings, latencies=latencies)
    changes = presenting.changes_since(before, document) if before else None
    sizes = judging.sizes(opened)
    besides = scenarios.run(bundle, opened, sizes, test, options.scenarios, how.threads, reporter)
    document = scenarios.with_scenarios(document, besides)
    return Benched(
        bundle,
        test,
        findings,
        changes,
        verdicts,
        sizes,
        {**document, "compared": encode(changes)} if changes else document,
        scenarios.joined(presenting.joined(code, changes), besides),
    )


def _say_timed(latencies: Latencies, options: BenchOptions, reporter: Reporter) -> None:
    """Say how latency was measured, what disturbed that, and what eager against itself came to."""
    rounds = f"{options.rounds} interleaved rounds in {options.processes} processes"
    reporter.stage("time", f"{rounds} at batch 1, {options.measuring.threads} threads")
    if latencies.partial:
        reporter.warn("interrupted: the verdicts are of the rounds that were whole by then")
    measuring.say_disturbances(latencies, reporter)
    say_energy(latencies.conditions, reporter)
    if check := latencies.self_check:
        interval = f"{check.ratio:.3f}x ({check.low:.3f} to {check.high:.3f})"
        reporter.stage("check", f"eager against itself: {check.relation}, {interval}")


def _engine(bundle: Bundle, name: EngineName, findings: Findings) -> Engine | None:
    engine = engine_here(bundle, name)
    if engine is None and name[0] in BUILT_ON_DEVICE:
        findings.missing[name] = f"{judging.ON_DEVICE} with `resedge build`, from {GRAPHS[name]}"
    elif engine is None:
        findings.missing[name] = "the bundle has no such engine; export it again with this backend"
    return engine


def _verify(
    engine: Engine,
    test: ImageSet,
    outside: Preprocessing | None,
    eager: Float32Array,
    how: Measuring,
    findings: Findings,
    piloting: Piloting,
    reporter: Reporter,
) -> bool:
    """Compare one engine with eager; return whether it can be timed."""
    name = (engine.runtime, engine.precision)

    def compare() -> tuple[Accuracy, Differences]:
        piloting.say(engine, test, outside, eager, how.threads, reporter)
        return measuring.accuracy_of(engine, test, outside, eager, how, reporter)

    found = findings.compared(name, compare)
    if found is None:
        return False
    accuracy, findings.differences[name] = found
    findings.accuracies[name] = accuracy
    agreement = f"{' '.join(name)} agrees with eager on {accuracy.agreement:.2%} of the test images"
    reporter.stage("verify", agreement)
    return True


def _eager_logits(
    source: Artifact,
    test: ImageSet,
    preprocessing: Preprocessing,
    options: BenchOptions,
    reporter: Reporter,
) -> Float32Array:
    runtime = eager_runtime("contiguous")
    engine = runtime.build(source, source.path.parent, BuildOptions("fp32"))
    with runtime.open(engine, RunOptions(options.measuring.threads)) as run:
        return evaluate(run, test, preprocessing, reporter, "eager, test")
