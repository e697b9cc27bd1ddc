"""What ResNets are made of, each part in a small network: folded or refused, and equal to eager's outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from resedge.export import fold as folding
from resedge.export.fold import Folded, fold
from resedge.export.trace import trace

Randomise = Callable[[nn.Module], nn.Module]
Sites = list[tuple[str, str]]


def conv_norm(cin: int, cout: int, kernel: int = 3, stride: int = 1, **options: Any) -> nn.Sequential:  # noqa: ANN401
    conv = nn.Conv2d(
        cin, cout, kernel, stride, kernel // 2 * options.get("dilation", 1), bias=False, **options
    )
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class Bottleneck(nn.Module):
    def __init__(self, shortcut: nn.Module, stride: int = 2, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.reduce, self.middle = conv_norm(8, 4, 1), conv_norm(4, 4, 3, stride, **options)
        self.expand, self.shortcut = conv_norm(4, 16, 1), shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.reduce(x))
        out = self.expand(self.relu(self.middle(out)))
        out += self.shortcut(x)
        return self.relu(out)  # type: ignore[no-any-return]


class PreActivated(nn.Module):
    """BatchNorm and ReLU before each convolution (He et al., arXiv:1603.05027)."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x).relu())
        result: Tensor = x + self.conv2(self.bn2(out).relu())
        return result


