"""Engine against eager on the same images: paired counts, and a bound of the drop in top-1.

Of n images, b are right in eager and wrong in the engine (negative flips), c the other way round
(positive flips); the drop is D = (b - c) / n. That a test finds no difference proves nothing, so what
an engine is certified by is the upper bound of D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from resedge.artifacts import Accuracy
from resedge.benchmarks.distributions import binomial_upper, normal_quantile, root
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
        confidence: Of the drop's one-sided upper bound, such as 0.95.

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
    if labels is None:
        return Accuracy(images, agreement, error)
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


def tango_upper(b: int, c: int, n: int, confidence: float) -> float:
    """Return the one-sided upper score bound of the drop D = (b - c) / n.

    It is the largest d that the score test does not reject; zero counts need no special case.
    Source: Tango 1998, Statistics in Medicine 17:891-908.

    Args:
        b: Negative flips.
        c: Positive flips.
        n: Images.
        confidence: In (0.5, 1).

    Raises:
        ValueError: The counts or the confidence are impossible.
    """
    if b < 0 or c < 0 or n < 1 or b + c > n:
        raise ValueError(f"{b} and {c} flips of {n} images are impossible")
    if not 0.5 < confidence < 1:
        raise ValueError(f"the confidence is {confidence}, expected one in (0.5, 1)")
    if b == n:
        return 1.0
    z = normal_quantile(confidence)

    def slack(d: float) -> float:
        """How far the score test at drop `d` is from rejecting; falls through 0 at the bound."""
        linear = -b - c + (2 * n - b + c) * d
        constant = -c * d * (1 - d)
        # The constrained maximum-likelihood estimate of the rate of positive flips.
        q = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
        return b - c - n * d + z * math.sqrt(max(n * (2 * q + d * (1 - d)), 0.0))

    # At the estimate itself the slack is positive, or a trivial zero where every image or none flipped.
    return root(slack, (b - c) / n + 1e-9, 1.0)


def drop_upper(b: int, c: int, n: int, confidence: float) -> float:
    """Return the upper bound of the drop by which an engine is certified.

    Tango's bound. With no positive flips it is Wilson's, which certifies wrongly up to 6.7 % of the
    time at a nominal 5 %, so there it is not let below the exact bound of the rate of negative flips
    (which bounds the drop): no flips at all certify 0.5 points from 598 images on, not from 539.
    """
    upper = tango_upper(b, c, n, confidence)
    return upper if c else max(upper, binomial_upper(b, n, confidence))


def drop_lower(b: int, c: int, n: int, confidence: float) -> float:
    """Return the one-sided lower bound of the drop: by symmetry the upper bound with b and c swapped."""
    return -drop_upper(c, b, n, confidence)


def images_needed(b: int, c: int, n: int, margin: float, confidence: float, power: float = 0.8) -> int | None:
    """Return how many images, in all, would settle whether the drop is within `margin`.

    (z_confidence + z_power)^2 (psi - D^2) / (margin - D)^2 with the rates that were seen, psi of flips
    and D of the drop, to which one flip each way is added (Bonett and Price 2012, J. Educ. Behav. Stat.
    37:479-488) because few flips tell little; and not fewer than certify with no flips at all. If the
    drop is beyond the margin, the same number shows that instead.

    Args:
        b: Negative flips.
        c: Positive flips.
        n: Images that they were seen in.
        margin: The drop that is allowed, in [0, 1).
        confidence: One-sided, in (0.5, 1).
        power: The probability of settling it.

    Returns:
        None if the drop equals the margin: no number settles that.
    """
    drop, flips = (b - c) / (n + 2), (b + c + 2) / (n + 2)
    if drop == margin:
        return None
    quantiles = normal_quantile(confidence) + normal_quantile(power)
    by_rates = quantiles**2 * (flips - drop**2) / (margin - drop) ** 2
    without_flips = math.log(1 - confidence) / math.log1p(-margin) if margin else 0.0
    return math.ceil(max(by_rates, without_flips))


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
