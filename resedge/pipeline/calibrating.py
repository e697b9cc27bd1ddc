"""The calibration stage: ranges chosen, numbers fitted, layers kept float where the budget needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resedge.artifacts import Artifact, Ranges, encode, sha256_json
from resedge.calibration.bakeoff import BakeOff, Score
from resedge.calibration.budget import Search, Sensitivity
from resedge.calibration.layers import Layer
from resedge.pipeline.running import evaluate
from resedge.pipeline.stages import EagerAnswers, Graphs, write_json
from resedge.pipeline.staging import Data, Done, Site, run_stage, versions
from resedge.protocols import BuildOptions, Float32Array, RunOptions
from resedge.store import Key

if TYPE_CHECKING:
    from resedge.calibration.histograms import Histograms
    from resedge.calibration.layerwise import Adjustment

FEW_IMAGES = 32
SMALL_NETWORK = 1_000_000_000  # multiply-accumulates an image; beyond, minutes of extra work are asked for
_SUBSETS = 4
_HARDEST = 256  # tuning images that candidates are compared on
NEAREST, BIAS, TOGETHER = "nearest", "bias", "together"


@dataclass(frozen=True)
class Tuning:
    """What a user asks of calibration.

    `max_drop` is the budget, `keep` names layers or modules that stay float whatever it says. `thorough`
    is whether weights are rounded together and layers' sensitivities measured; None: for small networks.
    """

    max_drop: float
    keep: tuple[str, ...] = ()
    thorough: bool | None = None


@dataclass(frozen=True)
class SeenImages:
    """The digests of the images that calibration and tuning have seen."""

    calibration: tuple[str, ...]
    tuning: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """How one scheme's ranges and fits were chosen, with every candidate's score."""

    ranges: Ranges
    methods: BakeOff
    fits: BakeOff


@dataclass(frozen=True)
class RangesDocument:
    """calibration/ranges.json.

    `extremes` are the least and largest value of each tensor. `spread_of_subsets` has the scores of the
    chosen method's ranges, for the CPU, as disjoint subsets of the calibration images give them.
    """

    format_version: int
    extremes: Mapping[str, tuple[float, float]]
    schemes: Mapping[str, Choices]
    spread_of_subsets: tuple[Score, ...]


@dataclass(frozen=True)
class LayersDocument:
    """calibration/layers.json; `sensitivity` is None where it was not measured."""

    format_version: int
    layers: tuple[Layer, ...]
    sensitivity: tuple[Sensitivity, ...] | None
    search: Search
    max_drop: float


@dataclass(frozen=True)
class Scheme:
    """What was chosen for one Q/DQ scheme: the method of the ranges, how numbers were fitted, the score.

    `fitted`: "nearest" is nothing, "bias" the biases, "together" the weights' rounding and the biases.
    """

    method: str
    fitted: str
    agreement: float
    drop: float
    images: int


@dataclass(frozen=True)
class Calibrated:
    """The Q/DQ graphs; ranges.json has every candidate's score, layers.json every layer's sensitivity.

    `largest_activation` is the largest magnitude of any tensor over the calibration images.
    `seen` (a `SeenImages`) lists the images that no later test may use. `tensorrt_in_fp32` is the graph
    of TensorRT's scheme before its surroundings become FP16; it is no file of the bundle. `kept` are the
    layers that stay float, of `layers` in all; `met` is whether the budget holds on the tuning images.
    """

    ranges: Artifact
    layers: Artifact
    seen: Artifact
    cpu: Scheme
    tensorrt: Scheme
    kept: tuple[str, ...]
    layer_count: int
    met: bool
    images: int
    largest_activation: float
    warnings: tuple[str, ...]
    int8_cpu: Artifact
    tensorrt_in_fp32: Artifact


def calibrated(
    site: Site,
    data: Data,
    float_graphs: Done[Graphs],
    answers: Done[EagerAnswers],
    *,
    pair_safe: bool,
    tuning: Tuning,
) -> Done[Calibrated]:
    """Run the fp32 graph over the calibration images once, and make both Q/DQ graphs from what it held.

    Raises:
        UsageError: A name in `tuning.keep` is no layer.
    """
    fp32 = float_graphs.value.fp32
    key = Key(
        "calibration",
        inputs={
            "graph": fp32.sha256,
            "calibration": data.calibration.sha256,
            "tuning": data.tuning.sha256,
            "eager": answers.value.tuning_logits.sha256,
        },
        options={
            "preprocessing": encode(data.preprocessing),
            "pair_safe": pair_safe,
            "threads": site.threads,
            "tuning": encode(tuning),
        },
        versions=versions("onnxruntime", "onnx", "onnx-ir", "numpy"),
        machine=site.machine,
    )

    def make(folder: Path) -> Calibrated:
        for name in ("onnx", "calibration", "between"):
            (folder / name).mkdir()
        return _calibrate(_Bench(site, data, fp32, answers.value, folder), pair_safe, tuning)

    return run_stage(site, key, Calibrated, make)


@dataclass(frozen=True)
class _Bench:
    """Where candidate graphs are tried: on the tuning images, in ONNX Runtime.

    Candidates are compared on the images that eager is least sure of. Where its best two classes lie far
    apart no candidate differs from it, so that these hold nearly all that there is to see.
    """

    site: Site
    data: Data
    fp32: Artifact
    answers: EagerAnswers
    folder: Path

    def score(self, graph: Artifact, label: str, *, hardest: bool, ranges_alone: bool = False) -> Score:
        """Score a graph on the hardest tuning images or on all; with float weights for its ranges alone."""
        from resedge.calibration.bakeoff import score_logits

        eager = np.load(self.answers.tuning_logits.path)
        best = np.sort(eager, axis=1)
        order = np.argsort(best[:, -1] - best[:, -2], kind="stable")
        chosen = np.sort(order[:_HARDEST] if hardest else order)
        images = self.data.tuning.select(chosen.tolist())
        with self._opened(graph, ranges_alone) as run:
            logits = evaluate(run, images, self.data.preprocessing, self.site.reporter, f"tuning, {label}")
        return score_logits(eager[chosen], logits, images.labels)

    def _opened(
        self, graph: Artifact, ranges_alone: bool
    ) -> AbstractContextManager[Callable[[Float32Array], Float32Array]]:
        """Open a graph in the integer kernels that will serve it, or emulated where they are not here."""
        from resedge.calibration.emulation import emulated
        from resedge.runtimes.table import runtime

        if ranges_alone:
            return nullcontext(emulated(graph, self.site.threads, weights=self.fp32))
        if graph.meta["scheme"] != "cpu":
            return nullcontext(emulated(graph, self.site.threads))
        scorer = runtime("onnxruntime")
        engine = scorer.build(graph, self.folder, BuildOptions("int8"))
        return scorer.open(engine, RunOptions(self.site.threads))

    @property
    def candidate(self) -> Path:
        """A file that each candidate graph takes the place of the one before in."""
        return self.folder / "candidate.onnx"


@dataclass(frozen=True)
class _Fit:
    """A Q/DQ graph with its ranges and adjustments, and how both were chosen."""

    graph: Artifact
    ranges: Ranges
    adjustments: Mapping[str, Adjustment]
    methods: BakeOff
    fits: BakeOff


def _calibrate(bench: _Bench, pair_safe: bool, tuning: Tuning) -> Calibrated:
    from resedge.calibration.layers import chosen, layers_of

    data, folder = bench.data, bench.folder
    layers = layers_of(bench.fp32)
    always = chosen(layers, frozenset(tuning.keep))
    small = sum(layer.macs for layer in layers) <= SMALL_NETWORK
    thorough = small if tuning.thorough is None else tuning.thorough
    subsets = observe(bench.site, data, bench.fp32)
    candidates = _candidates(bench, _merged(subsets))
    fit_cpu = _fit(bench, candidates, "cpu", always, pair_safe=pair_safe, thorough=thorough)
    drop = bench.score(fit_cpu.graph, "budget", hardest=False).drop
    found, searched = _spend(
        bench, layers, fit_cpu, always, pair_safe, tuning, thorough or drop > tuning.max_drop
    )
    kept = frozenset(searched.kept)
    if kept != always:
        fit_cpu = _fit(bench, candidates, "cpu", kept, pair_safe=pair_safe, thorough=thorough)
    fit_tensorrt = _fit(bench, candidates, "tensorrt", kept, pair_safe=False, thorough=thorough)
    bench.candidate.unlink(missing_ok=True)
    fits = {"cpu": fit_cpu, "tensorrt": fit_tensorrt}
    spread = _spread(bench, subsets, fit_cpu.ranges.method, kept, pair_safe)
    choices = {name: Choices(fit.ranges, fit.methods, fit.fits) for name, fit in fits.items()}
    ranges = RangesDocument(1, candidates["minmax"].table, choices, tuple(spread))
    parents = (bench.fp32.sha256, data.calibration.sha256)
    seen = SeenImages(data.calibration.digests, data.tuning.digests)
    described = LayersDocument(1, layers, found, searched, tuning.max_drop)
    return Calibrated(
        ranges=write_json(folder / "calibration/ranges.json", ranges, "ranges", parents),
        layers=write_json(folder / "calibration/layers.json", described, "layers", parents),
        seen=write_json(folder / "calibration/images.json", seen, "images", ()),
        cpu=_summary(bench, fit_cpu),
        tensorrt=_summary(bench, fit_tensorrt),
        kept=searched.kept,
        layer_count=len(layers),
        met=searched.met,
        images=len(data.calibration),
        largest_activation=max(max(-low, high) for low, high in candidates["minmax"].table.values()),
        warnings=_warnings(data, candidates["minmax"], bench.fp32),
        int8_cpu=_moved(fit_cpu.graph, folder / "onnx/int8.cpu.onnx"),
        tensorrt_in_fp32=_moved(fit_tensorrt.graph, folder / "between/int8.tensorrt-fp32.onnx"),
    )


# --- ranges --------------------------------------------------------------------------------------


def observe(site: Site, data: Data, fp32: Artifact) -> list[Histograms]:
    """Run over the calibration images once, in disjoint subsets; their sum is that of all images."""
    from resedge.calibration.histograms import collect

    images = data.calibration
    subsets = [range(start, len(images), _SUBSETS) for start in range(min(_SUBSETS, len(images)))]
    site.reporter.start("calibration", len(images))
    found = [
        collect(fp32, images.select(subset).batches(64, data.preprocessing), site.reporter, site.threads)
        for subset in subsets
    ]
    site.reporter.finish()
    return found


def _merged(subsets: list[Histograms]) -> Histograms:
    from functools import reduce

    from resedge.calibration.histograms import merge

    return {name: reduce(merge, (subset[name] for subset in subsets)) for name in subsets[0]}


def _candidates(bench: _Bench, histograms: Histograms) -> dict[str, Ranges]:
    from resedge.calibration.ranges import METHODS

    images = bench.data.calibration
    dataset = sha256_json([images.sha256, encode(bench.data.preprocessing)])
    return {
        name: method(histograms, graph_sha256=bench.fp32.sha256, dataset_sha256=dataset, images=len(images))
        for name, method in METHODS.items()
    }


def _spread(
    bench: _Bench, subsets: list[Histograms], method: str, kept: frozenset[str], pair_safe: bool
) -> list[Score]:
    """Score the chosen method's ranges as each subset of the calibration images alone would give them."""
    from resedge.calibration.placement import place

    found = []
    for number, subset in enumerate(subsets, start=1):
        ranges = _candidates(bench, subset)[method]
        graph = place(bench.fp32, ranges, "cpu", bench.candidate, pair_safe=pair_safe, kept=kept)
        found.append(bench.score(graph, f"subset {number}", hardest=True))
    bench.candidate.unlink()
    return found


