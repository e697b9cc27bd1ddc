"""The rule for pairs of weights, and that runtimes compute pair-safe graphs exactly.

The latter can fail on a CPU without VNNI alone, where a wrong rule gives sums that are off by thousands.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from resedge import machine
from resedge.artifacts import Artifact, Ranges, sha256_bytes
from resedge.calibration.grids import quantise_weight
from resedge.calibration.placement import place
from resedge.calibration.saturation import LARGEST_SAFE_PAIR, largest_pairs
from resedge.calibration.schemes import SCHEMES
from resedge.protocols import Float32Array

# Input channels of a group, kernel (0: a Gemm), groups ("each": depthwise).
LAYERS: dict[str, tuple[int, int, int | Literal["each"]]] = {
    "3x3": (64, 3, 1),
    "1x1": (64, 1, 1),
    "first 3x3": (3, 3, 1),
    "first 7x7": (3, 7, 1),
    "first 1x1": (3, 1, 1),
    "odd 3x3": (5, 3, 1),
    "odd 1x1": (17, 1, 1),
    "grouped": (4, 3, 4),
    "grouped odd": (3, 3, 4),
    "grouped, one input": (1, 3, 8),
    "depthwise 3x3": (1, 3, "each"),
    "depthwise 5x5": (1, 5, "each"),
    "gemm": (1024, 0, 1),
    "gemm odd": (77, 0, 1),
}


@pytest.mark.parametrize(
    ("weight", "largest"),
    [
        ([[1, 2, 3, 4]], 7),  # 3 + 4; 2 and 3 do not meet
        ([[-5, -2, 3, 4]], 7),
        ([[5, -4, -3, 4]], 5),  # signs differ: each alone
        ([[1, 2, 9]], 9),  # the last of an odd number is alone
        ([[[[1, 8]], [[1, 0]]]], 8),  # two channels, two positions: channels meet
        ([[[[1, 8, 7]]]], 9),  # one channel: positions meet
        ([[[[1, 4]], [[1, 0]], [[4, 1]]]], 8),  # three: 4 and 4 meet across positions
        ([[[[0, 5]], [[0, 6]], [[1, 0]]]], 11),  # and 5 and 6 at one position
    ],
)
def test_largest_pairs(weight: list[Any], largest: int) -> None:
    assert largest_pairs(np.array(weight, np.float64)).tolist() == [largest]
    assert largest_pairs(-np.array(weight, np.float64)).tolist() == [largest]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(2000, 16), (500, 4, 3, 3), (500, 3, 3, 3), (3000, 5), (500, 1, 5, 5)])
def test_rounding_keeps_every_pair_safe(shape: tuple[int, ...], scheme: str) -> None:
    """Half of the weights are multiples of a power of two, so that ties are met as well."""
    random = np.random.default_rng(7)
    weight = random.standard_normal(shape)
    weight[::2] = np.rint(weight[::2] * 50) / 64
    quantised = quantise_weight(weight.astype(np.float32), 0, SCHEMES[scheme], pair_safe=True)
    integers = quantised.integers.astype(np.float64)
    assert largest_pairs(integers).max() == LARGEST_SAFE_PAIR
    largest = np.abs(integers).reshape(len(weight), -1).max(axis=1)
    # No scale is larger than it must be: a pair, or one weight, reaches the end.
    assert ((largest_pairs(integers) >= 127) | (largest >= 126)).all()


def test_ties_do_not_break_a_pair() -> None:
    """Sums of exactly 128 steps, each weight half-way between two integers."""
    left = np.arange(0.5, 128, 1)
    weight = np.stack([left, 128 - left], axis=1)
    quantised = quantise_weight(weight.astype(np.float32), 0, SCHEMES["cpu"], pair_safe=True)
    pairs = quantised.integers.astype(int).sum(axis=1)
    assert set(quantised.scales[1:-1].tolist()) == {1.0}
    assert pairs.max() == 128


@pytest.mark.parametrize("dense", [False, True], ids=["one pair each", "dense"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_compute_pair_safe_layers_exactly(
    runtime: str, layer: str, dense: bool, tmp_path: Path
) -> None:
    assert _largest_error(runtime, layer, dense, tmp_path, pair_safe=True) <= 1


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_unlimited_weights_saturate_where_the_machine_is_said_to(runtime: str, tmp_path: Path) -> None:
    saturates = _largest_error(runtime, "1x1", False, tmp_path, pair_safe=False) > 50
    assert saturates == machine.describe().saturates_pairs


def _largest_error(runtime: str, layer: str, dense: bool, folder: Path, *, pair_safe: bool) -> float:
    """Run a layer on inputs that are all 255, the worst; return the error in steps of its output.

    A sum may be requantised to the next integer; a pair that saturates is off by 64.
    """
    channels, kernel, groups = LAYERS[layer]
    shape = (channels, kernel, kernel) if kernel else (channels,)
    weight = _dense(shape) if dense else _one_pair_each(shape)
    if groups == "each":
        groups = len(weight)
    else:
        weight = np.concatenate([weight] * groups)
    plain = _graph(weight, groups, folder / "plain.onnx")
    sums = weight.reshape(len(weight), -1).sum(axis=1)
    table = {"input": (0.0, 1.0), "layer.out": (float(sums.min()), float(sums.max()))}
    ranges = Ranges(table, "by hand", plain.sha256, "0" * 64, 1)
    path = place(plain, ranges, "cpu", folder / "made.onnx", pair_safe=pair_safe).path
    images = np.ones((7, *_input_shape(weight, groups)), np.float32)
    found = np.concatenate([RUNTIMES[runtime](path, batch) for batch in (images[:1], images)])
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    integers = stored["weight.quantized"].reshape(len(weight), -1).astype(np.int64)
    exact = integers.sum(axis=1) * stored["weight.scale"].astype(np.float64)
    step = float(sums.max() - sums.min()) / 255
    return float(np.abs(found.reshape(len(found), len(weight)) - exact).max() / step)


def _one_pair_each(shape: tuple[int, ...]) -> Float32Array:
    """Give every pair of neighbours, in any order of the axes, an output channel; all else is zero."""
    places = np.arange(np.prod(shape)).reshape(shape)
    orders = [places.transpose(axes).ravel() for axes in itertools.permutations(range(len(shape)))]
    pairs = sorted({tuple(sorted(pair)) for order in orders for pair in itertools.pairwise(order)})
    weight = np.zeros((len(pairs), places.size), np.float32)
    for channel, pair in enumerate(pairs):
        weight[channel, list(pair)] = 1 - 2 * (channel % 2)
    return weight.reshape(-1, *shape)


def _dense(shape: tuple[int, ...]) -> Float32Array:
    """Large weights throughout, of one sign in an output channel."""
    signs = np.where(np.arange(48) % 2, -1, 1).reshape(-1, *(1 for _ in shape))
    return (signs * np.random.default_rng(3).uniform(0.6, 1, (48, *shape))).astype(np.float32)


def _input_shape(weight: Float32Array, groups: int) -> tuple[int, ...]:
    if weight.ndim == 2:
        return (weight.shape[1],)
    size = weight.shape[2] + 3
    return (groups * weight.shape[1], size, size)


def _graph(weight: Float32Array, groups: int, path: Path) -> Artifact:
    """A Conv, and a pooling by which its output is quantised; or a Gemm."""
    if weight.ndim == 2:
        nodes = [helper.make_node("Gemm", ["input", "weight"], ["logits"], name="layer", transB=1)]
        made = [len(weight)]
    else:
        conv = helper.make_node("Conv", ["input", "weight"], ["layer.out"], name="layer", group=groups)
        nodes = [conv, helper.make_node("GlobalAveragePool", ["layer.out"], ["logits"], name="pool")]
        made = [len(weight), 1, 1]
    into: list[str | int | None] = ["batch", *_input_shape(weight, groups)]
    out: list[str | int | None] = ["batch", *made]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, into)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    data = model.SerializeToString()
    path.write_bytes(data)
    return Artifact(path, sha256_bytes(data), "onnx/fp32")


def _run_onnxruntime(path: Path, images: Float32Array) -> Float32Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    logits: Float32Array = onnxruntime.InferenceSession(path, options).run(None, {"input": images})[0]
    return logits


def _run_openvino(path: Path, images: Float32Array) -> Float32Array:
    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    logits: Float32Array = compiled(images)[0].copy()
    return logits


RUNTIMES = {"onnxruntime": _run_onnxruntime, "openvino": _run_openvino}
