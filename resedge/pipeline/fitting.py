"""How one scheme's Q/DQ graph comes about: its ranges by a bake-off, then its numbers fitted to images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resedge.artifacts import Artifact, Ranges, encode, sha256_json
from resedge.calibration.bakeoff import BakeOff, Score
from resedge.pipeline.scoring import HARDEST, SCREENING, Bench
from resedge.protocols import Array

if TYPE_CHECKING:
    from resedge.calibration.histograms import Histograms
    from resedge.calibration.layerwise import Adjustment

NEAREST, BIAS, TOGETHER = "nearest", "bias", "together"
_SUBSETS = 4


@dataclass(frozen=True)
class Recipe:
    """How a scheme's graph is made: see `resedge.calibration.placement.place`, and `Tuning.thorough`."""

    scheme: str
    thorough: bool
    pair_safe: bool = False
    wide: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Source:
    """An FP32 graph, what its tensors hold over the calibration images, and what each method reads there.

    `subsets` are the histograms of disjoint subsets of the images. `prefix` tells the ranges of an
    equalised graph from those of the original. `one_coloured` counts the images that are.
    """

    model: Artifact
    prefix: str
    subsets: Sequence[Histograms]
    ranges: Mapping[str, Ranges]
    one_coloured: int

    @property
    def extremes(self) -> Ranges:
        """The least and largest value of every tensor."""
        return self.ranges["minmax"]


@dataclass(frozen=True)
class Chosen:
    """What a scheme's graph is made from: an FP32 graph and ranges for it, the winner of `methods`."""

    source: Source
    ranges: Ranges
    methods: BakeOff


@dataclass(frozen=True)
class Fit:
    """A Q/DQ graph with its adjustments, and how they were chosen."""

    graph: Artifact
    adjustments: Mapping[str, Adjustment]
    fits: BakeOff


@dataclass(frozen=True)
class Quantised:
    """A scheme's ranges and its Q/DQ graph."""

    chosen: Chosen
    fitted: Fit


def quantise(bench: Bench, candidates: Sequence[Source], recipe: Recipe, kept: frozenset[str]) -> Quantised:
    """Make a scheme's Q/DQ graph with some layers float."""
    chosen = choose_ranges(bench, candidates, recipe, kept)
    return Quantised(chosen, fit(bench, chosen, recipe, kept))


# --- ranges --------------------------------------------------------------------------------------


def sources(bench: Bench, *, thorough: bool) -> list[Source]:
    """Return the graph as it was exported and, if `thorough`, the one with its channels equalised."""
    from resedge.calibration.equalisation import equalise
    from resedge.calibration.layerwise import images_for

    found = [_source(bench, bench.fp32, "")]
    if thorough:
        some = bench.sample(images_for(bench.fp32))
        equalised = equalise(bench.fp32, some, bench.folder / "onnx/equalised.onnx")
        if equalised is not None:
            found.append(_source(bench, equalised, "equalised "))
    return found


def _source(bench: Bench, model: Artifact, prefix: str) -> Source:
    """Run a graph over the calibration images once, in disjoint subsets; their sum is that of all."""
    from resedge.calibration.histograms import Instrument, merge
    from resedge.calibration.ranges import METHODS

    images, site = bench.calibration, bench.site
    counter, instrument = _OneColoured(), Instrument(model, site.threads)
    site.reporter.start("calibration", len(images))
    subsets = [
        instrument.collect(counter.watched(part.inputs(64, bench.data.outside)), site.reporter)
        for part in (
            images.select(range(start, len(images), _SUBSETS)) for start in range(min(_SUBSETS, len(images)))
        )
    ]
    site.reporter.finish()
    whole = {name: reduce(merge, (subset[name] for subset in subsets)) for name in subsets[0]}
    ranges = {name: _read(bench, model, whole, name) for name in METHODS}
    return Source(model, prefix, subsets, ranges, counter.count)


class _OneColoured:
    """Counts the images of one colour among those that pass."""

    def __init__(self) -> None:
        self.count = 0

    def watched(self, batches: Iterable[Array]) -> Iterator[Array]:
        for batch in batches:
            corner = batch[:, :1, :1] if batch.dtype == np.uint8 else batch[:, :, :1, :1]
            self.count += int((batch == corner).all(axis=(1, 2, 3)).sum())
            yield batch


def _read(bench: Bench, model: Artifact, histograms: Histograms, method: str) -> Ranges:
    """Return what a method reads from the histograms."""
    from resedge.calibration.pixels import with_range_of_pixels
    from resedge.calibration.ranges import METHODS

    images = bench.calibration
    dataset = sha256_json([images.sha256, encode(bench.data.preprocessing)])
    read = METHODS[method](histograms, graph_sha256=model.sha256, dataset_sha256=dataset, images=len(images))
    return with_range_of_pixels(read, model)


def choose_ranges(bench: Bench, candidates: Sequence[Source], recipe: Recipe, kept: frozenset[str]) -> Chosen:
    """Choose the ranges of a scheme, and the graph that they are of, by the score on tuning images.

    Where weights are rounded together their error nearly goes, so that ranges are then judged alone.
    Otherwise the network is large, each score takes long, and all but two candidates see few images.
    """
    from resedge.calibration.bakeoff import choose, run_off
    from resedge.calibration.ranges import suits

    table = {
        f"{source.prefix}{name}": (source, name)
        for source in candidates
        for name in source.ranges
        if suits(name, recipe.scheme)
    }

    def scored(name: str, hardest: int) -> Score:
        return _score(bench, *table[name], recipe, kept, hardest)

    methods = choose({name: scored(name, _images_at_first(recipe)) for name in table})
    if not recipe.thorough:
        methods = run_off(methods, lambda name: scored(name, HARDEST))
    source, read = table[methods.winner]
    return Chosen(source, source.ranges[read], methods)


def _images_at_first(recipe: Recipe) -> int:
    return HARDEST if recipe.thorough else SCREENING


def spread(bench: Bench, chosen: Chosen, recipe: Recipe, kept: frozenset[str]) -> list[Score]:
    """Score the ranges that the chosen method reads from each subset of the images alone."""
    found = []
    for number, subset in enumerate(chosen.source.subsets, start=1):
        ranges = _read(bench, chosen.source.model, subset, chosen.ranges.method)
        graph = placed(bench, chosen.source.model, ranges, recipe, kept)
        found.append(bench.score(graph, f"subset {number}", hardest=_images_at_first(recipe)))
    return found


def _score(
    bench: Bench, source: Source, method: str, recipe: Recipe, kept: frozenset[str], hardest: int
) -> Score:
    graph = placed(bench, source.model, source.ranges[method], recipe, kept)
    label = f"{recipe.scheme}, {source.prefix}{method}"
    alone = source.model if recipe.thorough else None
    return bench.score(graph, label, hardest=hardest, float_weights=alone)


def placed(
    bench: Bench,
    model: Artifact,
    ranges: Ranges,
    recipe: Recipe,
    kept: frozenset[str],
    out: Path | None = None,
) -> Artifact:
    """Write a graph with these ranges, every number rounded to the nearest; without `out` a candidate."""
    from resedge.calibration.placement import place

    return place(
        model,
        ranges,
        recipe.scheme,
        out or bench.candidate,
        pair_safe=recipe.pair_safe,
        kept=kept,
        wide=recipe.wide,
    )


# --- numbers -------------------------------------------------------------------------------------


def fit(bench: Bench, chosen: Chosen, recipe: Recipe, kept: frozenset[str]) -> Fit:
    """Choose how far a graph's numbers are fitted to images, by the score on tuning images."""
    from resedge.calibration.bakeoff import choose
    from resedge.calibration.layerwise import adjust, apply, images_for

    model, scheme, between = chosen.source.model, recipe.scheme, bench.folder / "between"
    nearest = between / f"{scheme}.{NEAREST}.onnx"
    graphs = {NEAREST: placed(bench, model, chosen.ranges, recipe, kept, nearest)}
    adjustments: dict[str, Mapping[str, Adjustment]] = {NEAREST: {}}
    some = bench.sample(images_for(model))
    for kind in (BIAS, TOGETHER) if recipe.thorough else (BIAS,):
        bench.site.reporter.start(f"{scheme}, {kind}", 0)
        adjustments[kind] = adjust(
            model,
            graphs[NEAREST],
            some,
            rounding=kind == TOGETHER,
            pair_safe=recipe.pair_safe,
            threads=bench.site.threads,
            progress=bench.site.reporter,
        )
        bench.site.reporter.finish()
        graphs[kind] = apply(graphs[NEAREST], adjustments[kind], between / f"{scheme}.{kind}.onnx")
    fits = choose({kind: bench.score(graph, f"{scheme}, {kind}") for kind, graph in graphs.items()})
    for kind, graph in graphs.items():
        if kind != fits.winner:
            graph.path.unlink()
    return Fit(graphs[fits.winner], adjustments[fits.winner], fits)
