"""`resedge bench`: measure a bundle's engines on this machine again, accuracy and latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resedge import bundle as bundles
from resedge import images
from resedge.artifacts import (
    Accuracy,
    Artifact,
    Engine,
    JsonValue,
    Preprocessing,
    Verdict,
    decode,
    parse_json,
)
from resedge.bundle import Bundle
from resedge.errors import RuntimeUnavailable
from resedge.images import ImageSet
from resedge.pipeline import judging, measuring
from resedge.pipeline.extras import require
from resedge.pipeline.options import GRAPHS, BenchOptions, EngineName
from resedge.pipeline.reporting import Reporter, Silent
from resedge.pipeline.running import eager_runtime, evaluate
from resedge.pipeline.stages import SeenImages
from resedge.protocols import BuildOptions, Float32Array, RunOptions


@dataclass(frozen=True)
class Benched:
    """What a bench found: verdicts, their document as JSON, and what they come to as an exit code."""

    bundle: Bundle
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
    test, preprocessing = _test_images(bundle, options, reporter), bundle.manifest.preprocessing
    source = bundle.file("reference/source.json")
    eager = _eager_logits(source, test, preprocessing, options, reporter)
    engines, missing = _engines(bundle, options, reporter)

    accuracies: dict[EngineName, Accuracy] = {}
    opened: dict[EngineName, Engine] = {}
    how = options.measuring
    for name, engine in engines.items():
        try:
            accuracies[name] = measuring.accuracy_of(engine, test, preprocessing, eager, how, reporter)
        except RuntimeUnavailable as error:
            missing[name] = str(error)
            continue
        opened[name] = engine
        agreement = f"{name[0]} {name[1]} agrees with eager on {accuracies[name].agreement:.2%}"
        reporter.stage("verify", f"{agreement} of the test images")
    latencies = measuring.latencies_of(
        tuple(opened.values()), source, test, preprocessing, how, measuring.BENCH_PACE, reporter
    )
    rounds = f"{measuring.BENCH_PACE.rounds} interleaved rounds at batch 1, {how.threads} threads"
    reporter.stage("time", rounds)
    model = bundle.manifest.model
    verdicts = judging.judge_all(options.selection.engines, missing, accuracies, latencies, how)
    return Benched(
        bundle,
        verdicts,
        judging.sizes(opened),
        judging.document_of(verdicts, model.name, model.reference, latencies.conditions),
        judging.exit_code(verdicts, options.selection.named),
    )


def _test_images(bundle: Bundle, options: BenchOptions, reporter: Reporter) -> ImageSet:
    """Return the test images, without those that calibration or tuning has seen."""
    test = images.read_folder(options.test_data) if options.test_data else images.builtin_test()
    listed = bundle.file("calibration/images.json")
    seen = decode(SeenImages, parse_json(listed.read().decode(), str(listed.path)), str(listed.path))
    unseen = images.without(test, frozenset(seen.calibration) | frozenset(seen.tuning))
    if len(unseen) < len(test):
        reporter.warn(f"{len(test) - len(unseen)} test images also served calibration and were left out")
    if unseen.labels is None:
        reporter.warn("the test images have no labels: verdicts rest on agreement with eager alone")
    reporter.stage("images", f"{len(unseen):,} test images ({test.origin})")
    return unseen


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


def _engines(
    bundle: Bundle, options: BenchOptions, reporter: Reporter
) -> tuple[dict[EngineName, Engine], dict[EngineName, str]]:
    engines: dict[EngineName, Engine] = {}
    missing: dict[EngineName, str] = {}
    for name in options.selection.engines:
        engine = bundle.engine(*name)
        if engine is not None:
            engines[name] = engine
        elif name[0] == "tensorrt":
            missing[name] = f"{judging.ON_DEVICE}, from {GRAPHS[name]}"
        else:
            missing[name] = "the bundle has no such engine; export it again with this backend"
    return engines, missing
