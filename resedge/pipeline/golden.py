"""The golden images of a bundle: which they are, and reading them, which a stranger may have written."""

from __future__ import annotations

import numpy as np

from resedge.artifacts import Artifact
from resedge.errors import InputRefused
from resedge.gate import check_safetensors
from resedge.protocols import Array, Float32Array, Int64Array


def surest(logits: Float32Array, count: int) -> Int64Array:
    """Return which images are golden, about `count` of them: of each class that eager finds, the surest.

    An engine that is the same model, at whatever precision, agrees with eager on all of them; the export
    checks it of every engine that it builds.

    Args:
        logits: Eager's, (N, classes) float32.
        count: Classes have the same number each, rounded up; where there are more classes, some have none.
    """
    best = np.sort(logits, axis=1)
    margin, found = best[:, -1] - best[:, -2], logits.argmax(axis=1)
    classes = logits.shape[1]
    each = -(-count // classes)
    by_margin = np.argsort(-margin, kind="stable")
    chosen = np.concatenate([by_margin[found[by_margin] == label][:each] for label in range(classes)])
    if classes > count:
        chosen = chosen[np.argsort(-margin[chosen], kind="stable")][:count]
    return np.sort(chosen)


def read_golden(golden: Artifact) -> tuple[Array, Float32Array]:
    """Return the images as engines take them, and eager's logits, (N, classes) float32.

    Images are (N, C, H, W) float32 or frames, (N, H, W, 3 or 4) uint8.

    Raises:
        InputRefused: It is no sound safetensors file, or holds something else.
        StaleArtifact: The file has changed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data, where = golden.read(), str(golden.path)
    check_safetensors(data, where)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError) as error:  # a KeyError: a type that numpy does not have
        raise InputRefused(f"is not a sound safetensors file ({error}).", where=where) from error
    images, logits = tensors.get("input"), tensors.get("logits")
    if images is None or logits is None or (images.ndim, logits.ndim) != (4, 2) or len(images) != len(logits):
        raise InputRefused("does not hold the input and the logits of as many images.", where=where)
    if images.dtype not in (np.float32, np.uint8) or logits.dtype != np.float32 or not len(images):
        raise InputRefused("does not hold float32 numbers, or frames, of at least one image.", where=where)
    return images, logits
