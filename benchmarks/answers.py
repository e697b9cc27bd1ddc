"""What else two models' answers to the same images say: top-5, divergence, and the class that loses most."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from resedge.artifacts import WorstClass
from resedge.benchmarks.bounds import drop_upper
from resedge.protocols import Float32Array, Int64Array

_FEWEST_CLASSES_FOR_TOP5 = 10


def top5(logits: Float32Array, labels: Int64Array) -> float | None:
    """Return how often the label is among the five largest logits; None with fewer than ten classes.

    Of equal logits the one of the lower class comes first, as in the choice of the best.

    Args:
        logits: (N, classes) float32.
        labels: (N,) int64.
    """
    classes = logits.shape[1]
    if classes < _FEWEST_CLASSES_FOR_TOP5:
        return None
    own = logits[np.arange(len(labels)), labels][:, np.newaxis]
    tied_before = (logits == own) & (np.arange(classes) < labels[:, np.newaxis])
    before = ((logits > own) | tied_before).sum(axis=1)
    return float((before < 5).mean())


def mean_divergence(eager: Float32Array, engine: Float32Array) -> float:
    """Return the mean KL(softmax eager || softmax engine), nats, of logits (N, classes) float32."""
    p, q = _log_softmax(eager), _log_softmax(engine)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def worst_class(
    eager_right: npt.NDArray[np.bool_],
    engine_right: npt.NDArray[np.bool_],
    labels: Int64Array,
    confidence: float,
) -> WorstClass:
    """Return the class with the largest drop, and a bound of the drop of every class.

    The classes are taken from the smallest bound to the largest, and each next one is held to less, as in
    Holm's procedure: the first of K at 1 - (1 - c) / K, the last at c. The largest of these holds for all.

    Args:
        eager_right: (N,), whether eager is right.
        engine_right: (N,), whether the engine is.
        labels: (N,) int64, N > 0.
        confidence: c.
    """
    numbers, images = np.unique(labels, return_counts=True)
    lost, won = (
        np.bincount(labels[flipped], minlength=int(numbers[-1]) + 1)[numbers]
        for flipped in (eager_right & ~engine_right, engine_right & ~eager_right)
    )
    counts = [(int(b), int(c), int(n)) for b, c, n in zip(lost, won, images, strict=True)]
    by_bound = sorted(counts, key=lambda count: drop_upper(count[0], count[1], count[2], confidence))
    levels = [1 - (1 - confidence) / (len(by_bound) - done) for done in range(len(by_bound))]
    upper = max(drop_upper(b, c, n, level) for (b, c, n), level in zip(by_bound, levels, strict=True))
    drops = (lost - won) / images
    worst = int(drops.argmax())
    return WorstClass(int(numbers[worst]), int(images[worst]), float(drops[worst]), upper)


def _log_softmax(logits: Float32Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normalised: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised
