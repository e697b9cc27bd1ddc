"""Reading the golden images of a bundle, which a stranger may have written."""

from __future__ import annotations

import numpy as np

from resedge.artifacts import Artifact
from resedge.errors import InputRefused
from resedge.gate import check_safetensors
from resedge.protocols import Array, Float32Array


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
