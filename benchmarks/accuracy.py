"""Engine against eager on the same images, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resedge.artifacts import Accuracy
from resedge.benchmarks.answers import mean_divergence, top5, worst_class
from resedge.benchmarks.bounds import drop_upper
from resedge.errors import InputRefused
from resedge.protocols import Float32Array, Int64Array


@dataclass(frozen=True)
class PairedCounts:
    """What two models get right of the same labelled images."""

    images: int
    eager_right: int
    engine_right: int
    negative_flips: int
    positive_flips: int


def compare(
    eager: Float32Array, engine: Float32Array, labels: Int64Array | None, confidence: float
) -> Accuracy:
    """Compare an engine with eager, image by image.

    Args:
        eager: Eager's logits, (N, classes) float32.
        engine: The engine's logits of the same images in the same order, (N, classes) float32.
        labels: (N,) int64; None where there are none, and only the agreement is known.
        confidence: Of the one-sided upper bounds of the drop and of the worst class, such as 0.95.

    Raises:
        InputRefused: There are no images, the shapes do not fit, a label is not one of the classes,
            or a logit is NaN or infinite; whose it is and at which image (from 0) is said.
    """
    _check_shapes(eager, engine, labels)
    _check_finite(eager, "eager")
    _check_finite(engine, "engine")
    images = len(eager)
    agreement = int((eager.argmax(axis=1) == engine.argmax(axis=1)).sum()) / images
    # In float64: the difference of two finite float32 values can overflow float32.
    error = float(np.abs(eager.astype(np.float64) - engine.astype(np.float64)).max())
    divergence = mean_divergence(eager, engine)
    if labels is None:
        return Accuracy(images, agreement, error, kl=divergence)
    counts = count_pairs(eager, engine, labels)
    negative, positive = counts.negative_flips, counts.positive_flips
    return Accuracy(
        images,
        agreement,
        error,
        top1=counts.engine_right / images,
        top1_eager=counts.eager_right / images,
        drop=(negative - positive) / images,
        drop_upper=drop_upper(negative, positive, images, confidence),
        negative_flips=negative,
        positive_flips=positive,
        top5=top5(engine, labels),
        top5_eager=top5(eager, labels),
        kl=divergence,
        worst_class=worst_class(
            eager.argmax(axis=1) == labels, engine.argmax(axis=1) == labels, labels, confidence
        ),
    )


def count_pairs(eager: Float32Array, engine: Float32Array, labels: Int64Array) -> PairedCounts:
    """Count right answers and flips; logits (N, classes) float32, labels (N,) int64."""
    eager_right = eager.argmax(axis=1) == labels
    engine_right = engine.argmax(axis=1) == labels
    return PairedCounts(
        images=len(labels),
        eager_right=int(eager_right.sum()),
        engine_right=int(engine_right.sum()),
        negative_flips=int((eager_right & ~engine_right).sum()),
        positive_flips=int((~eager_right & engine_right).sum()),
    )


def _check_shapes(eager: Float32Array, engine: Float32Array, labels: Int64Array | None) -> None:
    if eager.ndim != 2 or 0 in eager.shape or eager.shape != engine.shape:
        raise InputRefused(
            f"eager's logits are {eager.shape} and the engine's {engine.shape}; both must be "
            "(images, classes), the same, and not empty."
        )
    if labels is None:
        return
    images, classes = eager.shape
    if labels.shape != (images,):
        raise InputRefused(f"there are labels {labels.shape} for {images} images.")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise InputRefused(
            f"the label is {labels[outside[0]]}, and the model has {classes} classes (from 0).",
            where=f"image {outside[0]}",
            cure="Give test data that is labelled with the model's classes.",
        )


def _check_finite(logits: Float32Array, whose: str) -> None:
    unusable = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(unusable):
        raise InputRefused(
            f"the logits of {whose} are NaN or infinite ({len(unusable)} of {len(logits)} images).",
            where=f"image {unusable[0]}",
            cure="Look for NaN in the weights, or for activations beyond the precision's range.",
        )
