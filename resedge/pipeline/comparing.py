"""`resedge explain --engine`: an engine against eager layer by layer, down to the first bad one.

The images are the bundle's golden ones. Eager stands there as its fp32 graph, which export proved equal to
it up to rounding: its nodes are those of the engines, and it needs no torch. Its logits are compared with
eager's own, which the golden images have with them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resedge import bundle as bundles
from resedge.artifacts import Artifact, Engine
from resedge.bundle import Bundle
from resedge.calibration.blame import LayerComparison, LayerError
from resedge.calibration.walk import signal_to_noise
from resedge.calibration.watchpoints import Watchpoint, watchpoints
from resedge.engines import GRAPHS
from resedge.errors import RuntimeUnavailable, StaleArtifact
from resedge.export.pixels import fold_again
from resedge.golden import read_golden
from resedge.pipeline.explaining import COARSE
from resedge.pipeline.extras import require_modules
from resedge.pipeline.inspecting import SATURATES, saturates_here
from resedge.pipeline.options import available_threads
from resedge.pipeline.reporting import Reporter, Silent
from resedge.pipeline.session import find_engine, parse_engine
from resedge.pipeline.vouching import demand_vouched_graph
from resedge.protocols import Array, Float32Array, Progress, RunOptions, Watchable
from resedge.runtimes.watching import View, faithful_views

_MODULES = {"export": ("onnx", "onnx_ir"), "onnxruntime": ("onnxruntime",)}
_BATCH = 8  # what all layers of a large network hold on so many images fits in memory
_MOST_IMAGES = 64


@dataclass(frozen=True)
class Comparison:
    """An engine against eager, layer by layer.

    `layers` are in the graph's order; `floor` is the ratio of signal to noise, in dB, below which an output
    is bad. `views` is in how many sessions the layers were watched, `changed` on how many of the images
    the logits of a watched engine were not the engine's own, `unseen` the tensors that could not be watched
    without that. `agreement` is the fraction of the images on which the engine chooses eager's class, and
    `reference_sqnr` the fp32 graph's logits against eager's, in dB.
    """

    engine: str
    images: int
    floor: float
    layers: tuple[LayerError, ...]
    agreement: float
    reference_sqnr: float
    views: int
    changed: int
    unseen: tuple[str, ...]

    @property
    def first_bad(self) -> LayerError | None:
        """The first layer whose output is not finite, or below the floor."""
        return next(filter(self.is_bad, self.layers), None)

    def is_bad(self, layer: LayerError) -> bool:
        """Say whether a layer's output is not finite, or below the floor."""
        return layer.sqnr is None or layer.sqnr < self.floor

    @property
    def worst(self) -> LayerError:
        """The layer that brings in most by itself, of those up to the first bad one where there is one."""
        bad = self.first_bad
        before = self.layers if bad is None else self.layers[: self.layers.index(bad) + 1]
        return min(before, key=lambda layer: -np.inf if layer.alone is None else layer.alone)


def compare(
    path: Path,
    engine: str,
    *,
    floor: float = COARSE,
    threads: int | None = None,
    reporter: Reporter | None = None,
) -> Comparison:
    """Compare an engine of a bundle, such as "openvino:int8", with eager on the golden images.

    Raises:
        InputRefused: No bundle, or one whose files are not those of its manifest.
        UsageError: The bundle has no such engine.
        RuntimeUnavailable: A library is not installed, or the runtime cannot be looked into.
    """
    reporter = reporter or Silent()
    name = parse_engine(engine)
    _watchable(name[0])
    require_modules("a comparison of layers", _MODULES)
    bundle = bundles.read(path)
    bundles.check(bundle)
    found = find_engine(bundle, name)
    if name[1] == "int8" and saturates_here(bundle):
        reporter.warn(SATURATES)
    golden = read_golden(bundle.file(bundles.GOLDEN))
    images, logits = golden[0][:_MOST_IMAGES], golden[1][:_MOST_IMAGES]
    graph = bundle.file(GRAPHS[name])
    options = RunOptions(threads or available_threads())
    with tempfile.TemporaryDirectory(prefix="resedge-explain-") as folder:
        subject = Subject(found, graph, float_graph(bundle, graph, Path(folder)))
        for read in (subject.graph, subject.model):
            demand_vouched_graph(read)
        return compare_engine(subject, images, logits, floor, options, reporter)


