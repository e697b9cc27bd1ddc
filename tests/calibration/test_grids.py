from __future__ import annotations

import numpy as np
import pytest

from resedge.calibration.grids import SMALLEST_HALF_SCALE, activation_grid, quantise_weight
from resedge.calibration.schemes import SCHEMES, Scheme

CPU, TENSORRT = SCHEMES["cpu"], SCHEMES["tensorrt"]


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (-1.0, 2.0, 3 / 255, 85),
        (0.0, 2.55, 0.01, 0),
        (-2.55, 0.0, 0.01, 255),
        (0.0, 0.0, 1.0, 0),
        (0.0, 1e-44, float(np.finfo(np.float32).tiny), 0),
    ],
)
def test_cpu_grid(low: float, high: float, scale: float, zero_point: int) -> None:
    grid = activation_grid(low, high, CPU)
    assert grid.scale == np.float32(scale)
    assert grid.zero_point == zero_point


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        (-127.0, 3.0, 1.0),
        (-1.0, 2.0, float(np.float16(2 / 127))),
        (0.0, 1e-4, SMALLEST_HALF_SCALE),
        (0.0, 0.0, 1.0),
    ],
)
def test_tensorrt_grid_is_symmetric_and_an_fp16_number(low: float, high: float, scale: float) -> None:
    grid = activation_grid(low, high, TENSORRT)
    assert grid.scale == np.float32(scale)
    assert np.float32(np.float16(grid.scale)) == grid.scale
    assert grid.zero_point == 0


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_have_a_scale_for_each_output_channel(axis: int) -> None:
    rows = np.array([[1.0, -0.4, 0.25], [0.0, 0.0, 0.0], [-8.0, 3.2, 2.0]], np.float32)
    quantised = quantise_weight(rows if axis == 0 else rows.T.copy(), axis, CPU, pair_safe=False)
    integers = quantised.integers if axis == 0 else quantised.integers.T
    assert integers.dtype == np.int8
    assert integers.tolist() == [[127, -51, 32], [0, 0, 0], [-127, 51, 32]]
    assert quantised.scales.tolist() == pytest.approx([1 / 127, 1.0, 8 / 127], rel=2**-23)


@pytest.mark.parametrize("axis", [0, 1])
def test_pair_safe_scales_are_as_large_as_the_largest_pair_takes(axis: int) -> None:
    """Places 2j and 2j + 1 meet; 1.0 + 0.6 add up to more than 128/127 of 1.0, 1.0 - 0.6 do not."""
    rows = np.array([[0.1, -1, 1, 0.6], [0.6, 1, 1, -0.6], [1, -0.6, -0.1, 1], [0, 1, 1, 0]], np.float32)
    quantised = quantise_weight(rows if axis == 0 else rows.T.copy(), axis, CPU, pair_safe=True)
    integers = quantised.integers if axis == 0 else quantised.integers.T
    assert integers.tolist() == [[8, -80, 80, 48], [48, 80, 80, -48], [127, -76, -13, 127], [0, 127, 127, 0]]
    step = 1.6 / 128
    assert quantised.scales.tolist() == pytest.approx([step, step, 1 / 127, 1 / 127], rel=2**-22)


def test_a_dequantised_weight_is_within_half_a_step() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float32)
    for scheme in (CPU, TENSORRT):
        quantised = quantise_weight(weight, 0, scheme, pair_safe=False)
        steps = quantised.scales.reshape(8, 1, 1, 1)
        error = np.abs(quantised.integers * steps - weight) / steps
        assert 0.4 < error.max() <= 0.5001


@pytest.mark.parametrize("scheme", [CPU, TENSORRT])
def test_scales_are_rounded_up(scheme: Scheme) -> None:
    weight = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    scales = quantise_weight(weight, 0, scheme, pair_safe=False).scales.astype(np.float64)
    exact = np.abs(weight.astype(np.float64)).max(axis=1) / 127
    assert (scales >= exact).all()
    assert (scales / exact - 1).max() < (2**-10 if scheme.half_scales else 2**-23)


def test_a_faint_channel_keeps_a_normal_fp16_scale() -> None:
    weight = np.array([[1e-6, -2e-3], [1.0, 0.5]], np.float32)
    assert quantise_weight(weight, 0, TENSORRT, pair_safe=False).scales[0] == 2.0**-14
    assert quantise_weight(weight, 0, TENSORRT, pair_safe=False).integers[0].tolist() == [0, -33]
    scale = quantise_weight(weight, 0, CPU, pair_safe=False).scales[0]
    assert scale == pytest.approx(2e-3 / 127, rel=2**-23)
