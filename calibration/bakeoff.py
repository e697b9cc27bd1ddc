"""The bake-off: which candidate ranges keep the predictions closest to eager's, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from resedge.errors import InputRefused
from resedge.protocols import Float32Array, Int64Array

FINALISTS: Final = 2  # of a screening


@dataclass(frozen=True)
class Score:
    """How close quantised logits are to eager's on so many images.

    `agreement` is the fraction of images with the same top class, `kl` the mean over images of
    KL(softmax(eager) || softmax(quantised)) in nats. `drop` is eager's top-1 minus the quantised one's;
    without labels 1 - agreement, which no drop exceeds.
    """

    agreement: float
    kl: float
    drop: float
    images: int

    @property
    def disagreements(self) -> int:
        """The number of images with another top class."""
        return round((1 - self.agreement) * self.images)


@dataclass(frozen=True)
class Entry:
    """A candidate's name and its score."""

    name: str
    score: Score


@dataclass(frozen=True)
class BakeOff:
    """The winner's name and every candidate's score, in the order given."""

    winner: str
    scores: tuple[Entry, ...]

    @property
    def best(self) -> Score:
        """The winner's score."""
        return next(entry.score for entry in self.scores if entry.name == self.winner)


def run_off(screening: BakeOff, score: Callable[[str], Score]) -> BakeOff:
    """Choose between the best two of a bake-off by scores on more images, see `choose`.

    Args:
        screening: Of all candidates, on few images.
        score: Of the candidate of that name, on all.

    Returns:
        Every candidate's last score; `images` tells on how many.
    """
    scores = {entry.name: entry.score for entry in screening.scores}
    left, finalists = dict(scores), list[str]()
    while left and len(finalists) < FINALISTS:
        finalists.append(choose(left).winner)
        del left[finalists[-1]]
    final = choose({name: score(name) for name in finalists})
    scores |= {entry.name: entry.score for entry in final.scores}
    return BakeOff(final.winner, tuple(Entry(name, score) for name, score in scores.items()))


def choose(scores: Mapping[str, Score]) -> BakeOff:
    """Name the best score: lowest KL, then the first, among those that agree with eager as well as any.

    A few images more or fewer on which the top class differs are chance: the count has a standard error
    of about its own square root. Who is within one of that of the fewest is still in the race (the
    one-standard-error rule, Breiman et al., 1984), and there KL, which every image speaks to, decides.

    Args:
        scores: By the candidate's name, on the same images.

    Raises:
        ValueError: There are no candidates.
    """
    if not scores:
        raise ValueError("there are no candidates")
    fewest = min(score.disagreements for score in scores.values())
    in_the_race = {
        name: score
        for name, score in scores.items()
        if score.disagreements <= fewest + math.sqrt(max(fewest, 1))
    }
    winner = min(in_the_race, key=lambda name: in_the_race[name].kl)
    return BakeOff(winner, tuple(Entry(name, score) for name, score in scores.items()))


def score_logits(eager: Float32Array, quantised: Float32Array, labels: Int64Array | None = None) -> Score:
    """Score quantised logits against eager's on the same images.

    Args:
        eager: (N, classes) float32, N at least 1.
        quantised: Of the same shape.
        labels: (N,) int64, or None.

    Raises:
        ValueError: The shapes differ, or there are no images.
        InputRefused: A logit is NaN or infinite.
    """
    if eager.shape != quantised.shape or eager.ndim != 2 or not eager.size:
        raise ValueError(f"logits are {eager.shape} and {quantised.shape}")
    for whose, logits in (("eager", eager), ("quantised", quantised)):
        if not np.isfinite(logits).all():
            raise InputRefused("the logits hold NaN or infinity.", where=f"the {whose} model")
    expected, given = _log_softmax(eager), _log_softmax(quantised)
    divergence = (np.exp(expected) * (expected - given)).sum(axis=1)
    chosen, found = eager.argmax(axis=1), quantised.argmax(axis=1)
    agreement = float((chosen == found).mean())
    drop = 1 - agreement
    if labels is not None:
        drop = float((chosen == labels).mean() - (found == labels).mean())
    return Score(agreement, float(divergence.mean()), drop, len(eager))


def _log_softmax(logits: Float32Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logarithms: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms
