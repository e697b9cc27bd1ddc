"""The split of images into calibration, tuning and test, disjoint by digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from resedge.errors import InputRefused
from resedge.images.sets import ImageSet


@dataclass(frozen=True)
class Split:
    """Three disjoint sets; `overlaps` test images were removed as they occur in another set."""

    calibration: ImageSet
    tuning: ImageSet
    test: ImageSet
    overlaps: int


def split(images: ImageSet, seed: int) -> Split:
    """Split one set into calibration (a quarter, at most 1,024), tuning (the same) and test (the rest).

    Stratified by class and decided by each image's digest and the seed alone, so neither the order nor
    the names of files matter. Copies of one image all land in one place, and leave the test set where
    they also occur in another.

    Raises:
        InputRefused: Too few images for three sets.
    """
    if len(images) < 8:
        raise InputRefused(
            f"{len(images)} images are too few to split into calibration, tuning and test.",
            where=images.place or images.origin,
            cure="Give more images, or --calibration-data and --test-data apart.",
        )
    share = min(1024, len(images) // 4)
    order = _stratified_order(images, seed)
    return disjoint(
        images.select(order[:share]),
        images.select(order[share : 2 * share]),
        images.select(order[2 * share :]),
    )


def halve(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split one set evenly into calibration and tuning images, stratified as `split` does.

    Raises:
        InputRefused: Fewer than two images.
    """
    if len(images) < 2:
        raise InputRefused(
            "one image cannot be split.", where=images.place or images.origin, cure="Give more images."
        )
    order = _stratified_order(images, seed)
    half = len(images) // 2
    return images.select(order[:half]), images.select(order[half:])


def disjoint(calibration: ImageSet, tuning: ImageSet, test: ImageSet) -> Split:
    """Make three sets disjoint by digest: tuning gives way to calibration, test to both.

    Raises:
        InputRefused: Nothing is left of a set.
    """
    tuning = without(tuning, frozenset(calibration.digests))
    kept = without(test, frozenset(calibration.digests) | frozenset(tuning.digests))
    return Split(calibration, tuning, kept, overlaps=len(test) - len(kept))


def without(images: ImageSet, seen: frozenset[str]) -> ImageSet:
    """Return the images whose digests are not among `seen`.

    Raises:
        InputRefused: None is left.
    """
    kept = [i for i, digest in enumerate(images.digests) if digest not in seen]
    if not kept:
        raise InputRefused(
            f"all {len(images)} images already serve calibration or tuning.",
            where=images.place or images.origin,
            cure="Give images that no earlier stage has seen.",
        )
    return images if len(kept) == len(images) else images.select(kept)


def _stratified_order(images: ImageSet, seed: int) -> list[int]:
    """Order the images so that every prefix has the classes in proportion."""
    labels = np.zeros(len(images), np.int64) if images.labels is None else images.labels
    ranks = [hashlib.sha256(f"{seed}:{digest}".encode()).digest() for digest in images.digests]
    position: dict[int, float] = {}
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: (ranks[i], i))
        position.update({i: (k + 0.5) / len(members) for k, i in enumerate(members)})
    return sorted(position, key=lambda i: (position[i], ranks[i], i))