def float_graph(bundle: Bundle, graph: Artifact, folder: Path) -> Artifact:
    """Return the FP32 graph that a graph was made from: it has the same numbers in every tensor.

    That of a Q/DQ graph may be one whose channels were equalised, which is then in the bundle. One with the
    normalisation of frames in its first convolution is made again, into `folder`.

    Raises:
        StaleArtifact: It comes out as another one than the graph was made from.
    """
    named = [artifact for artifact in bundle.manifest.files if artifact.sha256 in graph.parents]
    found = next((a.path.as_posix() for a in named if a.kind == "onnx/fp32"), None)
    if found is not None or "pixels" not in graph.meta:
        return bundle.file(found or "onnx/fp32.onnx")
    again = fold_again(bundle.file("onnx/fp32.onnx"), bundle.manifest.preprocessing, folder / "pixels.onnx")
    if again is None or again.sha256 not in graph.parents:
        raise StaleArtifact(
            "is made from an FP32 graph that this version of resedge writes otherwise.",
            where=str(graph.path),
            cure="Run `resedge export` again.",
        )
    return again


@dataclass(frozen=True)
class Subject:
    """An engine, the graph that it was built from, and the FP32 graph, which may be the same."""

    engine: Engine
    graph: Artifact
    model: Artifact


def compare_engine(
    subject: Subject,
    images: Array,
    eager: Float32Array,
    floor: float,
    options: RunOptions,
    reporter: Reporter,
) -> Comparison:
    """Compare an engine with eager on images as it takes them, and eager's logits, (N, classes) float32.

    Raises:
        RuntimeUnavailable: The runtime cannot be looked into, or not opened.
        InputRefused: A file has changed, or the engine was built from another network's graph.
    """
    engine, points = subject.engine, watchpoints(subject.graph)
    views = _views(engine, points, images[:_BATCH], options, reporter)
    watched = {name for view in views for name in view}
    seen = tuple(point for point in points if point.name in watched)
    comparison = LayerComparison(subject.model, subject.graph, seen, options.threads)
    found = _compared(engine, views, images, options, comparison, reporter)
    visible = {point.tensor for point in seen}
    return Comparison(
        engine=f"{engine.runtime}:{engine.precision}",
        images=len(images),
        floor=floor,
        layers=comparison.layers(),
        agreement=float((found.logits.argmax(axis=1) == eager.argmax(axis=1)).mean()),
        reference_sqnr=signal_to_noise(eager, found.reference),
        views=len(views),
        changed=found.changed,
        unseen=tuple(dict.fromkeys(point.tensor for point in points if point.tensor not in visible)),
    )


def _watchable(name: str) -> Watchable:
    """Return a runtime that can be looked into.

    Raises:
        RuntimeUnavailable: It cannot.
    """
    from resedge.runtimes.table import runtime

    found = runtime(name)
    if not isinstance(found, Watchable):
        raise RuntimeUnavailable(
            f"{name} engines run on the device alone, and this version of resedge does not look into them.",
            cure="Compare one of openvino or onnxruntime here: they have the same calibration.",
        )
    return found


def _views(
    engine: Engine, points: Sequence[Watchpoint], batch: Array, options: RunOptions, progress: Progress
) -> tuple[View, ...]:
    """Find out what can be watched: integers first, and where they cannot, the floats in their place."""
    runtime = _watchable(engine.runtime)

    def tried(chosen: Sequence[Watchpoint]) -> tuple[View, ...]:
        kinds = {point.name: point.kind for point in chosen}
        return faithful_views(runtime, engine, kinds, batch, options, progress)

    progress.start("looking for what can be watched", len(points))
    first = tried([point for point in points if not point.instead])
    visible = {name for view in first for name in view}
    seen = {point.tensor for point in points if point.name in visible}
    second = tried([point for point in points if point.instead and point.tensor not in seen])
    progress.finish()
    return (*first, *second)


@dataclass(frozen=True, eq=False)
class _Found:
    """The engine's logits and the FP32 graph's, and on how many images a watched engine's were others."""

    logits: Float32Array
    reference: Float32Array
    changed: int


def _compared(
    engine: Engine,
    views: tuple[View, ...],
    images: Array,
    options: RunOptions,
    comparison: LayerComparison,
    progress: Progress,
) -> _Found:
    """Run the engine, plain and watched, over the images in batches, and compare layer by layer."""
    runtime, changed = _watchable(engine.runtime), 0
    logits: list[Float32Array] = []
    reference: list[Float32Array] = []
    with ExitStack() as stack:
        run = stack.enter_context(runtime.open(engine, options))
        watching = [stack.enter_context(runtime.watch(engine, view, options)) for view in views]
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            logits.append(run(batch))
            results = [watch(batch) for watch in watching]
            changed += _images_changed(logits[-1], [given for given, _ in results])
            tensors = {name: tensor for _, held in results for name, tensor in held.items()}
            reference.append(comparison.add(batch, tensors, logits[-1]))
    return _Found(np.concatenate(logits), np.concatenate(reference), changed)


def _images_changed(logits: Float32Array, others: Sequence[Float32Array]) -> int:
    """Count the images on which any of other logits differ from an engine's own in a single bit."""
    same = [(given == logits) | (np.isnan(given) & np.isnan(logits)) for given in others]
    return sum(not all(part[image].all() for part in same) for image in range(len(logits)))
