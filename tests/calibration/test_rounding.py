from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from resedge.calibration.graph import run_node
from resedge.calibration.grids import quantise_weight
from resedge.calibration.rounding import round_together
from resedge.calibration.saturation import LARGEST_SAFE_PAIR, largest_pairs, partners
from resedge.calibration.schemes import SCHEMES
from resedge.protocols import Float32Array

# Weight, activation, attributes.
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((8, 6, 3, 3), (16, 6, 9, 9), {"pads": [1, 1, 1, 1]}),
    "strided": ((8, 6, 3, 3), (16, 6, 9, 9), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "dilated": ((8, 6, 3, 3), (16, 6, 9, 9), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "lopsided": ((8, 6, 1, 3), (16, 6, 9, 9), {"pads": [0, 2, 0, 0], "strides": [1, 2]}),
    "1x1": ((8, 6, 1, 1), (16, 6, 9, 9), {}),
    "grouped": ((8, 3, 3, 3), (16, 6, 9, 9), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((6, 1, 3, 3), (16, 6, 9, 9), {"group": 6}),
    "gemm": ((10, 40), (200, 40), {"transB": 1}),
    "gemm, not transposed": ((40, 10), (200, 40), {}),
}


def _layer(name: str) -> tuple[Float32Array, Any, ir.Node, int]:
    shape, inputs, attributes = LAYERS[name]
    random = np.random.default_rng(1)
    weight = random.standard_normal(shape).astype(np.float32)
    # Neighbours that are alike, as pixels are: only then is there something to make good.
    activation = random.standard_normal(inputs)
    for axis in range(1, len(inputs)):
        activation = np.cumsum(activation, axis=axis)
    activation = (activation / activation.std()).astype(np.float32)
    values = [ir.Value(name=text) for text in ("x", "w")]
    node = ir.node("Gemm" if len(shape) == 2 else "Conv", values, attributes)
    return weight, activation, node, 1 if name == "gemm, not transposed" else 0


@pytest.mark.parametrize("pair_safe", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_output_is_nearer_than_with_nearest_rounding(name: str, pair_safe: bool) -> None:
    weight, activation, node, axis = _layer(name)
    nearest = quantise_weight(weight, axis, SCHEMES["cpu"], pair_safe=pair_safe)
    integers = round_together(weight, nearest.scales, activation, activation, node, pair_safe=pair_safe)
    assert integers is not None
    assert integers.shape == weight.shape
    assert np.abs(integers.astype(int)).max() <= 127

    along = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]

    def spread(numbers: Any) -> float:  # noqa: ANN401
        """Return the error's variance about each channel's mean, which the bias takes."""
        restored = numbers.astype(np.float32) * nearest.scales.reshape(along)
        error = run_node(node, [activation, restored], 1) - run_node(node, [activation, weight], 1)
        others = tuple(dimension for dimension in range(error.ndim) if dimension != 1)
        return float(np.square(error - error.mean(axis=others, keepdims=True)).mean())

    assert spread(integers) < 0.8 * spread(nearest.integers)


@pytest.mark.parametrize("name", LAYERS)
def test_noise_of_the_inputs_is_averaged_away(name: str) -> None:
    weight, intended, node, axis = _layer(name)
    noise = np.random.default_rng(2).standard_normal(intended.shape) * 0.3
    given = (intended + noise).astype(np.float32)
    scales = quantise_weight(weight, axis, SCHEMES["cpu"], pair_safe=False).scales
    along = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
    wanted = run_node(node, [intended, weight], 1)

    def spread(meant: Float32Array) -> float:
        integers = round_together(weight, scales, given, meant, node, pair_safe=False)
        assert integers is not None
        error = run_node(node, [given, integers.astype(np.float32) * scales.reshape(along)], 1) - wanted
        others = tuple(dimension for dimension in range(error.ndim) if dimension != 1)
        return float(np.square(error - error.mean(axis=others, keepdims=True)).mean())

    assert spread(intended) < 0.9 * spread(given)


@pytest.mark.parametrize("name", LAYERS)
def test_no_pair_leaves_16_bits(name: str) -> None:
    weight, activation, node, axis = _layer(name)
    scales = quantise_weight(weight, axis, SCHEMES["cpu"], pair_safe=True).scales
    integers = round_together(weight, scales, activation, activation, node, pair_safe=True)
    assert integers is not None
    rows = np.moveaxis(integers, axis, 0).astype(np.float64)
    assert largest_pairs(rows).max() <= LARGEST_SAFE_PAIR


def test_equal_inputs_give_nearest_rounding() -> None:
    """Inputs that say nothing of one another leave nothing to make good."""
    weight, _, node, axis = _layer("gemm")
    scales = quantise_weight(weight, axis, SCHEMES["cpu"], pair_safe=False).scales
    unrelated = np.concatenate([np.eye(40), -np.eye(40)]).astype(np.float32)
    integers = round_together(weight, scales, unrelated, unrelated, node, pair_safe=False)
    assert np.array_equal(
        np.asarray(integers), quantise_weight(weight, axis, SCHEMES["cpu"], pair_safe=False).integers
    )


def test_a_layer_of_too_many_inputs_is_left() -> None:
    weight = np.ones((2, 6000), np.float32)
    node = ir.node("Gemm", [ir.Value(name="x"), ir.Value(name="w")], {"transB": 1})
    inputs = np.ones((3, 6000), np.float32)
    assert round_together(weight, np.ones(2, np.float32), inputs, inputs, node, pair_safe=False) is None


@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (4, 5, 3, 3), (4, 1, 3, 3), (4, 7), (4, 8)])
def test_partners_are_those_that_the_bound_adds_up(shape: tuple[int, ...]) -> None:
    weight = np.zeros(shape)
    found = partners(shape)
    flat = weight.reshape(shape[0], -1)
    for place in range(flat.shape[1]):
        for other in range(flat.shape[1]):
            flat[:] = 0
            flat[:, place], flat[:, other] = 3, 5
            expected = 8 if other in found[place] and other != place else 5
            assert largest_pairs(weight).max() == expected, (place, other)
