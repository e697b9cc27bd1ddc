"""Where candidate INT8 graphs are tried: on the tuning images, against eager's answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from resedge.artifacts import Artifact
from resedge.calibration.bakeoff import Score
from resedge.images import ImageSet
from resedge.pipeline.running import EVALUATION_BATCH, evaluate
from resedge.pipeline.stages import EagerAnswers
from resedge.pipeline.staging import Data, Site
from resedge.protocols import Array, BuildOptions, Float32Array, RunOptions

HARDEST = 256  # tuning images that candidates are compared on
SCREENING = 32  # tuning images that tell which candidates are worth that
_EMULATED_BATCH = 8  # each Q and DQ is a tensor of its own there

_Opened = AbstractContextManager[Callable[[Array], Float32Array]]


@dataclass(frozen=True)
class Bench:
    """The images, eager's answers, and a folder for graphs that are tried.

    Candidates are compared on the images that eager is least sure of. Where its best two classes lie far
    apart no candidate differs from it, so that these hold nearly all that there is to see. `known`
    remembers the score of each graph: what one step has found out the next need not run again.
    """

    site: Site
    data: Data
    fp32: Artifact
    answers: EagerAnswers
    folder: Path
    known: dict[tuple[str, bool, int], Score] = field(default_factory=dict)

    def score(
        self,
        graph: Artifact,
        label: str,
        *,
        hardest: int | None = HARDEST,
        float_weights: Artifact | None = None,
    ) -> Score:
        """Score a Q/DQ graph on that many of the hardest tuning images; None: on all.

        `float_weights` is the FP32 graph that it was made from, to score its activations' ranges alone.
        """
        count = min(hardest or len(self.data.tuning), len(self.data.tuning))
        key = (graph.sha256, float_weights is not None, count)
        if key not in self.known:
            self.known[key] = self._score(graph, label, count, float_weights)
        return self.known[key]

    def _score(self, graph: Artifact, label: str, count: int, float_weights: Artifact | None) -> Score:
        from resedge.calibration.bakeoff import score_logits

        eager = np.load(self.answers.tuning_logits.path)
        best = np.sort(eager, axis=1)
        order = np.argsort(best[:, -1] - best[:, -2], kind="stable")
        chosen = np.sort(order[:count])
        images = self.data.tuning.select(chosen.tolist())
        emulate = float_weights is not None or graph.meta["scheme"] != "cpu"
        with self._emulated(graph, float_weights) if emulate else self._opened(graph) as run:
            batch = _EMULATED_BATCH if emulate else EVALUATION_BATCH
            logits = evaluate(run, images, self.data.outside, self.site.reporter, f"tuning, {label}", batch)
        return score_logits(eager[chosen], logits, images.labels)

    def sample(self, count: int) -> Array:
        """Return `count` calibration images as the graphs take them, whatever the order of them all."""
        chosen = self.calibration.select(range(min(count, len(self.calibration))))
        return chosen.all_inputs(self.data.outside)

    @property
    def calibration(self) -> ImageSet:
        """The calibration images in the order of their digests."""
        images = self.data.calibration
        return images.select(sorted(range(len(images)), key=lambda i: images.digests[i]))

    @property
    def candidate(self) -> Path:
        """A file that each candidate graph takes the place of the one before in."""
        return self.folder / "candidate.onnx"

    def _opened(self, graph: Artifact) -> _Opened:
        """Open a graph in the integer kernels that will serve it."""
        from resedge.runtimes.table import runtime

        scorer = runtime("onnxruntime")
        engine = scorer.build(graph, self.folder, BuildOptions("int8"))
        return scorer.open(engine, RunOptions(self.site.threads))

    def _emulated(self, graph: Artifact, float_weights: Artifact | None) -> _Opened:
        """Open a graph as it is written, where the kernels that will serve it are not here."""
        from resedge.calibration.emulation import emulated

        return nullcontext(emulated(graph, self.site.threads, weights=float_weights))