# --- fitting -------------------------------------------------------------------------------------


def _fit(
    bench: _Bench,
    candidates: Mapping[str, Ranges],
    scheme: str,
    kept: frozenset[str],
    *,
    pair_safe: bool,
    thorough: bool,
) -> _Fit:
    """Choose a scheme's ranges, then how far its numbers are fitted, each by the score on tuning images.

    Where weights are rounded together their error nearly goes, so that ranges are then judged alone.
    """
    from resedge.calibration.bakeoff import bakeoff, choose
    from resedge.calibration.layerwise import adjust, apply, images_for
    from resedge.calibration.placement import place

    def score(ranges: Ranges) -> Score:
        graph = place(bench.fp32, ranges, scheme, bench.candidate, pair_safe=pair_safe, kept=kept)
        return bench.score(graph, f"{scheme}, {ranges.method}", hardest=True, ranges_alone=thorough)

    methods = bakeoff(candidates, score)
    ranges = candidates[methods.winner]
    between = bench.folder / "between"
    graphs = {
        NEAREST: place(
            bench.fp32, ranges, scheme, between / f"{scheme}.{NEAREST}.onnx", pair_safe=pair_safe, kept=kept
        )
    }
    adjustments: dict[str, Mapping[str, Adjustment]] = {NEAREST: {}}
    images = bench.data.calibration
    some = images.select(range(min(images_for(bench.fp32), len(images)))).prepared(bench.data.preprocessing)
    for kind in (BIAS, TOGETHER) if thorough else (BIAS,):
        bench.site.reporter.start(f"{scheme}, {kind}", 0)
        adjustments[kind] = adjust(
            bench.fp32,
            graphs[NEAREST],
            some,
            rounding=kind == TOGETHER,
            pair_safe=pair_safe,
            threads=bench.site.threads,
            progress=bench.site.reporter,
        )
        bench.site.reporter.finish()
        graphs[kind] = apply(graphs[NEAREST], adjustments[kind], between / f"{scheme}.{kind}.onnx")
    scores = {kind: bench.score(graph, f"{scheme}, {kind}", hardest=True) for kind, graph in graphs.items()}
    fits = choose(scores)
    for kind, graph in graphs.items():
        if kind != fits.winner:
            graph.path.unlink()
    return _Fit(graphs[fits.winner], ranges, adjustments[fits.winner], methods, fits)


