"""Ranges of activations, read from histograms: minmax, percentile, entropy and mse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol

import numpy as np

from resedge.artifacts import Ranges
from resedge.calibration.clipping import least_divergence, least_squares
from resedge.calibration.histograms import BINS_A_SIDE, Histogram, Histograms
from resedge.calibration.schemes import SCHEMES, scheme_named

_CENTRE: Final = BINS_A_SIDE - 1


class Method(Protocol):
    """Reads a range for every tensor; the digests and the count are carried into the result."""

    def __call__(
        self, histograms: Histograms, *, graph_sha256: str, dataset_sha256: str, images: int
    ) -> Ranges:
        """Return the ranges of a graph, calibrated on so many images."""


def minmax(histograms: Histograms, *, graph_sha256: str, dataset_sha256: str, images: int) -> Ranges:
    """Return the exact extremes of every tensor, widened to hold zero.

    Args:
        histograms: Of one graph.
        graph_sha256: The digest of that graph.
        dataset_sha256: The digest of the calibration images.
        images: How many they were.
    """
    table = {
        name: (min(histogram.low, 0.0), max(histogram.high, 0.0)) for name, histogram in histograms.items()
    }
    return Ranges(table, "minmax", graph_sha256, dataset_sha256, images)


def percentile(
    histograms: Histograms, p: float, *, graph_sha256: str, dataset_sha256: str, images: int
) -> Ranges:
    """Return ranges that hold p % of every tensor's values; the tails beyond are clipped.

    Each tail holds (100 - p) / 2 % of the values, or one tail (100 - p) % where all values have one
    sign. Within a bin the values count as evenly spread. The range is never wider than the extremes
    and always holds zero.

    Args:
        histograms: Of one graph.
        p: Above 0 and at most 100; 100 is minmax up to the name.
        graph_sha256: The digest of that graph.
        dataset_sha256: The digest of the calibration images.
        images: How many they were.

    Raises:
        ValueError: `p` is out of its interval.
    """
    if not 0 < p <= 100:
        raise ValueError(f"p is {p}, expected 0 < p <= 100")
    table = {name: _clipped(histogram, p) for name, histogram in histograms.items()}
    return Ranges(table, f"percentile-{p:g}", graph_sha256, dataset_sha256, images)


def entropy(histograms: Histograms, *, graph_sha256: str, dataset_sha256: str, images: int) -> Ranges:
    """Return the ranges of least divergence, see `resedge.calibration.clipping.least_divergence`."""
    table = _each(histograms, least_divergence)
    return Ranges(table, "entropy", graph_sha256, dataset_sha256, images)


def mse(
    histograms: Histograms, scheme: str, *, graph_sha256: str, dataset_sha256: str, images: int
) -> Ranges:
    """Return the ranges of least squared error on the grid of a scheme, "cpu" or "tensorrt".

    See `resedge.calibration.clipping.least_squares`.
    """
    table = _each(histograms, partial(least_squares, scheme=scheme_named(scheme)))
    return Ranges(table, f"mse-{scheme}", graph_sha256, dataset_sha256, images)


def _each(
    histograms: Histograms, ends: Callable[[Histogram], tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    found = {name: ends(histogram) for name, histogram in histograms.items()}
    return {name: (float(np.float32(low)), float(np.float32(high))) for name, (low, high) in found.items()}


def _clipped(histogram: Histogram, p: float) -> tuple[float, float]:
    one_sided = histogram.low >= 0 or histogram.high <= 0
    tail = (100 - p) / (100 if one_sided else 200) * int(histogram.counts.sum())
    high = _upper_end(histogram, tail) if histogram.high > 0 else 0.0
    low = -_upper_end(_mirrored(histogram), tail) if histogram.low < 0 else 0.0
    return float(np.float32(min(low, 0.0))), float(np.float32(max(high, 0.0)))


def _mirrored(histogram: Histogram) -> Histogram:
    """Return the histogram of the negated values."""
    return Histogram(histogram.exponent, histogram.counts[::-1], -histogram.high, -histogram.low)


def _upper_end(histogram: Histogram, tail: float) -> float:
    """Return the value above which `tail` values lie."""
    at_or_above = np.cumsum(histogram.counts[::-1])[::-1]
    occupied = np.flatnonzero((at_or_above >= tail) & (histogram.counts > 0))
    index = int(occupied[-1])
    inside = int(histogram.counts[index])
    beyond = int(at_or_above[index]) - inside
    lower, upper = _edges(index - _CENTRE, histogram)
    return upper - (tail - beyond) / inside * (upper - lower)


def _edges(bin_: int, histogram: Histogram) -> tuple[float, float]:
    """Return the ends of a bin as far as there are values."""
    width = 2.0**histogram.exponent
    lower = bin_ if bin_ > 0 else bin_ - 1
    upper = bin_ if bin_ < 0 else bin_ + 1
    return max(lower * width, histogram.low), min(upper * width, histogram.high)


def suits(method: str, scheme: str) -> bool:
    """Say whether a method's ranges are for a scheme's grid; only mse fits them to one."""
    return method not in {f"mse-{name}" for name in SCHEMES if name != scheme}


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "minmax": minmax,
        "percentile-99.9": partial(percentile, p=99.9),
        "percentile-99.99": partial(percentile, p=99.99),
        "percentile-99.999": partial(percentile, p=99.999),
        "entropy": entropy,
        "mse-cpu": partial(mse, scheme="cpu"),
        "mse-tensorrt": partial(mse, scheme="tensorrt"),
    }
)
