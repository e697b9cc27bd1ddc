"""Where to cut a distribution's tails: the least squared error, or the least divergence.

Both read a tensor's histogram and return a range that holds zero and is never wider than the extremes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from resedge.calibration.grids import Grid, activation_grid
from resedge.calibration.histograms import BINS_A_SIDE, Histogram
from resedge.calibration.schemes import Scheme

_FRACTIONS: Final = 2.0 ** (-np.arange(0, 161) / 16)  # of an end: 4 % apart, down to a thousandth
_ROUNDS: Final = 2  # of improving one end with the other as it is
_LEVELS: Final = 128  # of the magnitudes in int8, as in Migacz's method
_STRIDE: Final = 16  # of the thresholds tried, in bins

_Float64 = npt.NDArray[np.float64]


def least_squares(histogram: Histogram, scheme: Scheme) -> tuple[float, float]:
    """Return the range with the least mean squared error on a scheme's grid, of clipping and of rounding.

    Values count as lying in the middle of their bins, which are at least 16 times finer than the steps
    of the full range; the ends tried are 4 % apart. Sung, Shin and Hwang (2015), "Resiliency of Deep
    Neural Networks under Quantization", choose steps so.
    """
    occupied = np.flatnonzero(histogram.counts)
    weights = histogram.counts[occupied].astype(np.float64)
    centres = _centres(occupied, histogram)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if low == high:
        return low, high

    def best(lows: _Float64, highs: _Float64) -> int:
        grids = [activation_grid(*ends, scheme) for ends in zip(lows, highs, strict=True)]
        return int(np.argmin([_squared_error(centres, weights, grid, scheme) for grid in grids]))

    common = best(low * _FRACTIONS, high * _FRACTIONS)
    ends = [low * _FRACTIONS[common], high * _FRACTIONS[common]]
    for _ in range(_ROUNDS if low < 0 < high and not scheme.symmetric else 0):
        ends[0] = low * _FRACTIONS[best(low * _FRACTIONS, np.full_like(_FRACTIONS, ends[1]))]
        ends[1] = high * _FRACTIONS[best(np.full_like(_FRACTIONS, ends[0]), high * _FRACTIONS)]
    return float(ends[0]), float(ends[1])


def least_divergence(histogram: Histogram) -> tuple[float, float]:
    """Return the range of least Kullback-Leibler divergence between the magnitudes and their int8 form.

    Migacz (2017), "8-bit Inference with TensorRT": for each threshold, values beyond it are counted into
    the last bin of the reference; the candidate is the distribution within, merged into 128 levels and
    spread again over the bins that hold values. Both ends get the threshold, as far as there are values.
    """
    magnitudes = _magnitudes(histogram)
    last = int(np.flatnonzero(magnitudes)[-1]) + 1
    if last <= _LEVELS:
        return min(histogram.low, 0.0), max(histogram.high, 0.0)
    # Counted from the end, so that "nothing is clipped" is among them.
    thresholds = range(last, _LEVELS, -_STRIDE)
    divergences = [_divergence(magnitudes, threshold) for threshold in thresholds]
    threshold = thresholds[int(np.argmin(divergences))] * 2.0**histogram.exponent
    return max(min(histogram.low, 0.0), -threshold), min(max(histogram.high, 0.0), threshold)


def _centres(bins: npt.NDArray[np.intp], histogram: Histogram) -> _Float64:
    """Return the middle of each bin, zero for the one that holds it."""
    signed = bins - (BINS_A_SIDE - 1)
    return (signed + 0.5 * np.sign(signed)) * 2.0**histogram.exponent


def _squared_error(centres: _Float64, weights: _Float64, grid: Grid, scheme: Scheme) -> float:
    scale = float(grid.scale)
    integers = np.rint(centres / scale)
    steps = np.clip(integers, scheme.low - grid.zero_point, scheme.high - grid.zero_point)
    return float(weights @ np.square(centres - steps * scale))


def _magnitudes(histogram: Histogram) -> _Float64:
    """Return the counts by magnitude, (2048,)."""
    centre = BINS_A_SIDE - 1
    folded = histogram.counts[centre:].astype(np.float64)
    folded[1:] += histogram.counts[:centre][::-1]
    return folded


def _divergence(magnitudes: _Float64, threshold: int) -> float:
    """Return KL(reference || candidate) of the first `threshold` bins, in nats."""
    within = magnitudes[:threshold]
    reference = within.copy()
    reference[-1] += magnitudes[threshold:].sum()
    starts = np.arange(_LEVELS) * threshold // _LEVELS
    held = within > 0
    totals, holders = np.add.reduceat(within, starts), np.add.reduceat(held.astype(np.float64), starts)
    sizes = np.diff(np.append(starts, threshold))
    mean = np.divide(totals, holders, out=np.zeros(_LEVELS), where=holders > 0)
    candidate = np.where(held, np.repeat(mean, sizes), 0.0)
    if not candidate.any():
        return np.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    # Outliers counted into an empty last bin have no counterpart: this threshold is no candidate.
    if (q[p > 0] == 0).any():
        return np.inf
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
