"""INT8 weights whose products fit the 16-bit sums of CPUs without VNNI.

There a kernel multiplies unsigned activations by signed weights with VPMADDUBSW (Intel SDM, volume
2): two neighbouring products are added in a signed 16-bit lane and clamped to [-32768, 32767] before
anything wider sees them. An activation is at most 255, so two weights a, b that meet in a lane are
safe iff 255 (max(a, 0) + max(b, 0)) <= 32767 and 255 (min(a, 0) + min(b, 0)) >= -32768: what they
have of one sign adds up to 128 at most (255 * 129 = 32895).

A scale s is thus large enough for a channel iff s >= the largest such sum of its real weights / 128.
Rounding cannot break this, if it is half to even. Let a, b >= 0 and a/s + b/s <= 128. Their rounded
values are a/s + 1/2 and b/s + 1/2 at most, so that their sum is 129 only if both are ties that went
up; but ties go to even numbers, and the sum of two is not 129. Weights of which one is negative
never add up, and those of which both are mirror these.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

LARGEST_SAFE_PAIR: Final = 128


def largest_pairs(weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the largest sum of one sign that two weights which meet in a lane have, by channel.

    Kernels keep the input channel innermost and pair each even place with the next: those of oneDNN
    among the channels of one kernel position, padded to an even number; those of MLAS, and oneDNN's
    for grouped convolutions, in the order of (kernel position, channel) throughout. The two differ
    where the channels are odd in number. Both are looked at, whatever runtime the graph is for.

    Args:
        weight: (output channels, input channels of a group, *kernel), a matrix having no kernel.

    Returns:
        (output channels,), zero or more: the weights' own unit.
    """
    channels_last = np.moveaxis(weight, 1, -1)
    throughout = _largest_in_order(channels_last.reshape(len(weight), -1))
    if weight.shape[1] % 2 == 0:
        return throughout
    return np.maximum(throughout, _largest_in_order(channels_last))


def partners(shape: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Return which weights of one output channel meet each in a lane, in either of the two orders.

    Args:
        shape: The weight's, as for `largest_pairs`.

    Returns:
        (weights of a channel, 2): for each place in the flattened channel, the places that it meets;
        its own where it is alone.
    """
    places = np.moveaxis(np.arange(int(np.prod(shape[1:]))).reshape(shape[1:]), 0, -1)
    throughout = places.reshape(1, -1)
    by_position = places.reshape(-1, shape[1])
    found = np.empty((places.size, 2), np.intp)
    for column, order in enumerate((by_position, throughout)):
        met = order.copy()
        even = order.shape[1] // 2 * 2
        met[:, :even] = order[:, :even].reshape(len(order), -1, 2)[..., ::-1].reshape(len(order), even)
        found[order.ravel(), column] = met.ravel()
    return found


def _largest_in_order(weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pair the places 2j and 2j + 1 of the last axis; the last of an odd number is alone."""
    uneven = weight.shape[-1] % 2
    padded = np.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, uneven)])
    pairs = padded.reshape(len(weight), -1, 2)
    one, other = pairs[..., 0], pairs[..., 1]
    upper = (np.maximum(one, 0) + np.maximum(other, 0)).max(axis=1, initial=0)
    lower = (np.minimum(one, 0) + np.minimum(other, 0)).min(axis=1, initial=0)
    largest: npt.NDArray[np.float64] = np.maximum(upper, -lower)
    return largest
