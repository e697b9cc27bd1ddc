from __future__ import annotations

import numpy as np
import pytest

from resedge.artifacts import Ranges
from resedge.calibration.histograms import count, merge
from resedge.calibration.ranges import METHODS, minmax, percentile
from resedge.protocols import Float32Array

OF = {"graph_sha256": "a" * 64, "dataset_sha256": "b" * 64}


def _percentile(values: Float32Array, p: float) -> tuple[float, float]:
    return percentile({"x": count(values)}, p, images=1, **OF).table["x"]


def test_minmax_is_exact_and_holds_zero() -> None:
    histograms = {
        "both": merge(count(np.array([-0.1, 0.7], np.float32)), count(np.array([0.3, -2.3], np.float32))),
        "above": count(np.array([1.1, 7.7], np.float32)),
        "below": count(np.array([-3.3, -1.1], np.float32)),
        "dead": count(np.zeros(3, np.float32)),
    }
    ranges = minmax(histograms, images=4, **OF)
    assert ranges == Ranges(
        {
            "both": (float(np.float32(-2.3)), float(np.float32(0.7))),
            "above": (0.0, float(np.float32(7.7))),
            "below": (float(np.float32(-3.3)), 0.0),
            "dead": (0.0, 0.0),
        },
        "minmax",
        "a" * 64,
        "b" * 64,
        4,
    )


@pytest.mark.parametrize("p", [99.0, 99.9, 99.99, 99.999])
@pytest.mark.parametrize("shape", ["normal", "heavy", "relu", "shifted", "negative"])
def test_percentile_agrees_with_the_raw_values_within_one_bin(shape: str, p: float) -> None:
    random = np.random.default_rng(11)
    values = {
        "normal": random.standard_normal(300_007),
        "heavy": random.standard_t(2, 300_007),
        "relu": np.maximum(random.standard_normal(300_007), 0),
        "shifted": random.standard_normal(300_007) + 3,
        "negative": -np.abs(random.standard_normal(300_007)) - 1,
    }[shape].astype(np.float32)
    tail = (100 - p) / (100 if shape in ("relu", "negative") else 200)
    low, high = _percentile(values, p)
    width = 2.0 ** count(values).exponent
    upper = np.quantile(values, 1 - tail, method="inverted_cdf")
    lower = np.quantile(values, tail, method="inverted_cdf")
    assert high == pytest.approx(0.0 if shape == "negative" else upper, abs=width)
    assert low == pytest.approx(0.0 if shape == "relu" else min(lower, 0), abs=width)


def test_values_are_evenly_spread_within_a_bin() -> None:
    # 1,000 values in the bin [1, 1 + 1/1024) and one that ends it: the upper 10 % of 1,001 values.
    values = np.array([1.0] * 1000 + [1 + 1 / 1024 - 2**-20], np.float32)
    low, high = _percentile(values, 90.0)
    assert low == 0.0
    assert high == pytest.approx(1.0 + 0.9 * (1 / 1024 - 2**-20), abs=1e-6)


def test_an_outlier_is_clipped_by_percentile_alone() -> None:
    values = np.append(np.linspace(0, 1, 100_000, dtype=np.float32), np.float32(100))
    assert minmax({"x": count(values)}, images=1, **OF).table["x"] == (0.0, 100.0)
    assert _percentile(values, 99.99)[1] == pytest.approx(1.0, abs=2**-4)


def test_a_percentile_range_never_leaves_the_extremes() -> None:
    values = np.array([-0.3, 0.2, 0.7], np.float32)
    assert _percentile(values, 100) == (float(np.float32(-0.3)), float(np.float32(0.7)))
    assert _percentile(np.zeros(5, np.float32), 99.9) == (0.0, 0.0)


@pytest.mark.parametrize("p", [0.0, -1.0, 100.1])
def test_a_percentage_out_of_bounds_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="0 < p <= 100"):
        _percentile(np.ones(2, np.float32), p)


def test_every_method_names_its_ranges() -> None:
    histograms = {"x": count(np.linspace(-1, 1, 20_001, dtype=np.float32))}
    made = {name: method(histograms, images=9, **OF) for name, method in METHODS.items()}
    assert list(made) == [
        *("minmax", "percentile-99.9", "percentile-99.99", "percentile-99.999"),
        *("entropy", "mse-cpu", "mse-tensorrt"),
    ]
    assert all(ranges.method == name and ranges.images == 9 for name, ranges in made.items())
    assert made["percentile-99.9"].table["x"][1] == pytest.approx(0.999, abs=1 / 1024)
    assert made["percentile-99.99"].table["x"][1] == pytest.approx(0.9999, abs=1 / 1024)
