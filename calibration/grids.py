"""Real numbers to integer grids: an activation's scale and zero point, a weight's int8 form.

q = round(x / scale) + zero_point, half to even, clamped (ONNX QuantizeLinear). All in float64 until
the scale itself, which is float32; a scale for a graph that may become FP16 is an FP16 number
already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from resedge.calibration.saturation import LARGEST_SAFE_PAIR, largest_pairs
from resedge.calibration.schemes import Scheme
from resedge.protocols import Float32Array

SMALLEST_HALF_SCALE: Final = float(np.finfo(np.float16).tiny)  # 2**-14, below it FP16 loses digits
_SMALLEST_SCALE: Final = float(np.finfo(np.float32).tiny)
_TOP: Final = 127  # a weight's largest integer
_DEAD_SCALE: Final = 1.0  # of a tensor or channel that is zero throughout; any positive number is right


@dataclass(frozen=True)
class Grid:
    """An activation's per-tensor scale, float32, and zero point."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True)
class QuantisedWeight:
    """int8 integers in the weight's own shape, and one float32 scale an output channel."""

    integers: npt.NDArray[np.int8]
    scales: Float32Array


def activation_grid(low: float, high: float, scheme: Scheme) -> Grid:
    """Return the grid that spans a range; zero is exactly on it.

    Args:
        low: Lower end, at most 0.
        high: Upper end, at least 0.
        scheme: Symmetric schemes span the larger magnitude on both sides; the others span
            low..high, the zero point rounded to an integer, which moves the ends by at most half a
            step.
    """
    span = 2 * max(-low, high) if scheme.symmetric else high - low
    widest = span / (scheme.high - scheme.low)
    scale = _storable(np.asarray([widest]), scheme.half_scales)[0]
    zero_point = 0 if scheme.symmetric else scheme.low + round(-low / float(scale))
    return Grid(scale, min(max(zero_point, scheme.low), scheme.high))


def quantise_weight(weight: Float32Array, axis: int, scheme: Scheme, *, pair_safe: bool) -> QuantisedWeight:
    """Return a weight as int8 in -127..127, symmetric, one scale for each index of `axis`.

    Scales are rounded up to what the file holds: no weight lies beyond the last integer.

    Args:
        weight: Two dimensions or more, float32 (or float16), finite.
        axis: The output channels.
        scheme: Says whether scales must be FP16 numbers.
        pair_safe: Make scales as large as it takes for pairs of products to fit 16 bits, see
            `resedge.calibration.saturation`.
    """
    by_channel = np.moveaxis(weight, axis, 0).astype(np.float64)
    least = np.abs(by_channel).reshape(len(by_channel), -1).max(axis=1, initial=0.0) / _TOP
    if pair_safe:
        least = np.maximum(least, largest_pairs(by_channel) / LARGEST_SAFE_PAIR)
    scales = _rounded_up(least, scheme.half_scales)
    along = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
    steps = np.rint(weight.astype(np.float64) / scales.astype(np.float64).reshape(along))
    return QuantisedWeight(steps.astype(np.int8), scales)


def _rounded_up(scales: npt.NDArray[np.float64], half: bool) -> Float32Array:
    """Round scales to what the file holds, none to less than it was."""
    stored = _storable(scales, half)
    with np.errstate(over="ignore"):  # infinite, as in `_storable`
        following = np.nextafter(stored.astype(np.float16 if half else np.float32), np.float16(np.inf))
    return np.where(stored < scales, following.astype(np.float32), stored)


def _storable(scales: npt.NDArray[np.float64], half: bool) -> Float32Array:
    """Round scales to what the file holds: positive, normal, `_DEAD_SCALE` for zero."""
    alive = np.where(scales > 0, scales, _DEAD_SCALE)
    if not half:
        return np.maximum(alive, _SMALLEST_SCALE).astype(np.float32)
    with np.errstate(over="ignore"):  # beyond 65504: infinite, and the checker names the tensor
        return np.maximum(alive, SMALLEST_HALF_SCALE).astype(np.float16).astype(np.float32)