# --- the budget ----------------------------------------------------------------------------------


def _spend(
    bench: _Bench,
    layers: tuple[Layer, ...],
    fit: _Fit,
    always: frozenset[str],
    pair_safe: bool,
    tuning: Tuning,
    measured: bool,
) -> tuple[tuple[Sensitivity, ...] | None, Search]:
    """Measure the layers' sensitivities if asked, and keep as few float as the budget needs."""
    from resedge.calibration.budget import Trial, search, sensitivities
    from resedge.calibration.layerwise import apply
    from resedge.calibration.placement import place

    def scorer(*, hardest: bool) -> Callable[[frozenset[str]], Score]:
        def score(kept: frozenset[str]) -> Score:
            everything = kept | always
            graph = place(
                bench.fp32, fit.ranges, "cpu", bench.candidate, pair_safe=pair_safe, kept=everything
            )
            if fit.adjustments:
                graph = apply(graph, fit.adjustments, bench.candidate)
            return bench.score(graph, f"{len(everything)} layers float", hardest=hardest)

        return score

    base = bench.score(fit.graph, "budget", hardest=False)
    if not measured:
        return None, Search(tuple(sorted(always)), True, (Trial(tuple(sorted(always)), 0.0, base),))
    few = bench.score(fit.graph, "budget", hardest=True)
    sqnr = {name: adjustment.sqnr for name, adjustment in fit.adjustments.items()}
    open_layers = [layer for layer in layers if layer.name not in always]
    found = sensitivities(open_layers, few, scorer(hardest=True), sqnr)
    return found, search(found, base, scorer(hardest=False), tuning.max_drop, always)


# --- what is said of it --------------------------------------------------------------------------


def _summary(bench: _Bench, fit: _Fit) -> Scheme:
    best = bench.score(fit.graph, "chosen", hardest=False)
    return Scheme(fit.ranges.method, fit.fits.winner, best.agreement, best.drop, best.images)


def _warnings(data: Data, extremes: Ranges, fp32: Artifact) -> tuple[str, ...]:
    found = []
    count = len(data.calibration)
    if count < FEW_IMAGES:
        found.append(
            f"{count} calibration images are few: a range that they happen not to reach is clipped in "
            f"service. {FEW_IMAGES} or more are needed, 300 are usual"
        )
    low, high = extremes.table[fp32.inputs[0].name]
    if low == high or not any(extremes.table[fp32.inputs[0].name]):
        found.append(
            "the calibration images are all zero after preprocessing: nothing can be learnt from them"
        )
    return tuple(found)


def _moved(graph: Artifact, place: Path) -> Artifact:
    from dataclasses import replace

    graph.path.rename(place)
    return replace(graph, path=place)
