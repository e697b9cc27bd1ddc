"""From frames to the model's input: the one implementation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Channels, Preprocessing
from resedge.errors import InputRefused
from resedge.protocols import Array, Float32Array

Frames = npt.NDArray[np.uint8]  # (N, H, W, 3), RGB; (N, H, W, 4), RGBA, where the model takes alpha

LUMA = (19595, 38470, 7471)  # ITU-R BT.601 in 65536ths, as Pillow rounds it

NOTEBOOK_PREPROCESSING = Preprocessing(28, 28, mean=(0.2860,) * 3, std=(0.3530,) * 3)


def prepare(frames: Frames, preprocessing: Preprocessing) -> Float32Array:
    """Map (N, H, W, 3 or 4) uint8 frames to the model's input, (N, C, H, W) float32, C-contiguous.

    Frames are RGB, or RGBA where the model takes alpha. One that takes BGR gets their channels the other way
    round, one that takes grey their luma, to the value that Pillow gives it.

    Raises:
        InputRefused: The frames have another size, number of channels or dtype.
    """
    demand_frames(frames, preprocessing)
    mean = np.array(preprocessing.mean, np.float32)
    std = np.array(preprocessing.std, np.float32)
    scaled = (ordered(frames, preprocessing.channels).astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def demand_frames(frames: Frames, preprocessing: Preprocessing) -> None:
    """Refuse what a model cannot be given.

    Raises:
        InputRefused: The frames have another size, number of channels or dtype.
    """
    expected = preprocessing.frame_shape
    if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != np.uint8:
        raise InputRefused(
            f"frames are {frames.shape} {frames.dtype}, the model takes "
            f"(N, {', '.join(map(str, expected))}) uint8.",
            cure="Resize the images to the model's size first.",
        )


def as_input(frames: Frames, outside: Preprocessing | None) -> Array:
    """Return what an engine is given of frames: themselves where nothing is left to do outside of it."""
    return frames if outside is None else prepare(frames, outside)


def ordered(frames: Frames, channels: Channels) -> Frames:
    """Return the channels of RGB or RGBA frames that a model takes, in its order."""
    if channels == "BGR":
        return frames[..., ::-1]
    if channels == "L":
        weighted: npt.NDArray[np.uint32] = frames.astype(np.uint32) @ np.array(LUMA, np.uint32)
        luma = (weighted + np.uint32(1 << 15)) >> np.uint32(16)
        grey: Frames = luma.astype(np.uint8)
        return grey[..., np.newaxis]
    return frames