class Squeezed(nn.Module):
    """Squeeze-and-excitation (Hu et al., arXiv:1709.01507) behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.main = conv_norm(8, 8)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(x)
        gate: Tensor = self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x * gate


class Blurred(nn.Module):
    """Anti-aliased downsampling by a fixed filter (Zhang, arXiv:1904.11486)."""

    def __init__(self) -> None:
        super().__init__()
        self.main = conv_norm(8, 8)
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", torch.outer(row, row).expand(8, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(self.main(x).relu(), (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(x, self.get_buffer("filter"), stride=2, groups=8)


class Frozen(nn.Module):
    """BatchNorm as arithmetic on buffers, as detection frameworks freeze it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        for name, value in (("weight", 0.7), ("bias", 0.1), ("mean", -0.2), ("var", 1.6)):
            self.register_buffer(name, torch.full((8,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.get_buffer("weight") * (self.get_buffer("var") + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        shift = (
            self.get_buffer("bias").reshape(1, -1, 1, 1)
            - self.get_buffer("mean").reshape(1, -1, 1, 1) * scale
        )
        out: Tensor = self.conv(x) * scale + shift
        return out.relu_()


class Tied(nn.Module):
    """Two convolutions with one weight, each with a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm(8, 8), conv_norm(8, 8)
        self.second[0].weight = self.first[0].weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


class Net(nn.Module):
    """A stem, one part, and a classifier; `channels` in, `classes` out."""

    def __init__(
        self, part: nn.Module, channels: int = 3, classes: int = 5, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.stem, self.part = conv_norm(channels, 8), part
        self.head = head or nn.Sequential(nn.Dropout(0.5), nn.LazyLinear(classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(functional.relu(self.stem(x), inplace=True))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


STEM = ("stem.0", "stem.1")


def block(*parts: str) -> Sites:
    return [STEM, *((f"part.{name}.0", f"part.{name}.1") for name in parts)]


BOTTLENECK = block("reduce", "middle", "expand", "shortcut")
AVERAGED = [*BOTTLENECK[:-1], ("part.shortcut.1", "part.shortcut.2")]

# A network, the pairs that fold, and the BatchNorms that stay with the reason.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Sites, Sites]] = {
    "bottleneck": (lambda: Net(Bottleneck(conv_norm(8, 16, 1, 2))), BOTTLENECK, []),
    "grouped bottleneck": (lambda: Net(Bottleneck(conv_norm(8, 16, 1, 2), groups=2)), BOTTLENECK, []),
    "depthwise bottleneck": (lambda: Net(Bottleneck(conv_norm(8, 16, 1, 2), groups=4)), BOTTLENECK, []),
    "dilated bottleneck": (lambda: Net(Bottleneck(conv_norm(8, 16, 1, 2), dilation=2)), BOTTLENECK, []),
    "ResNet-D shortcut": (
        lambda: Net(Bottleneck(nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), *conv_norm(8, 16, 1)))),
        AVERAGED,
        [],
    ),
    "pre-activation": (
        lambda: Net(PreActivated()),
        [STEM, ("part.conv1", "part.bn2")],
        [("part.bn1", "no conv")],
    ),
    "squeeze-and-excitation": (lambda: Net(Squeezed()), block("main"), []),
    "blur-pool": (lambda: Net(Blurred()), block("main"), []),
    "FrozenBatchNorm": (lambda: Net(Frozen()), [STEM], [("part", "arithmetic")]),
    "GroupNorm": (lambda: Net(nn.Sequential(nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU())), [STEM], []),
    "no BatchNorm": (lambda: Net(nn.Conv2d(8, 8, 3)), [STEM], []),
    "wide": (lambda: Net(conv_norm(8, 96)), [STEM, ("part.0", "part.1")], []),
    "tied weights": (lambda: Net(Tied()), block("first", "second"), []),
    "transposed": (
        lambda: Net(nn.Sequential(nn.ConvTranspose2d(8, 6, 3, 2, groups=2), nn.BatchNorm2d(6))),
        [STEM, ("part.0", "part.1")],
        [],
    ),
    "BatchNorm1d behind Linear": (
        lambda: Net(
            nn.Identity(),
            head=nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5, bias=False)),
        ),
        [STEM, ("head.0", "head.1")],
        [],
    ),
    "BatchNorm1d behind nothing": (
        lambda: Net(nn.Identity(), head=nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 5))),
        [STEM],
        [("head.0", "no conv")],
    ),
    "two classes": (lambda: Net(nn.Identity(), classes=2), [STEM], []),
    "a thousand classes": (lambda: Net(nn.Identity(), classes=1000), [STEM], []),
    "one channel": (lambda: Net(nn.Identity(), channels=1), [STEM], []),
    "four channels": (lambda: Net(nn.Identity(), channels=4), [STEM], []),
}


class LinearOverPlaces(nn.Module):
    """A linear layer over the last axis, and a BatchNorm over the second: not the layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(12, 7), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.linear(x.mean(2)))
        return out.mean(1)


def channels_of(module: nn.Module) -> int:
    return next(part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))


def ready(
    make: Callable[[], nn.Module], randomise: Randomise, size: tuple[int, int]
) -> tuple[nn.Module, Any]:
    """The network with seeded weights, its lazy layer made, and images for it."""
    module = make().eval()
    images = np.random.default_rng(17).standard_normal((4, channels_of(module), *size)).astype(np.float32)
    module(torch.tensor(images))
    return randomise(module), images


def assert_equal_to_eager(folded: Folded, module: nn.Module, images: Any) -> None:  # noqa: ANN401
    """Apart from the proof of the code itself: the float32 graph against the module in float64."""
    wide = torch.tensor(images, dtype=torch.float64)
    with torch.no_grad():
        expected = copy.deepcopy(module).eval().double()(wide)
        largest = expected.abs().max()
        narrow = folded.graph(torch.tensor(images)).double()
        assert (narrow - expected).abs().max() <= 2e-5 * largest
    assert folded.report.residual <= 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_folds_where_it_can_and_gives_what_eager_gives(name: str, randomise: Randomise) -> None:
    make, sites, stays = NETWORKS[name]
    module, images = ready(make, randomise, (12, 12))
    folded = fold(trace(module, images.shape[1:]), images)
    assert [(site.conv, site.batchnorm) for site in folded.report.folded] == sites
    assert [(site.batchnorm, site.reason) for site in folded.report.refused] == [
        (path, folding.REASONS[reason]) for path, reason in stays
    ]
    assert_equal_to_eager(folded, module, images)
    assert_folds_exactly(module, images)


def assert_folds_exactly(module: nn.Module, images: Any) -> None:  # noqa: ANN401
    wide = copy.deepcopy(trace(module, images.shape[1:]).graph).double()
    pairs, _ = folding.find_pairs(wide)
    with torch.no_grad():
        graph = folding.rewrite(wide, {pair: folding.fold_parameters(wide, pair) for pair in pairs})
        x = torch.tensor(images, dtype=torch.float64)
        expected = copy.deepcopy(module).double()(x.clone())
        assert (graph(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("name", ["bottleneck", "ResNet-D shortcut", "blur-pool"])
@pytest.mark.parametrize("size", [(9, 15), (16, 10)])
def test_images_need_not_be_square(name: str, size: tuple[int, int], randomise: Randomise) -> None:
    make, sites, _ = NETWORKS[name]
    module, images = ready(make, randomise, size)
    folded = fold(trace(module, images.shape[1:]), images)
    assert len(folded.report.folded) == len(sites)
    assert_equal_to_eager(folded, module, images)


def test_a_model_left_in_training_mode_is_folded_as_it_evaluates(randomise: Randomise) -> None:
    make, sites, _ = NETWORKS["bottleneck"]
    module, images = ready(make, randomise, (12, 12))
    module.train()
    folded = fold(trace(module, images.shape[1:]), images)
    assert module.training
    assert len(folded.report.folded) == len(sites)
    assert_equal_to_eager(folded, module, images)


def test_channels_last_changes_nothing(randomise: Randomise) -> None:
    make, sites, _ = NETWORKS["bottleneck"]
    module, images = ready(make, randomise, (12, 12))
    anything: Any = module
    folded = fold(trace(anything.to(memory_format=torch.channels_last), images.shape[1:]), images)
    assert len(folded.report.folded) == len(sites)
    assert_equal_to_eager(folded, module, images)


def test_a_linear_layer_whose_outputs_are_not_what_is_normalised_stays(randomise: Randomise) -> None:
    module = randomise(LinearOverPlaces())
    images = np.random.default_rng(2).standard_normal((4, 3, 6, 12)).astype(np.float32)
    folded = fold(trace(module, (3, 6, 12)), images)
    assert [(site.batchnorm, site.reason) for site in folded.report.refused] == [
        ("bn", folding.REASONS["other axis"])
    ]
    assert_equal_to_eager(folded, module, images)
