from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from resedge.calibration.clipping import least_divergence, least_squares
from resedge.calibration.grids import activation_grid
from resedge.calibration.histograms import count
from resedge.calibration.schemes import SCHEMES
from resedge.protocols import Float32Array

_RANDOM = np.random.default_rng(3)
SHAPES: dict[str, Float32Array] = {
    name: values.astype(np.float32)
    for name, values in {
        "normal": _RANDOM.standard_normal(40_000),
        "laplace": _RANDOM.laplace(size=40_000),
        "relu": np.maximum(_RANDOM.standard_normal(40_000), 0),
        "lopsided": np.where(_RANDOM.random(40_000) < 0.5, -0.1, 1.0) * _RANDOM.exponential(size=40_000),
        "outlier": np.append(_RANDOM.standard_normal(40_000), 40.0),
        "uniform": _RANDOM.uniform(-1, 1, 40_000),
    }.items()
}


def _error(values: Float32Array, low: float, high: float, scheme: str) -> float:
    chosen = SCHEMES[scheme]
    grid = activation_grid(low, high, chosen)
    steps = np.clip(np.rint(values / float(grid.scale)) + grid.zero_point, chosen.low, chosen.high)
    return float(np.square(values - (steps - grid.zero_point) * float(grid.scale)).mean())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_squared_error_is_within_a_few_per_cent_of_the_least_there_is(shape: str, scheme: str) -> None:
    values = SHAPES[shape]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    fractions = np.linspace(0.02, 1, 50)
    least = min(
        _error(values, low * below, high * above, scheme)
        for below, above in itertools.product(fractions, fractions)
        if low or below == 1
    )
    assert _error(values, *least_squares(count(values), SCHEMES[scheme]), scheme) <= 1.05 * least


def test_levels_that_are_on_the_grid_are_not_clipped() -> None:
    pixels = ((np.arange(256).repeat(50) / 255 - 0.286) / 0.353).astype(np.float32)
    low, high = least_squares(count(pixels), SCHEMES["cpu"])
    assert (low, high) == (float(pixels.min()), float(pixels.max()))


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_a_tensor_of_one_value_keeps_it(value: float) -> None:
    values: Float32Array = np.full(5, value, np.float32)
    histogram = count(values)
    whole = (min(value, 0.0), max(value, 0.0))
    assert least_squares(histogram, SCHEMES["cpu"]) == whole
    assert least_divergence(histogram) == whole


@pytest.mark.parametrize("shape", SHAPES)
def test_the_divergence_is_the_least_of_the_plain_algorithm(shape: str) -> None:
    histogram = count(SHAPES[shape])
    magnitudes = np.zeros(2048)
    for index, number in enumerate(histogram.counts):
        magnitudes[abs(index - 2047)] += number
    last = max(index for index in range(2048) if magnitudes[index])  # 1,024 or more: bins are that narrow
    best = min(range(last + 1, 128, -16), key=lambda bins: _plain_divergence(magnitudes, bins))
    low, high = least_divergence(histogram)
    threshold = best * 2.0**histogram.exponent
    assert high == min(max(histogram.high, 0.0), threshold)
    assert low == max(min(histogram.low, 0.0), -threshold)


def _plain_divergence(magnitudes: np.ndarray[tuple[int], np.dtype[np.float64]], bins: int) -> float:
    reference = [float(number) for number in magnitudes[:bins]]
    reference[-1] += float(magnitudes[bins:].sum())
    candidate = [0.0] * bins
    for level in range(128):
        members = range(level * bins // 128, (level + 1) * bins // 128)
        holding = [index for index in members if magnitudes[index] > 0]
        for index in holding:
            candidate[index] = sum(float(magnitudes[i]) for i in members) / len(holding)
    total_p, total_q = sum(reference), sum(candidate)
    divergence = 0.0
    for p, q in zip(reference, candidate, strict=True):
        if p > 0 and q == 0:
            return math.inf
        if p > 0:
            divergence += p / total_p * math.log(p / total_p / (q / total_q))
    return divergence
