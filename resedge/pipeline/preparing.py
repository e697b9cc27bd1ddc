"""The stages of an export up to the graphs that engines are built from, and what is said of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from resedge import machine
from resedge.artifacts import Artifact, load
from resedge.export.halfreport import HalfReport
from resedge.pipeline import calibrating, fitting, halving, preflighting, stages
from resedge.pipeline.datasets import warn_of_labels
from resedge.pipeline.modelling import Loaded
from resedge.pipeline.options import ExportOptions
from resedge.pipeline.reporting import Reporter
from resedge.pipeline.staging import Data, Done, Places, Site
from resedge.runtimes.rtx_preflight import Preflight

_FITTED = {
    fitting.NEAREST: "",
    fitting.BIAS: ", biases corrected",
    fitting.TOGETHER: ", weights rounded together, biases corrected",
}


@dataclass(frozen=True)
class Prepared:
    """The finished stages before any engine; `files` are those that belong into the bundle.

    `label` is the model's name as bundles and reports have it.
    `preflights` has what TensorRT for RTX said of the graphs for TensorRT, by their places in the bundle.
    """

    label: str
    reference: Done[stages.Reference]
    graphs: Done[stages.Graphs]
    answers: Done[stages.EagerAnswers]
    calibrated: Done[calibrating.Calibrated]
    halves: tuple[Done[Artifact], ...]
    preflights: Mapping[str, Done[Preflight]]

    @property
    def done(self) -> tuple[Done[Any], ...]:
        """All of them, in order."""
        one_each = (self.reference, self.graphs, self.answers, self.calibrated)
        return (*one_each, *self.halves, *self.preflights.values())

    @property
    def places(self) -> Places:
        """Where each of `files` is now, by its place in the bundle."""
        everywhere = {name: path for done in self.done for name, path in done.places.items()}
        within = {artifact.path for artifact in self.files}
        return {name: path for name, path in everywhere.items() if path in within}

    @property
    def files(self) -> tuple[Artifact, ...]:
        """What belongs into the bundle."""
        reference, graphs = self.reference.value, self.graphs.value
        answers, calibrated = self.answers.value, self.calibrated.value
        return (
            *(reference.source, reference.weights),
            *(graphs.fp32, graphs.folding, graphs.half),
            *(graph for graph in (calibrated.equalised, calibrated.int8_cpu) if graph is not None),
            *(half.value for half in self.halves),
            *(calibrated.ranges, calibrated.layers, calibrated.seen),
            *(answers.golden, answers.trial),
        )

    @property
    def name(self) -> str:
        """The reference as every report names it."""
        return "eager, batchnorm split" if self.reference.value.repaired else "eager, as trained"


def prepare(site: Site, data: Data, model: Loaded, options: ExportOptions, here: machine.Machine) -> Prepared:
    """Make the reference, the graphs, eager's answers, the calibration and the FP16 forms, looked at.

    Raises:
        InputRefused: The weights or the images are not what they must be.
    """
    say = site.reporter.stage
    trained_here = model.named.kind == "notebook" and options.weights is None
    reference = stages.reference(
        site,
        data,
        model,
        batchnorm=options.batchnorm or ("split" if trained_here else "keep"),
    )
    _say_reference(site.reporter, reference)
    graphs = stages.graphs(site, data, reference)
    _say_folding(site.reporter, graphs)
    answers = stages.eager_answers(site, data, reference)
    say("eager", _eager_line(answers.value, data), reused=answers.reused)
    warn_of_labels(np.load(answers.value.test_logits.path), data.test, site.reporter)
    tuning = calibrating.Tuning(
        options.measuring.max_drop,
        options.keep,
        options.thorough,
        test_images=len(data.test),
        confidence=options.measuring.confidence,
    )
    calibrated = calibrating.calibrated(
        site, data, graphs, answers, pair_safe=here.saturates_pairs, tuning=tuning
    )
    _say_calibration(site.reporter, calibrated, tuning)
    if here.saturates_pairs:
        site.reporter.note(
            "this CPU has no VNNI and adds pairs of 8-bit products in 16 bits: the weights of "
            "int8.cpu.onnx are limited so that no pair can saturate"
        )
    halves = _halves(site, graphs.value, calibrated.value)
    looked_at = preflighting.preflights(site, [half.value for half in halves], options.batch_range)
    return Prepared(model.about.label, reference, graphs, answers, calibrated, halves, looked_at)


def _halves(
    site: Site, graphs: stages.Graphs, calibrated: calibrating.Calibrated
) -> tuple[Done[Artifact], ...]:
    report = load(HalfReport, graphs.half.path)
    extremes = load(calibrating.RangesDocument, calibrated.ranges.path).extremes
    wide = halving.explain_wide(report, extremes, frozenset(calibrated.wide))
    return halving.half_graphs(site, graphs.fp32, calibrated.tensorrt_in_fp32, report, wide)


def _say_calibration(
    reporter: Reporter, done: Done[calibrating.Calibrated], tuning: calibrating.Tuning
) -> None:
    found = done.value
    reporter.stage("calibrate", f"{found.images:,} images, once for every runtime", reused=done.reused)
    for scheme, chosen in (("CPU", found.cpu), ("TensorRT", found.tensorrt)):
        reporter.note(
            f"for {scheme}: {chosen.method} ranges{_FITTED[chosen.fitted]}; {chosen.agreement:.2%} agreement "
            f"with eager on {chosen.images:,} tuning images"
        )
    for warning in found.warnings:
        reporter.warn(warning)
    if found.kept:
        reporter.note(f"{len(found.kept)} of {found.layer_count} layers stay float: {', '.join(found.kept)}")
    if not found.met:
        reporter.warn(
            f"no INT8 graph with half of its work in INT8 keeps the drop within {tuning.max_drop:.2%} on the "
            "tuning images. What leaving layers float buys (`resedge explain` has every trial):"
        )
        for trial in found.frontier:
            reporter.note(
                f"{len(trial.kept)} of {found.layer_count} layers float, {trial.share:.1%} of the "
                f"multiply-accumulates: drop {trial.score.drop:.2%}, {trial.score.agreement:.2%} agree"
            )
    elif found.tensorrt.drop > tuning.max_drop:
        reporter.warn(
            f"TensorRT's graph loses {found.tensorrt.drop:.2%} on {found.tensorrt.images} tuning images, "
            f"{tuning.max_drop:.2%} are allowed: measure it on the device before it serves"
        )


def _say_reference(reporter: Reporter, done: Done[stages.Reference]) -> None:
    found = done.value
    if (gap := found.gap) and gap.wide:
        reporter.warn(
            f"the calibration images reach {gap.batchnorm} {gap.spread:.2g} times as spread as in training "
            f"and {gap.shift:.2g} standard deviations off: they look as if they were normalised in another "
            "way (mean, std, value range, channel order), or are of another kind"
        )
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
    reporter.stage("onnx", f"fp32.onnx, opset {found.fp32.meta['opset']}", reused=done.reused)
    if found.pixels:
        reporter.note(
            "in INT8 the first convolution reads pixels as they are: mean and standard deviation are in its "
            f"weights, proved (float64 residual {found.pixels_residual:.0e})"
        )
    elif found.pixels_reason:
        reporter.note(f"mean and standard deviation are not in the first convolution: {found.pixels_reason}")


def _eager_line(answers: stages.EagerAnswers, data: Data) -> str:
    size = f"{len(data.test):,} test images"
    if data.test.labels is None:
        return f"{size}, unlabelled"
    logits = np.load(answers.test_logits.path)
    return f"top-1 {(logits.argmax(axis=1) == data.test.labels).mean():.2%} on {size}"
