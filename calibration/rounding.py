"""A layer's weights rounded together: what rounding one does to the output, the next ones make good.

Nearest rounding minimises the error of each weight alone. Here the error of the layer's output on real
inputs is minimised, greedily, one input column after the other, each error spread over the columns that
are still free along the inverse second moment of the inputs (Hassibi and Stork, 1992, "Optimal Brain
Surgeon"; Frantar et al., 2022, "GPTQ", sections 3 and 4). The scales stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from resedge.calibration.saturation import LARGEST_SAFE_PAIR, partners
from resedge.calibration.schemes import weight_axis
from resedge.protocols import Float32Array

if TYPE_CHECKING:
    import onnx_ir as ir

_MOST_COLUMNS: Final = 5000  # of one matrix of second moments: 200 MB in float64
_POSITIONS_A_COLUMN: Final = 32  # fewer would fit their own noise
_DAMPING: Final = 0.01  # of the mean variance, as in GPTQ
_BLOCK: Final = 128
_TOP: Final = 127

_Float64 = npt.NDArray[np.float64]


def round_together(
    weight: Float32Array,
    scales: Float32Array,
    activation: Float32Array,
    intended: Float32Array,
    node: ir.Node,
    *,
    pair_safe: bool,
) -> npt.NDArray[np.int8] | None:
    """Return int8 weights for a Conv or Gemm, given the inputs that it will see.

    Args:
        weight: The float weight, (out, in / groups, *kernel) or a matrix.
        scales: (out,) float32.
        activation: The node's first input, (N, C, H, W) or (N, C) float32.
        intended: The same without any quantisation: what the float weight was meant for.
        node: Its attributes say stride, padding, dilation, groups, transposition.
        pair_safe: Keep pairs of weights within 16 bits, see `resedge.calibration.saturation`.

    Returns:
        Integers in the weight's shape; None for a layer with too many inputs to be worth it, and for a
        ConvTranspose, whose input meets the weight in another way.
    """
    if node.op_type == "ConvTranspose":
        return None
    rows = np.moveaxis(weight, weight_axis(node), 0)
    matrix = rows.reshape(len(rows), -1).astype(np.float64) / scales.astype(np.float64)[:, None]
    if matrix.shape[1] > _MOST_COLUMNS:
        return None
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    pairs = partners(rows.shape) if pair_safe else None
    result = np.empty(matrix.shape, np.int8)
    for group, chosen in enumerate(np.split(np.arange(len(rows)), groups)):
        given, meant = (_columns(x, node, rows.shape[1:], group, groups) for x in (activation, intended))
        moments = _damped(given.T @ given)
        result[chosen] = _compensated(_refitted(matrix[chosen], given, meant, moments), moments, pairs)
    return np.ascontiguousarray(np.moveaxis(result.reshape(rows.shape), 0, weight_axis(node)))


def _columns(
    activation: Float32Array, node: ir.Node, shape: tuple[int, ...], group: int, groups: int
) -> Float32Array:
    """Return what meets a group's weights, (positions, columns), less its mean: the bias is fitted later."""
    if node.op_type == "Conv":
        each = activation.shape[1] // groups
        columns = _patches(activation[:, group * each : (group + 1) * each], node, shape)
    else:
        columns = activation
    centred: Float32Array = columns - columns.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centred


def _damped(moments: Float32Array) -> _Float64:
    """Return a matrix of second moments that can be inverted, whatever channels are dead."""
    damped = moments.astype(np.float64)
    mean = float(np.trace(damped)) / len(damped)
    damped[np.diag_indices_from(damped)] += _DAMPING * mean if mean else 1.0
    return damped


def _refitted(matrix: _Float64, given: Float32Array, meant: Float32Array, moments: _Float64) -> _Float64:
    """Return the weights that make of the given inputs what `matrix` makes of the intended ones.

    Ridge regression towards `matrix`. Neighbouring inputs are much alike, their quantisation noise is
    not: the fit averages it away.
    """
    error = ((meant - given).T @ given).astype(np.float64)
    refitted: _Float64 = matrix + matrix @ np.linalg.solve(moments, error.T).T
    return refitted


def _patches(images: Float32Array, node: ir.Node, shape: tuple[int, ...]) -> Float32Array:
    """Return inputs as they meet the kernel at evenly chosen positions, (positions, C * kernel)."""
    kernel = shape[1:]
    strides = node.attributes.get_ints("strides", (1,) * len(kernel))
    dilations = node.attributes.get_ints("dilations", (1,) * len(kernel))
    pads = node.attributes.get_ints("pads", (0,) * (2 * len(kernel)))
    before, after = pads[: len(kernel)], pads[len(kernel) :]
    padded = np.pad(images, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    spans = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    axes = tuple(range(2, 2 + len(kernel)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    every = (slice(None), slice(None), *(slice(None, None, step) for step in strides))
    windows = windows[every + tuple(slice(None, None, step) for step in dilations)]
    positions = np.stack(np.unravel_index(_chosen(windows, shape), _places(windows, len(kernel))))
    image, *place = positions
    # The channel axis lies between two index arrays, so that NumPy puts the positions first.
    index: tuple[Any, ...] = (image, slice(None), *place)
    columns: Float32Array = windows[index].reshape(len(image), -1)
    return columns


def _places(windows: npt.NDArray[Any], dimensions: int) -> tuple[int, ...]:
    return (windows.shape[0], *windows.shape[2 : 2 + dimensions])


def _chosen(windows: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.intp]:
    total = int(np.prod(_places(windows, len(shape) - 1)))
    wanted = min(total, _POSITIONS_A_COLUMN * int(np.prod(shape)))
    return np.linspace(0, total - 1, wanted).astype(np.intp)


def _compensated(
    matrix: _Float64, moments: _Float64, pairs: npt.NDArray[np.intp] | None
) -> npt.NDArray[np.int8]:
    """Round (rows, columns), in units of the scale, column by column, the most active first."""
    order = np.argsort(-np.diagonal(moments), kind="stable")
    spread = np.linalg.cholesky(np.linalg.inv(moments[np.ix_(order, order)])).T
    left = matrix[:, order]
    rounded = np.zeros(matrix.shape)  # in the file's order; a free partner counts as 0
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        errors = np.empty((len(matrix), stop - start))
        for place in range(start, stop):
            low, high = _bounds(rounded, order[place], pairs)
            chosen = np.clip(np.rint(left[:, place]), low, high)
            rounded[:, order[place]] = chosen
            error = (left[:, place] - chosen) / spread[place, place]
            left[:, place:stop] -= error[:, None] * spread[place, place:stop]
            errors[:, place - start] = error
        left[:, stop:] -= errors @ spread[start:stop, stop:]
    return rounded.astype(np.int8)


def _bounds(
    rounded: _Float64, column: int, pairs: npt.NDArray[np.intp] | None
) -> tuple[_Float64 | float, _Float64 | float]:
    """Return what a column's integers may be, given the ones that they meet in a lane."""
    if pairs is None:
        return -_TOP, _TOP
    met = rounded[:, pairs[column]]
    met = np.where(pairs[column] == column, 0.0, met)  # a weight that is alone
    high = LARGEST_SAFE_PAIR - np.maximum(met, 0).max(axis=1)
    low = -LARGEST_SAFE_PAIR - np.minimum(met, 0).min(axis=1)
    return np.maximum(low, -_TOP), np.minimum(high, _TOP)
