"""Networks and images built to break a method of reading ranges, and that the bake-off finds one that holds.

Every network is a nearest-mean classifier behind one Conv, so that FP32 is always right; calibration,
tuning and test images are different draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resedge.artifacts import Artifact
from resedge.calibration.bakeoff import Score, choose, score_logits
from resedge.calibration.emulation import emulated
from resedge.calibration.histograms import collect
from resedge.calibration.placement import place
from resedge.calibration.ranges import METHODS
from resedge.protocols import Float32Array, Int64Array, NoProgress

CLASSES = 10
HOLDS, FAILS = 0.95, 0.75


@dataclass(frozen=True, eq=False)
class Case:
    """How images are drawn, what the Conv does, which methods must fail."""

    size: int
    draw: Callable[[np.random.Generator, Int64Array, int], Float32Array]
    spoil: Callable[[Float32Array], None]
    ignored: int | None  # a channel that the classifier does not look at
    dead: int  # Conv channels that are zero throughout
    failing: frozenset[str]


def _templates(size: int) -> Float32Array:
    return np.random.default_rng(5).standard_normal((CLASSES, 3, size, size)).astype(np.float32)


def _plain(random: np.random.Generator, labels: Int64Array, size: int) -> Float32Array:
    noise = random.standard_normal((len(labels), 3, size, size)) * 0.3
    return (_templates(size)[labels] + noise).astype(np.float32)


def _rare_and_large(random: np.random.Generator, labels: Int64Array, size: int) -> Float32Array:
    """The class is the brightness of one pixel of one channel, a thousand times the others."""
    images = random.standard_normal((len(labels), 3, size, size)) * 0.3
    images[:, 0, size // 2, size // 2] = 1000 * (labels + 1) / CLASSES
    return images.astype(np.float32)


def _heavy_tails(random: np.random.Generator, labels: Int64Array, size: int) -> Float32Array:
    """One channel has heavy tails (Student's t) and says nothing."""
    images = _plain(random, labels, size)
    images[:, 2] = random.standard_t(1.3, images[:, 2].shape)
    return images


def _hot_pixel(images: Float32Array) -> None:
    images[7, 1, 2, 3] = 3000.0


def _leave(_images: Float32Array) -> None:
    """Nothing is wrong with the calibration images."""


MSE = {"mse-cpu", "mse-tensorrt"}
CASES = {
    "one hot pixel": Case(
        8, _plain, _hot_pixel, None, 0, frozenset({"minmax", "percentile-99.999", "entropy", *MSE})
    ),
    "rare and large": Case(
        40, _rare_and_large, _leave, None, 0, frozenset({"percentile-99.9", "percentile-99.99", "entropy"})
    ),
    "heavy tails": Case(
        8, _heavy_tails, _leave, 2, 0, frozenset({"minmax", "percentile-99.999", "entropy", *MSE})
    ),
    "dead channels": Case(8, _plain, _leave, None, 4, frozenset()),
}


def test_no_method_holds_everywhere() -> None:
    assert frozenset().union(*(case.failing for case in CASES.values())) == set(METHODS)


def _labels(count: int) -> Int64Array:
    return np.arange(count, dtype=np.int64) % CLASSES


def _network(case: Case, network: Any, path: Path) -> Artifact:  # noqa: ANN401 - conftest's Network
    """Write Conv (x and -x of each channel, then the dead ones), Relu, Flatten, nearest mean."""
    net = network()
    weight = np.zeros((6 + case.dead, 3, 1, 1), np.float32)
    for channel in range(3):
        weight[2 * channel : 2 * channel + 2, channel, 0, 0] = 1, -1
    bias = np.zeros(6 + case.dead, np.float32)
    inputs = ["input", net.constant("conv.weight", weight), net.constant("conv.bias", bias)]
    features = net.relu(net.op("Conv", inputs, "conv"), "relu")
    flat = net.op("Flatten", [features], "flatten")
    drawn = case.draw(np.random.default_rng(9), _labels(500), case.size)
    values = np.maximum(np.einsum("oc,nchw->nohw", weight[:, :, 0, 0], drawn), 0)
    if case.ignored is not None:
        values[:, 2 * case.ignored : 2 * case.ignored + 2] = 0
    means = np.stack([values[_labels(500) == label].mean(axis=0).ravel() for label in range(CLASSES)])
    offsets = -np.square(means).sum(axis=1) / 2
    head = [flat, net.constant("fc.weight", means), net.constant("fc.bias", offsets.astype(np.float32))]
    artifact: Artifact = net.save(path, net.op("Gemm", head, "fc", transB=1), case.size)
    return artifact


@pytest.mark.parametrize("name", CASES)
def test_each_method_fails_where_it_should_and_the_bake_off_finds_one_that_holds(
    name: str,
    tmp_path: Path,
    network: Any,  # noqa: ANN401
) -> None:
    case = CASES[name]
    model = _network(case, network, tmp_path / "fp32.onnx")
    calibration = case.draw(np.random.default_rng(1), _labels(300), case.size)
    case.spoil(calibration)
    tuning = case.draw(np.random.default_rng(2), _labels(300), case.size)
    test = case.draw(np.random.default_rng(3), _labels(600), case.size)
    histograms = collect(model, [calibration], NoProgress(), 2)
    candidates = {
        method: read(histograms, graph_sha256=model.sha256, dataset_sha256="0" * 64, images=300)
        for method, read in METHODS.items()
    }
    plain = emulated(model, 1)

    def score(method: str, images: Float32Array) -> Score:
        graph = place(model, candidates[method], "cpu", tmp_path / "int8.onnx")
        return score_logits(plain(images), emulated(graph, 1)(images))

    scores = {method: score(method, test).agreement for method in candidates}
    assert {method for method, agreement in scores.items() if agreement < FAILS} == case.failing, scores
    winner = choose({method: score(method, tuning) for method in candidates}).winner
    assert scores[winner] >= HOLDS, (winner, scores)
    assert winner not in case.failing
