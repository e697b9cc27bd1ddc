"""`resedge export`: from a model and images to a bundle of verified engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from resedge import bundle as bundles
from resedge import data as builtin
from resedge import home, images
from resedge.artifacts import (
    FORMAT_VERSION,
    Accuracy,
    Artifact,
    Engine,
    JsonValue,
    Verdict,
    parse_json,
    read_text,
)
from resedge.bundle import Manifest, ModelInfo, Published, Target
from resedge.errors import InputRefused, RuntimeUnavailable, UsageError
from resedge.images import Split
from resedge.pipeline import judging, machine, measuring, stages
from resedge.pipeline.extras import require
from resedge.pipeline.options import GRAPHS, RUNTIMES, EngineName, ExportOptions
from resedge.pipeline.reporting import Reporter, Silent
from resedge.pipeline.staging import Data, Done, Places, Site, versions
from resedge.store import Store

MODELS = ("notebook",)
_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True)
class Exported:
    """What an export made.

    `sizes` has the bytes of each engine, `document` the verdicts as JSON, `exit_code` what they come
    to, and `all_reused` says that every stage was found done.
    """

    published: Published
    verdicts: tuple[Verdict, ...]
    sizes: Mapping[EngineName, int]
    document: Mapping[str, JsonValue]
    exit_code: int
    all_reused: bool


@dataclass(frozen=True)
class _Prepared:
    """The stages before any engine."""

    reference: Done[stages.Reference]
    graphs: Done[stages.Graphs]
    answers: Done[stages.EagerAnswers]
    calibrated: Done[stages.Calibrated]
    halves: tuple[Done[Artifact], ...]

    @property
    def done(self) -> tuple[Done[Any], ...]:
        return (self.reference, self.graphs, self.answers, self.calibrated, *self.halves)

    @property
    def places(self) -> Places:
        everywhere = {name: path for done in self.done for name, path in done.places.items()}
        within = {artifact.path for artifact in self.files}
        return {name: path for name, path in everywhere.items() if path in within}

    @property
    def files(self) -> tuple[Artifact, ...]:
        reference, graphs = self.reference.value, self.graphs.value
        answers, calibrated = self.answers.value, self.calibrated.value
        return (
            *(reference.source, reference.weights),
            *(graphs.fp32, graphs.folding, calibrated.int8_cpu),
            *(half.value for half in self.halves),
            *(calibrated.ranges, calibrated.seen),
            *(answers.golden, answers.trial),
        )

    @property
    def name(self) -> str:
        """The reference as every report names it."""
        return "eager, batchnorm split" if self.reference.value.repaired else "eager, as trained"


def export(options: ExportOptions, reporter: Reporter | None = None) -> Exported:
    """Do the whole job: trace, fold, calibrate, build, verify, and write the bundle.

    Raises:
        ResedgeError: Of the tree in `resedge.errors`; the bundle is then as it was before.
    """
    reporter = reporter or Silent()
    if options.model not in MODELS:
        raise UsageError(f"unknown model {options.model!r}.", cure=f"Known: {', '.join(MODELS)}.")
    require("an export", "export", "onnxruntime", "bench")
    out = options.out or Path(f"{options.model}.resedge")
    bundles.check_place(out)
    store = Store(home.cache_folder())
    here = machine.describe()
    site = Site(store, here.digest, options.measuring.threads, reporter)

    split = read_images(options)
    data = Data(split.calibration, split.tuning, split.test, images.NOTEBOOK_PREPROCESSING)
    _say_images(reporter, split)
    prepared = _prepare(site, data, options, here)
    engines, missing = _build(site, options, prepared)
    judged = _measure(site, data, options, prepared, engines, missing)

    places = {**prepared.places, **judged.places}
    for built in engines.values():
        places.update(built.places)
    manifest = _manifest(options, data, here, prepared, engines, judged.value)
    published = bundles.publish(manifest, places, out, locks=store.root / "locks")
    store.shrink()
    every_stage: tuple[Done[Any], ...] = (
        *prepared.done,
        *engines.values(),
        judged,
    )
    return Exported(
        published,
        judged.value.verdicts,
        judging.sizes({name: built.value for name, built in engines.items()}),
        _as_object(judged.value.document),
        judging.exit_code(judged.value.verdicts, options.selection.named),
        all_reused=all(done.reused for done in every_stage),
    )


# --- images --------------------------------------------------------------------------------------


def read_images(options: ExportOptions) -> Split:
    """Return the three disjoint sets that the options name; the built-in ones where they name none.

    Raises:
        UsageError: --data beside --calibration-data or --test-data.
        InputRefused: A folder is not what it must be, or has classes that the model lacks.
    """
    seed = options.measuring.seed
    if options.data is not None:
        if options.calibration_data or options.test_data:
            raise UsageError(
                "--data is split into calibration, tuning and test images.",
                cure="Give --data alone, or --calibration-data and --test-data.",
            )
        return images.split(_folder(options.data), seed)
    chosen, tested = options.calibration_data, options.test_data
    calibration, tuning = images.halve(_folder(chosen) if chosen else images.builtin_calibration(), seed)
    test = _folder(tested) if tested else images.builtin_test()
    return images.disjoint(calibration, tuning, test)


def _folder(path: Path) -> images.ImageSet:
    found = images.read_folder(path)
    classes = len(builtin.FASHION_MNIST_CLASSES)
    if found.labels is not None and len(found.class_names) > classes:
        raise InputRefused(
            f"has {len(found.class_names)} class folders, the model has {classes} classes.",
            where=str(path),
        )
    return found


def _say_images(reporter: Reporter, split: Split) -> None:
    sets = (split.calibration, split.tuning, split.test)
    sizes = "{:,} for calibration, {:,} for tuning, {:,} for test".format(*map(len, sets))
    reporter.stage("images", f"{sizes}, disjoint by digest ({split.test.origin})")
    if split.overlaps:
        reporter.warn(f"{split.overlaps} test images also occur in another set and were left out")
    if split.test.labels is None:
        reporter.warn("the test images have no labels: verdicts rest on agreement with eager alone")


# --- the stages, and what is said of each --------------------------------------------------------


def _prepare(site: Site, data: Data, options: ExportOptions, here: machine.Machine) -> _Prepared:
    say = site.reporter.stage
    reference = stages.reference(
        site,
        data,
        model=options.model,
        weights=options.weights or builtin.NOTEBOOK_WEIGHTS,
        batchnorm=options.batchnorm or ("keep" if options.weights else "split"),
    )
    _say_reference(site.reporter, reference)
    graphs = stages.graphs(site, data, reference)
    _say_folding(site.reporter, graphs)
    answers = stages.eager_answers(site, data, reference)
    say("eager", _eager_line(answers.value, data), reused=answers.reused)
    calibrated = stages.calibrated(site, data, graphs, answers, pair_safe=here.saturates_pairs)
    found = calibrated.value
    say(
        "calibrate",
        f"{found.images:,} images once; {found.method} ranges win with {found.agreement:.2%} agreement "
        "on the tuning images",
        reused=calibrated.reused,
    )
    if here.saturates_pairs:
        site.reporter.note(
            "this CPU has no VNNI and adds pairs of 8-bit products in 16 bits: the weights of "
            "int8.cpu.onnx are limited so that no pair can saturate"
        )
    return _Prepared(reference, graphs, answers, calibrated, _halves(site, graphs, calibrated))


def _halves(
    site: Site, graphs: Done[stages.Graphs], calibrated: Done[stages.Calibrated]
) -> tuple[Done[Artifact], ...]:
    """Write the graphs for TensorRT; what has no FP16 form is said, and its engine is then missing."""
    halves = []
    for graph, name in (
        (graphs.value.fp32, "fp16.onnx"),
        (calibrated.value.tensorrt_in_fp32, "int8.tensorrt.onnx"),
    ):
        try:
            done = stages.half_graph(site, graph, name)
        except InputRefused as error:
            site.reporter.warn(f"no {name}: {error}")
            continue
        site.reporter.stage("onnx", f"{name}, strongly typed for TensorRT", reused=done.reused)
        halves.append(done)
    return tuple(halves)


def _say_reference(reporter: Reporter, done: Done[stages.Reference]) -> None:
    found = done.value
    if found.trained is None:
        reporter.stage("model", "loaded; no BatchNorm is called twice", reused=done.reused)
        return
    sites = ", ".join(f"{name} at {calls} places" for name, calls in found.shared.items())
    if found.repaired is None:
        reporter.stage("model", "loaded; kept as trained", reused=done.reused)
        reporter.warn(
            f"shared BatchNorm ({sites}): evaluation mode agrees with batch statistics on "
            f"{found.trained.agreement:.1%} of the calibration images{_top1s(found.trained)}. "
            "`--batchnorm split` gives every call its own statistics"
        )
        return
    reporter.stage(
        "model", f"loaded; shared BatchNorm split ({len(found.shared)} modules)", reused=done.reused
    )
    reporter.note(
        f"shared BatchNorm: {sites}. As trained, evaluation mode agrees with batch statistics on "
        f"{found.trained.agreement:.1%} of the calibration images{_top1s(found.trained)}; split and "
        f"re-estimated, on {found.repaired.agreement:.1%}{_top1s(found.repaired)}. "
        "The split model is the reference below"
    )


def _top1s(modes: stages.Modes) -> str:
    if modes.top1_eval is None or modes.top1_batch is None:
        return ""
    return f" (top-1 {modes.top1_eval:.1%} against {modes.top1_batch:.1%})"


def _say_folding(reporter: Reporter, done: Done[stages.Graphs]) -> None:
    found = done.value
    reporter.stage(
        "fold",
        f"{found.folded} of {found.folded + len(found.refused)} conv + BatchNorm pairs folded and proved "
        f"(largest float64 residual {found.largest_residual:.0e})",
        reused=done.reused,
    )
    for reason in found.refused:
        reporter.note(f"not folded: {reason}")
    reporter.stage("onnx", "fp32.onnx, opset 19", reused=done.reused)


def _eager_line(answers: stages.EagerAnswers, data: Data) -> str:
    size = f"{len(data.test):,} test images"
    if data.test.labels is None:
        return f"{size}, unlabelled"
    logits = np.load(answers.test_logits.path)
    return f"top-1 {(logits.argmax(axis=1) == data.test.labels).mean():.2%} on {size}"


def _build(
    site: Site, options: ExportOptions, prepared: _Prepared
) -> tuple[dict[EngineName, Done[Engine]], dict[EngineName, str]]:
    """Build the engines that were asked for; a backend that fails does not stop the others."""
    graph_of = {artifact.path: artifact for artifact in prepared.files}
    built: dict[EngineName, Done[Engine]] = {}
    missing: dict[EngineName, str] = {}
    for name in options.selection.engines:
        runtime, precision = name
        if runtime == "tensorrt":
            found = GRAPHS[name] in prepared.places
            missing[name] = (
                f"{judging.ON_DEVICE}, from {GRAPHS[name]}" if found else "this model has no FP16 form"
            )
            continue
        graph = graph_of[prepared.places[GRAPHS[name]]]
        try:
            built[name] = measuring.built_engine(site, name, graph, prepared.places)
        except RuntimeUnavailable as error:
            missing[name] = str(error)
            site.reporter.warn(f"{runtime} {precision}: {error}")
            continue
        megabytes = sum(judging.sizes({name: built[name].value}).values()) / 1e6
        reused = built[name].reused
        site.reporter.stage("build", f"{runtime} {precision}, {megabytes:.2f} MB", reused=reused)
    return built, missing


def _measure(
    site: Site,
    data: Data,
    options: ExportOptions,
    prepared: _Prepared,
    built: Mapping[EngineName, Done[Engine]],
    missing: Mapping[EngineName, str],
) -> Done[judging.Judged]:
    accuracies: dict[EngineName, Accuracy] = {}
    for name, engine in built.items():
        done = measuring.measured_accuracy(site, data, engine.value, prepared.answers, options.measuring)
        accuracies[name] = done.value
        agreement = f"{name[0]} {name[1]} agrees with eager on {done.value.agreement:.2%}"
        site.reporter.stage("verify", f"{agreement} of the test images", reused=done.reused)
    engines = tuple(engine.value for engine in built.values())
    latencies = measuring.measured_latency(
        site, data, prepared.reference.value.source, engines, options.measuring
    )
    rounds = f"{measuring.EXPORT_PACE.rounds} interleaved rounds at batch 1, {site.threads} threads"
    site.reporter.stage("time", rounds, reused=latencies.reused)
    return judging.judged(
        site,
        options.selection.engines,
        missing,
        accuracies,
        latencies.value,
        options.measuring,
        model=options.model,
        reference=prepared.name,
    )


# --- the bundle ----------------------------------------------------------------------------------


def _manifest(
    options: ExportOptions,
    data: Data,
    here: machine.Machine,
    prepared: _Prepared,
    built: Mapping[EngineName, Done[Engine]],
    judged: judging.Judged,
) -> Manifest:
    from resedge.runtimes.tensorrt import trtexec_commands

    graphs = prepared.graphs.value
    places = {path: name for name, path in prepared.places.items()}
    files = [(artifact, places[artifact.path]) for artifact in prepared.files]
    files += [(a, f"verdicts/{a.path.name}") for a in (judged.document, *judged.files)]
    engines = []
    for done in built.values():
        names = {**places, **{path: name for name, path in done.places.items()}}
        parts = (done.value.artifact, *done.value.companions)
        files += [(part, names[part.path]) for part in parts if part.path not in places]
        engines.append(_moved_engine(done.value, names))
    reference = prepared.reference.value
    return Manifest(
        format_version=FORMAT_VERSION,
        counter=0,
        expires=None,
        signing=None,
        model=ModelInfo(
            options.model,
            prepared.name,
            "split" if reference.repaired else "keep",
            graphs.fp32.inputs[0],
            graphs.fp32.outputs[0],
        ),
        preprocessing=data.preprocessing,
        labels=data.test.class_names or builtin.FASHION_MNIST_CLASSES,
        target=Target(RUNTIMES, here.features),
        files=tuple(sorted((_moved(a, name) for a, name in files), key=lambda a: a.path.as_posix())),
        engines=tuple(engines),
        toolchain={k: v for k, v in versions(*_TOOLS).items() if v != "absent"},
        parents={
            "weights": reference.weights.sha256,
            "calibration_images": data.calibration.sha256,
            "tuning_images": data.tuning.sha256,
            "test_images": data.test.sha256,
        },
        trtexec={
            half.value.path.name: dict(trtexec_commands(half.value, options.batch_range))
            for half in prepared.halves
        },
    )


def _moved(artifact: Artifact, name: str) -> Artifact:
    return replace(artifact, path=Path(name))


def _moved_engine(engine: Engine, names: Mapping[Path, str]) -> Engine:
    return replace(
        engine,
        artifact=_moved(engine.artifact, names[engine.artifact.path]),
        companions=tuple(_moved(c, names[c.path]) for c in engine.companions),
    )


def _as_object(document: Artifact) -> Mapping[str, JsonValue]:
    parsed: Any = parse_json(read_text(document.path), str(document.path))
    return dict(parsed)
