"""The bake-off: which candidate ranges keep the predictions closest to eager's, without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Ranges
from resedge.errors import InputRefused
from resedge.protocols import Float32Array


@dataclass(frozen=True)
class Score:
    """How close quantised logits are to eager's.

    `agreement` is the fraction of images with the same top class, `kl` the mean over images of
    KL(softmax(eager) || softmax(quantised)) in nats.
    """

    agreement: float
    kl: float


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


def bakeoff(candidates: Mapping[str, Ranges], score: Callable[[Ranges], Score]) -> BakeOff:
    """Score every candidate and name the best: highest agreement, then lowest KL, then the first.

    Args:
        candidates: Ranges by the name of the method.
        score: Builds the candidate's graph, runs it on the tuning images and scores it.

    Raises:
        ValueError: There are no candidates.
    """
    if not candidates:
        raise ValueError("there are no candidates")
    scores = tuple(Entry(name, score(ranges)) for name, ranges in candidates.items())
    winner = min(scores, key=lambda entry: (-entry.score.agreement, entry.score.kl))
    return BakeOff(winner.name, scores)


def score_logits(eager: Float32Array, quantised: Float32Array) -> Score:
    """Score quantised logits against eager's on the same images.

    Args:
        eager: (N, classes) float32, N at least 1.
        quantised: Of the same shape.

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
    agreement = (eager.argmax(axis=1) == quantised.argmax(axis=1)).mean()
    return Score(float(agreement), float(divergence.mean()))


def _log_softmax(logits: Float32Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logarithms: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms
