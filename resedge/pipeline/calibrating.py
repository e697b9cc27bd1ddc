"""The calibration stage: ranges chosen, numbers fitted, layers kept float where the budget needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resedge.artifacts import Artifact, Ranges, encode
from resedge.calibration.bakeoff import BakeOff, Score
from resedge.calibration.budget import Goal, Scorer, Search, Sensitivity, Trial
from resedge.calibration.layers import Layer
from resedge.pipeline.fitting import Quantised, Recipe, Source, placed, quantise, sources, spread
from resedge.pipeline.halving import wide_in_all
from resedge.pipeline.scoring import Bench
from resedge.pipeline.stages import EagerAnswers, Graphs, write_json
from resedge.pipeline.staging import Data, Done, Site, run_stage, versions
from resedge.store import Key

FEW_IMAGES = 32
SMALL_NETWORK = 1_000_000_000  # multiply-accumulates an image; beyond, minutes of extra work are asked for


@dataclass(frozen=True)
class Tuning:
    """What a user asks of calibration.

    `max_drop` is the budget, `keep` names layers or modules that stay float whatever it says. `thorough`
    is whether channels are equalised, weights rounded together and layers' sensitivities measured; None:
    for small networks. The engine is certified on `test_images` of them with `confidence`.
    """

    max_drop: float
    keep: tuple[str, ...] = ()
    thorough: bool | None = None
    test_images: int = 0
    confidence: float = 0.95

    def is_within(self, score: Score) -> bool:
        """Say whether the drop itself is within the budget."""
        return score.drop <= self.max_drop

    def is_certifiable(self, score: Score) -> bool:
        """Say whether test images with the same rates would certify the budget.

        Of the predictions that differ, all are taken to be flips, of which the drop says which way.
        """
        from resedge.benchmarks.bounds import drop_upper

        if not self.test_images:
            return False
        differ = 1 - score.agreement
        worse, better = (self.test_images * max(differ + way * score.drop, 0) / 2 for way in (1, -1))
        return drop_upper(round(worse), round(better), self.test_images, self.confidence) <= self.max_drop

    def goals(self, *, thorough: bool) -> tuple[Goal, ...]:
        """Return what a search is to meet, the best first, without what so few images cannot give."""
        perfect = Score(agreement=1.0, kl=0.0, drop=0.0, images=self.test_images)
        hoped_for = thorough and self.is_certifiable(perfect)
        return (self.is_certifiable, self.is_within) if hoped_for else (self.is_within,)


@dataclass(frozen=True)
class SeenImages:
    """The digests of the images that calibration and tuning have seen."""

    calibration: tuple[str, ...]
    tuning: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """How one scheme's ranges and fits were chosen, with every candidate's score.

    `ranges` are of the graph that was quantised, which may be one with its channels equalised, and
    `extremes` the least and largest value of each tensor of it.
    """

    ranges: Ranges
    extremes: Mapping[str, tuple[float, float]]
    methods: BakeOff
    fits: BakeOff


@dataclass(frozen=True)
class RangesDocument:
    """calibration/ranges.json.

    `extremes` are the least and largest value of each tensor of fp32.onnx. `spread_of_subsets` has the
    scores for the CPU of the ranges that the chosen method reads from disjoint subsets of the images.
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

    `wide` are the nodes that stay FP32 where the graph becomes FP16. `equalised` is the FP32 graph that a
    Q/DQ graph was made from, where it is not the one that was exported.
    `seen` (a `SeenImages`) lists the images that no later test may use. `tensorrt_in_fp32` is the graph
    of TensorRT's scheme before its surroundings become FP16; it is no file of the bundle. `kept` are the
    layers that stay float, of `layer_count` in all; `met` is whether the budget holds on the tuning images,
    and `frontier` has the trials that no other beats in both drop and work left float.
    """

    ranges: Artifact
    layers: Artifact
    seen: Artifact
    cpu: Scheme
    tensorrt: Scheme
    kept: tuple[str, ...]
    layer_count: int
    met: bool
    frontier: tuple[Trial, ...]
    images: int
    wide: tuple[str, ...]
    warnings: tuple[str, ...]
    equalised: Artifact | None
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
    fp32 = float_graphs.value.for_integers
    key = Key(
        "calibration",
        inputs={
            "graph": fp32.sha256,
            "calibration": data.calibration.sha256,
            "tuning": data.tuning.sha256,
            "eager": answers.value.tuning_logits.sha256,
        },
        options={
            "outside": encode(data.outside),
            "preprocessing": encode(data.preprocessing),
            "pair_safe": pair_safe,
            "threads": site.threads,
            "tuning": encode(tuning),
            "wide": encode(float_graphs.value.wide),
        },
        versions=versions("onnxruntime", "onnx", "onnx-ir", "numpy"),
        machine=site.machine,
    )

    def make(folder: Path) -> Calibrated:
        for name in ("onnx", "calibration", "between"):
            (folder / name).mkdir()
        bench = Bench(site, data, fp32, answers.value, folder)
        return _calibrate(bench, float_graphs.value.wide, pair_safe, tuning)

    return run_stage(site, key, Calibrated, make)


def _calibrate(bench: Bench, tried_wide: tuple[str, ...], pair_safe: bool, tuning: Tuning) -> Calibrated:
    from resedge.calibration.budget import frontier
    from resedge.calibration.layers import chosen, layers_of

    data, folder = bench.data, bench.folder
    layers = layers_of(bench.fp32)
    always = chosen(layers, frozenset(tuning.keep))
    small = sum(layer.macs for layer in layers) <= SMALL_NETWORK
    thorough = small if tuning.thorough is None else tuning.thorough
    candidates = sources(bench, thorough=thorough)
    wide = wide_in_all([(made.model, made.extremes.table) for made in candidates], tried_wide)
    recipes = {
        "cpu": Recipe("cpu", thorough, pair_safe=pair_safe),
        "tensorrt": Recipe("tensorrt", thorough, wide=frozenset(wide)),
    }
    first = quantise(bench, candidates, recipes["cpu"], always)

    def score(kept: frozenset[str]) -> Score:
        made = quantise(bench, candidates, recipes["cpu"], kept)
        return bench.score(made.fitted.graph, f"{len(kept)} layers float", hardest=None)

    found, searched = _spend(bench, layers, first, recipes["cpu"], always, tuning, score)
    kept = frozenset(searched.kept)
    untouched = len(searched.trials) == 1  # otherwise another graph took the place of the first
    made = {
        name: first if name == "cpu" and untouched else quantise(bench, candidates, recipe, kept)
        for name, recipe in recipes.items()
    }
    scores = spread(bench, made["cpu"].chosen, recipes["cpu"], kept)
    bench.candidate.unlink(missing_ok=True)
    choices = {
        name: Choices(
            scheme.chosen.ranges,
            scheme.chosen.source.extremes.table,
            scheme.chosen.methods,
            scheme.fitted.fits,
        )
        for name, scheme in made.items()
    }
    original = candidates[0]
    document = RangesDocument(1, original.extremes.table, choices, tuple(scores))
    parents = (bench.fp32.sha256, data.calibration.sha256)
    seen = SeenImages(data.calibration.digests, data.tuning.digests)
    described = LayersDocument(1, layers, found, searched, tuning.max_drop)
    return Calibrated(
        ranges=write_json(folder / "calibration/ranges.json", document, "ranges", parents),
        layers=write_json(folder / "calibration/layers.json", described, "layers", parents),
        seen=write_json(folder / "calibration/images.json", seen, "images", ()),
        cpu=_summary(bench, made["cpu"]),
        tensorrt=_summary(bench, made["tensorrt"]),
        kept=searched.kept,
        layer_count=len(layers),
        met=searched.met,
        frontier=frontier(searched.trials),
        images=len(data.calibration),
        wide=wide,
        warnings=_warnings(original),
        equalised=_equalised(candidates, [scheme.chosen.source for scheme in made.values()]),
        int8_cpu=_moved(made["cpu"].fitted.graph, folder / "onnx/int8.cpu.onnx"),
        tensorrt_in_fp32=_moved(made["tensorrt"].fitted.graph, folder / "between/int8.tensorrt-fp32.onnx"),
    )


# --- the budget ----------------------------------------------------------------------------------


def _spend(
    bench: Bench,
    layers: tuple[Layer, ...],
    first: Quantised,
    recipe: Recipe,
    always: frozenset[str],
    tuning: Tuning,
    score: Scorer,
) -> tuple[tuple[Sensitivity, ...] | None, Search]:
    """Keep as few layers float as the budget needs, their sensitivities measured for it or if thorough.

    A sensitivity is measured with every number rounded to the nearest: what was fitted has made up for the
    layer that is then spared. Where sensitivities are measured anyway the first goal is that the test images
    can certify the budget.
    """
    from resedge.calibration.budget import search, sensitivities

    chosen, adjustments = first.chosen, first.fitted.adjustments

    def nearest(kept: frozenset[str]) -> Score:
        everything = kept | always
        graph = placed(bench, chosen.source.model, chosen.ranges, recipe, everything)
        return bench.score(graph, f"{', '.join(sorted(kept)) or 'no layer'} float")

    base = bench.score(first.fitted.graph, "budget", hardest=None)
    if not recipe.thorough and tuning.is_within(base):
        return None, Search(tuple(sorted(always)), True, (Trial(tuple(sorted(always)), 0.0, base),))
    sqnr = {name: adjustment.sqnr for name, adjustment in adjustments.items()}
    open_layers = [layer for layer in layers if layer.name not in always]
    found = sensitivities(open_layers, nearest(frozenset()), nearest, sqnr)
    done, trials = None, {}
    for goal in tuning.goals(thorough=recipe.thorough):
        done = search(found, base, score, goal, always)
        trials.update({trial.kept: trial for trial in done.trials})
        if done.met:
            break
    assert done is not None  # there is always a goal
    return found, replace(done, trials=tuple(trials.values()))


def _equalised(candidates: Sequence[Source], chosen: Sequence[Source]) -> Artifact | None:
    """Return the equalised graph if a scheme's is made from it, and remove it if none is."""
    for source in candidates[1:]:
        if source in chosen:
            return source.model
        source.model.path.unlink()
    return None


# --- what is said of it --------------------------------------------------------------------------


def _summary(bench: Bench, made: Quantised) -> Scheme:
    best = bench.score(made.fitted.graph, "chosen", hardest=None)
    return Scheme(made.chosen.methods.winner, made.fitted.fits.winner, best.agreement, best.drop, best.images)


def _warnings(seen: Source) -> tuple[str, ...]:
    found, images = [], seen.extremes.images
    if images < FEW_IMAGES:
        found.append(
            f"{images} calibration images are few: a range that they happen not to reach is clipped in "
            f"service. {FEW_IMAGES} or more are needed, 300 are usual"
        )
    if seen.one_coloured:
        found.append(
            f"{seen.one_coloured} of {images} calibration images are of one colour: they say nothing of what "
            "the layers will hold. Look whether the files are what they should be"
        )
    return tuple(found)


def _moved(graph: Artifact, place: Path) -> Artifact:
    graph.path.rename(place)
    return replace(graph, path=place)
