"""The images on which an engine and eager choose another class: how many, and the first worth showing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from resedge.protocols import Float32Array, Int64Array

SHOWN: Final = 24  # of one engine


@dataclass(frozen=True)
class Differing:
    """One of them: its position in the test set, and the classes that eager and the engine choose."""

    image: int
    eager: int
    engine: int


@dataclass(frozen=True)
class Differences:
    """How many there are, and at most `SHOWN`: what the engine loses, then what it wins, then others."""

    total: int
    first: tuple[Differing, ...]


def differences(eager: Float32Array, engine: Float32Array, labels: Int64Array | None) -> Differences:
    """Return where two models choose another class.

    Args:
        eager: Eager's logits, (N, classes) float32.
        engine: The engine's, of the same images.
        labels: (N,) int64, or None.
    """
    ours, theirs = eager.argmax(axis=1), engine.argmax(axis=1)
    images = np.flatnonzero(ours != theirs)
    if labels is not None:
        rank = np.where(ours == labels, 0, np.where(theirs == labels, 1, 2))[images]
        images = images[np.argsort(rank, kind="stable")]
    first = tuple(Differing(int(i), int(ours[i]), int(theirs[i])) for i in images[:SHOWN])
    return Differences(len(images), first)
