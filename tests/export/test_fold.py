from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from resedge.artifacts import decode, encode
from resedge.errors import InputRefused
from resedge.export import fold as folding
from resedge.export.batchnorm import reestimate, split
from resedge.export.fold import FoldReport, find_pairs, fold, fold_parameters, rewrite
from resedge.export.proof import Parameters
from resedge.export.trace import Traced, trace
from resedge.protocols import Float32Array

Randomise = Callable[[nn.Module], nn.Module]
SHAPE = (3, 12, 12)


def features(x: Tensor) -> Tensor:
    return x.mean((2, 3))


class Basic(nn.Module):
    """A stem and a ResNet-18-like basic block with a strided projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.downsample = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        main = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        out: Tensor = self.fc(features((main + self.downsample(x)).relu()))
        return out


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.bn1(x).relu())
        return features(self.conv2(self.bn2(x.relu())))


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return features(self.bn(x) + x)


class Chain(nn.Module):
    """conv - bn - relu over any convolution and BatchNorm."""

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = conv, bn

    def forward(self, x: Tensor) -> Tensor:
        return features(self.bn(self.conv(x)).relu())


class ConvTwice(nn.Module):
    """One convolution, once with a BatchNorm behind it and once without (pytorch#197539)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return features(self.bn(self.conv(x)) + self.conv(x.relu()))


class NormTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return features(self.bn(self.conv1(x)) + self.bn(self.conv2(x)))


class Computed(nn.Module):
    """A convolution whose weight is computed in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return features(self.bn(functional.conv2d(x, self.conv.weight * 2.0)))


class Shifted(nn.Module):
    """Writes over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x -= 2.0
        return features(self.bn(self.conv(x)).relu())


@pytest.fixture
def sample() -> Float32Array:
    return np.random.default_rng(11).standard_normal((5, *SHAPE)).astype(np.float32)


def assert_folds_exactly(module: nn.Module, traced: Traced, images: Float32Array) -> None:
    """Fold in float64 and compare with the module itself in float64, apart from the code's own proof."""
    wide = copy.deepcopy(traced.graph).double()
    pairs, _ = find_pairs(wide)
    with torch.no_grad():
        folded = rewrite(wide, {pair: fold_parameters(wide, pair) for pair in pairs})
        x = torch.tensor(images, dtype=torch.float64)
        expected = copy.deepcopy(module).double()(x)
        assert (folded(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


def norms_in(graph: fx.GraphModule) -> int:
    return sum("batch_norm" in str(node.target) for node in graph.graph.nodes)


def conv(groups: int = 1, bias: bool = True, cin: int = 3, **options: Any) -> nn.Conv2d:  # noqa: ANN401
    return nn.Conv2d(cin, 6, 3, groups=groups, bias=bias, **options)


FOLDABLE: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, str]]]] = {
    "basic block": (
        Basic,
        [
            ("stem", "bn"),
            ("conv1", "bn1"),
            ("conv2", "bn2"),
            ("downsample.0", "downsample.1"),
        ],
    ),
    "no affine": (lambda: Chain(conv(), nn.BatchNorm2d(6, affine=False)), [("conv", "bn")]),
    "no bias": (lambda: Chain(conv(bias=False), nn.BatchNorm2d(6)), [("conv", "bn")]),
    "grouped": (lambda: Chain(conv(groups=3), nn.BatchNorm2d(6)), [("conv", "bn")]),
    "padding by name": (lambda: Chain(conv(padding="same"), nn.BatchNorm2d(6)), [("conv", "bn")]),
    "dilated": (lambda: Chain(conv(dilation=2, stride=2), nn.BatchNorm2d(6)), [("conv", "bn")]),
    "another eps": (lambda: Chain(conv(), nn.BatchNorm2d(6, eps=0.1)), [("conv", "bn")]),
    "depthwise": (lambda: Chain(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), [("conv", "bn")]),
    "transposed": (lambda: Chain(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6)), [("conv", "bn")]),
    "transposed and grouped": (
        lambda: Chain(nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3, bias=False), nn.BatchNorm2d(6)),
        [("conv", "bn")],
    ),
    "conv twice": (ConvTwice, [("conv", "bn")]),
    "norm twice": (NormTwice, [("conv1", "bn"), ("conv2", "bn@1")]),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_pair_folds_and_the_graph_stays_equal(
    name: str, randomise: Randomise, sample: Float32Array
) -> None:
    make, sites = FOLDABLE[name]
    module = randomise(make())
    traced = trace(module, SHAPE)
    folded = fold(traced, sample)
    assert [(site.conv, site.batchnorm) for site in folded.report.folded] == sites
    assert folded.report.refused == ()
    assert norms_in(folded.graph) == 0
    assert norms_in(traced.graph) == len(sites)
    assert folded.report.residual <= 1e-9
    assert all(0 < site.residual_float32 < 1e-5 for site in folded.report.folded)
    assert_folds_exactly(module, traced, sample)
    with torch.no_grad():
        x = torch.tensor(sample)
        torch.testing.assert_close(folded.graph(x), module(x), rtol=1e-4, atol=1e-4)


def test_a_graph_that_writes_over_its_input_is_proved_on_the_images_as_they_are(
    randomise: Randomise, sample: Float32Array
) -> None:
    folded = fold(trace(randomise(Shifted()), SHAPE), sample)
    assert len(folded.report.folded) == 1
    assert folded.report.residual <= 1e-9


@pytest.mark.parametrize("repaired", [False, True])
def test_the_notebook_folds_at_all_nine_sites(
    repaired: bool, notebook: nn.Module, images: Float32Array
) -> None:
    module, norm = notebook, ("layer.{}.bn", "layer.{}.bn@1", "layer.{}.bn@2")
    if repaired:
        module = split(notebook, {f"layer.{block}.bn": 3 for block in range(3)})
        reestimate(module, [images])
        norm = tuple("layer.{}.bn.sites." + str(site) for site in range(3))  # type: ignore[assignment]
    traced = trace(module, (3, 28, 28))
    report = fold(traced, images).report
    assert [(site.conv, site.batchnorm) for site in report.folded] == [
        (f"layer.{block}.conv{site + 1}", norm[site].format(block)) for block in range(3) for site in range(3)
    ]
    assert report.refused == ()
    assert report.images == 4
    assert_folds_exactly(module, traced, images)


def test_a_variance_near_zero_folds(randomise: Randomise, sample: Float32Array) -> None:
    module = randomise(Chain(conv(), nn.BatchNorm2d(6)))
    module.get_buffer("bn.running_var").copy_(torch.tensor([0.0, 1e-30, 1e-12, 1e-8, 1e-5, 1.0]))
    traced = trace(module, SHAPE)
    assert len(fold(traced, sample).report.folded) == 1
    assert_folds_exactly(module, traced, sample)


def test_folding_by_hand_on_one_channel() -> None:
    module = Chain(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    values = {
        "conv.weight": 2.0,
        "conv.bias": 1.0,
        "bn.weight": 3.0,
        "bn.bias": 5.0,
        "bn.running_mean": 7.0,
        "bn.running_var": 4.0,
    }
    for key, value in values.items():
        module.state_dict()[key].fill_(value)
    graph = trace(module, (1, 4, 4)).graph.double()
    (pair,), _ = find_pairs(graph)
    with torch.no_grad():
        parameters = fold_parameters(graph, pair)
    assert parameters.weight.item() == 3.0  # 2 * 3 / sqrt(4)
    assert parameters.bias.item() == -4.0  # (1 - 7) * 3 / sqrt(4) + 5


REFUSED: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, str]]]] = {
    "pre-activation": (PreActivation, [("bn1", "no conv"), ("bn2", "no conv")]),
    "two readers": (TwoReaders, [("bn", "two readers")]),
    "batch statistics": (
        lambda: Chain(conv(), nn.BatchNorm2d(6, track_running_stats=False)),
        [("bn", "batch statistics")],
    ),
    "computed": (Computed, [("bn", "computed")]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_qualify_stays_with_the_reason(
    name: str, randomise: Randomise, sample: Float32Array
) -> None:
    make, sites = REFUSED[name]
    module = randomise(make())
    folded = fold(trace(module, SHAPE), sample)
    assert [(site.batchnorm, site.reason) for site in folded.report.refused] == [
        (path, folding.REASONS[reason]) for path, reason in sites
    ]
    assert folded.report.folded == ()
    assert norms_in(folded.graph) == len(sites)
    with torch.no_grad():
        torch.testing.assert_close(folded.graph(torch.tensor(sample)), module(torch.tensor(sample)))


def test_statistics_that_give_no_factor_are_refused(randomise: Randomise, sample: Float32Array) -> None:
    module = randomise(Chain(conv(), nn.BatchNorm2d(6, eps=0.0)))
    module.get_buffer("bn.running_var")[2] = 0.0
    module.get_parameter("bn.weight").data[2] = 0.0
    with pytest.raises(InputRefused, match="NaN or Inf"):  # 0 / 0 in the model itself
        fold(trace(module, SHAPE), sample)


def test_weights_beyond_float32_are_refused(randomise: Randomise, sample: Float32Array) -> None:
    module = randomise(Chain(conv(), nn.BatchNorm2d(6)))
    module.get_parameter("conv.weight").data[0] = 1e38
    module.get_buffer("bn.running_var")[0] = 0.0
    module.get_parameter("bn.weight").data[0] = 1.0
    report = fold(trace(module, SHAPE), sample).report
    assert [site.reason for site in report.refused] == [folding.REASONS["overflow"]]
    encode(report)  # nothing in it is infinite


@pytest.mark.parametrize("fault", ["eps forgotten", "one bias off by 1e-6"])
def test_a_wrong_fold_is_caught_by_the_proof(
    fault: str, randomise: Randomise, sample: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: fx.GraphModule, pair: Any) -> Parameters:  # noqa: ANN401
        right = fold_parameters(graph, pair)
        if fault == "eps forgotten":
            variance = graph.get_buffer("bn.running_var")
            lost = ((variance + 1e-5) / variance).sqrt()
            return dataclasses.replace(right, weight=right.weight * lost.reshape(-1, 1, 1, 1))
        bias = right.bias.clone()
        bias[-1] += 1e-6
        return dataclasses.replace(right, bias=bias)

    module = randomise(Chain(conv(), nn.BatchNorm2d(6)))
    traced = trace(module, SHAPE)
    monkeypatch.setattr(folding, "fold_parameters", wrong)
    folded = fold(traced, sample)
    assert folded.report.folded == ()
    (refused,) = folded.report.refused
    assert refused.reason.startswith("the folded convolution differs from the pair by ")
    assert norms_in(folded.graph) == 1
    with torch.no_grad():
        assert torch.equal(folded.graph(torch.tensor(sample)), traced.graph(torch.tensor(sample)))


def test_a_rewrite_that_writes_something_else_is_caught_on_the_whole_graph(
    randomise: Randomise, sample: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(graph: fx.GraphModule, folds: dict[Any, Parameters]) -> fx.GraphModule:
        return rewrite(graph, {pair: Parameters(p.weight, p.bias + 1e-6) for pair, p in folds.items()})

    traced = trace(randomise(NormTwice()), SHAPE)
    monkeypatch.setattr(folding, "rewrite", shifted)
    with pytest.raises(InputRefused, match="differs from the unfolded one"):
        fold(traced, sample)


def test_nan_in_the_images_is_refused(randomise: Randomise, sample: Float32Array) -> None:
    sample[0, 0, 0, 0] = np.nan
    with pytest.raises(InputRefused, match="logits hold NaN or Inf"):
        fold(trace(randomise(TwoReaders()), SHAPE), sample)


def test_the_report_survives_json(randomise: Randomise, sample: Float32Array) -> None:
    report = fold(trace(randomise(TwoReaders()), SHAPE), sample).report
    assert decode(FoldReport, encode(report), "report") == report
