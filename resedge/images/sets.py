"""A set of images: their digests, their labels, and how to decode them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from resedge.artifacts import Preprocessing, sha256_json
from resedge.images.preparing import Frames, as_input, prepare
from resedge.protocols import Array, Float32Array, Int64Array

_DECODED_AT_ONCE = 256


@dataclass(frozen=True)
class Undecodable:
    """A file that is named as an image and cannot be decoded."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order.

    `digests` has the `content_digest` of each image; `labels` is (N,) int64 class indices or None;
    `decode` maps indices to frames, (n, H, W, 3) uint8 RGB, or (n, H, W, 4) RGBA. `origin` names the set in
    reports, `place` in errors where it is the user's: as it was written. `undecodable` are files that would
    be among the images and are not.
    """

    origin: str
    digests: tuple[str, ...]
    labels: Int64Array | None
    decode: Callable[[Sequence[int]], Frames]
    class_names: tuple[str, ...] = ()
    place: str = ""
    undecodable: tuple[Undecodable, ...] = ()

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def sha256(self) -> str:
        """The digest of the set: its images and their labels, in this order."""
        labels = None if self.labels is None else self.labels.tolist()
        return sha256_json({"images": list(self.digests), "labels": labels})

    def select(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order."""
        chosen = list(indices)
        return replace(
            self,
            digests=tuple(self.digests[i] for i in chosen),
            labels=None if self.labels is None else self.labels[chosen],
            decode=lambda positions: self.decode([chosen[i] for i in positions]),
        )

    def batches(self, size: int, preprocessing: Preprocessing) -> Iterator[Float32Array]:
        """Yield the prepared images in order, (at most `size`, C, H, W) float32."""
        for start in range(0, len(self), size):
            indices = range(start, min(start + size, len(self)))
            yield prepare(self.decode(indices), preprocessing)

    def prepared(self, preprocessing: Preprocessing) -> Float32Array:
        """Return all images prepared, (N, C, H, W) float32; for sets that fit in memory."""
        return np.concatenate(list(self.batches(_DECODED_AT_ONCE, preprocessing)))

    def inputs(self, size: int, outside: Preprocessing | None) -> Iterator[Array]:
        """Yield what an engine is given of the images in order, at most `size` of them.

        They are prepared, or with None, where the engine does that itself, (n, H, W, 3 or 4) uint8.
        """
        for start in range(0, len(self), size):
            yield as_input(self.decode(range(start, min(start + size, len(self)))), outside)

    def all_inputs(self, outside: Preprocessing | None) -> Array:
        """Return what an engine is given of all images; for sets that fit in memory."""
        return np.concatenate(list(self.inputs(_DECODED_AT_ONCE, outside)))


def content_digest(frame: Frames) -> str:
    """Return the SHA-256 of a frame, (H, W, 3 or 4) uint8: its shape (big-endian uint32), its bytes."""
    return hashlib.sha256(struct.pack(">3I", *frame.shape) + frame.tobytes()).hexdigest()
