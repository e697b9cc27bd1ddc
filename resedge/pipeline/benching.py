"""`resedge bench`: measure a bundle's engines on this machine again, accuracy and latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resedge import bundle as bundles
from resedge.artifacts import (
    Artifact,
    Engine,
    JsonValue,
    Preprocessing,
    Verdict,
    encode,
)
from resedge.bundle import Bundle
from resedge.images import ImageSet
from resedge.pipeline import judging, measuring, presenting
from resedge.pipeline.datasets import bench_images, warn_of_labels
from resedge.pipeline.energy import say_energy
from resedge.pipeline.extras import require
from resedge.pipeline.inspecting import SATURATES, saturates_here
from resedge.pipeline.judging import Findings
from resedge.pipeline.local import engine_here
from resedge.pipeline.options import BUILT_ON_DEVICE, GRAPHS, BenchOptions, EngineName, Measuring
from resedge.pipeline.reporting import Reporter, Silent
from resedge.pipeline.running import eager_runtime, evaluate
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
    reporter = reporter or Silent()
    require("a bench", "export", "bench")
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
    opened: dict[EngineName, Engine] = {}
    for name in options.selection.engines:
        engine = _engine(bundle, name, findings)
        if engine is not None and _verify(engine, test, preprocessing, eager, how, findings, reporter):
            opened[name] = engine
    latencies = measuring.latencies_of(
        tuple(opened.values()), source, test, preprocessing, how, measuring.BENCH_PACE, reporter
    )
    rounds = f"{measuring.BENCH_PACE.rounds} interleaved rounds at batch 1, {how.threads} threads"
    reporter.stage("time", rounds)
    measuring.say_disturbances(latencies, reporter)
    say_energy(latencies.conditions, reporter)
    latencies = judging.with_inputs(latencies, how, test, bundle.manifest.parents["weights"])
    verdicts = judging.judge_all(options.selection.engines, findings, latencies, how)
    document = judging.document_of(verdicts, model.name, model.reference, latencies.conditions)
    code = judging.exit_code(verdicts, options.selection.named, findings)
    changes = presenting.changes_since(before, document) if before else None
    return Benched(
        bundle,
        test,
        findings,
        changes,
        verdicts,
        judging.sizes(opened),
        {**document, "compared": encode(changes)} if changes else document,
        presenting.joined(code, changes),
    )


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
    preprocessing: Preprocessing,
    eager: Float32Array,
    how: Measuring,
    findings: Findings,
    reporter: Reporter,
) -> bool:
    """Compare one engine with eager; return whether it can be timed."""
    name = (engine.runtime, engine.precision)
    found = findings.compared(
        name, lambda: measuring.accuracy_of(engine, test, preprocessing, eager, how, reporter)
    )
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
