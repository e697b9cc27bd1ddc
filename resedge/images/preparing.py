"""From frames to the model's input: the one implementation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Preprocessing
from resedge.errors import InputRefused
from resedge.protocols import Float32Array

Frames = npt.NDArray[np.uint8]  # (N, H, W, 3), RGB

NOTEBOOK_PREPROCESSING = Preprocessing(28, 28, mean=(0.2860,) * 3, std=(0.3530,) * 3)


def prepare(frames: Frames, preprocessing: Preprocessing) -> Float32Array:
    """Map (N, H, W, 3) uint8 RGB frames to the model's input, (N, 3, H, W) float32, C-contiguous.

    Raises:
        InputRefused: The frames have another size, number of channels or dtype.
    """
    expected = (preprocessing.height, preprocessing.width, 3)
    if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != np.uint8:
        raise InputRefused(
            f"frames are {frames.shape} {frames.dtype}, the model takes "
            f"(N, {expected[0]}, {expected[1]}, 3) uint8.",
            cure="Resize the images to the model's size first.",
        )
    mean = np.array(preprocessing.mean, np.float32)
    std = np.array(preprocessing.std, np.float32)
    scaled = (frames.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
