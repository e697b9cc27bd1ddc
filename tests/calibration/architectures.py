"""Small torch networks of the kinds that descend from the ResNet, each with what is particular to its kind.

Their definitions are written out here, with seeded weights and BatchNorm statistics that are neither 0
nor 1. `test_architectures.py` runs this file, so that it needs no place on the import path.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH = 16
SIZE = 16
CLASSES = 10


class Residual(nn.Module):
    """relu(main(x) + shortcut(x)); `gate` is what a block puts behind its main path."""

    def __init__(
        self,
        main: nn.Module,
        shortcut: nn.Module | None = None,
        gate: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.main, self.shortcut, self.gate = main, shortcut or nn.Identity(), gate or nn.Identity()
        self.act = act or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.gate(self.main(x)) + self.shortcut(x))
        return out


class Gate(nn.Module):
    """x scaled by what `scale` makes of x, such as one factor a channel."""

    def __init__(self, scale: nn.Module) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.scale(x)
        return out


class LinearSqueeze(nn.Module):
    """Squeeze-and-excitation's gate as its paper has it: mean, two Linear layers, sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH // 2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        factors: Tensor = self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()
        return factors[:, :, None, None]


class ChannelConv(nn.Module):
    """ECA's gate: a 1-D convolution along the pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x).squeeze(-1).transpose(-1, -2)
        factors: Tensor = self.conv(pooled).transpose(-1, -2).unsqueeze(-1).sigmoid()
        return factors


class PreActivation(nn.Module):
    """ResNet v2: BatchNorm and ReLU before each convolution, nothing behind the addition."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(cout), nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(cin, cout, 1, stride, bias=False) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.bn2(self.conv1(active)).relu()) + shortcut
        return out


class BlurPool(nn.Module):
    """A fixed binomial filter a channel, on edges that are reflected."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line).repeat(channels, 1, 1, 1))
        self.pad = nn.ReflectionPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.pad(x), self.kernel, stride=2, groups=x.shape[1])


class DenseBlock(nn.Module):
    """DenseNet: BatchNorm, ReLU and a convolution on all that came before, joined to it."""

    def __init__(self, layers: int, growth: int) -> None:
        super().__init__()
        widths = [WIDTH + growth * index for index in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return x


class Branches(nn.Module):
    """Convolutions side by side, their outputs joined, as in an Inception block."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Aggregation(nn.Module):
    """VoVNet: a chain of convolutions whose outputs are all joined, at the end and once only."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(unit(WIDTH, WIDTH) for _ in range(2))
        self.joined = unit(3 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        tensors = [x]
        for conv in self.convs:
            tensors.append(conv(tensors[-1]))
        out: Tensor = self.joined(torch.cat(tensors, 1))
        return out


class TwoPools(nn.Module):
    """The mean and the largest value of every channel, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.max = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.mean(x), self.max(x)], 1)


class Scaled(nn.Module):
    """x times a learned factor a channel, and an addition that joins nothing: layer scale and a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.shift = nn.Parameter(torch.ones(WIDTH, 1, 1)), nn.Parameter(torch.ones(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift


def unit(
    cin: int,
    cout: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
) -> nn.Sequential:
    """Return a convolution, its norm and its activation."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm(cout), *([] if act is None else [act()]))


def two(
    cin: int = WIDTH,
    cout: int = WIDTH,
    stride: int = 1,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    act: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Return the main path of a basic block."""
    return nn.Sequential(
        unit(cin, cout, stride=stride, norm=norm, act=act), unit(cout, cout, act=None, norm=norm)
    )


def network(
    *body: nn.Module,
    width: int = WIDTH,
    stem: nn.Module | None = None,
    pool: nn.Module | None = None,
    head: nn.Module | None = None,
) -> nn.Sequential:
    """Return stem, body, pooling and a Linear layer."""
    parts = {
        "stem": stem or unit(3, WIDTH),
        "body": nn.Sequential(*body),
        "pool": pool or nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": head or nn.Linear(width, CLASSES),
    }
    net = nn.Sequential()
    for name, part in parts.items():
        net.add_module(name, part)
    return net


def squeeze(act: type[nn.Module]) -> nn.Sequential:
    """Return squeeze-and-excitation's gate with 1x1 convolutions."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(WIDTH, WIDTH // 2, 1),
        nn.ReLU(),
        nn.Conv2d(WIDTH // 2, WIDTH, 1),
        act(),
    )


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def gates() -> nn.Module:
    """Squeeze-and-excitation with a sigmoid, with MobileNet's hard one, with Linear layers; ECA."""
    scales = squeeze(nn.Sigmoid), squeeze(nn.Hardsigmoid), LinearSqueeze(), ChannelConv()
    return network(*(Residual(two(), gate=Gate(scale)) for scale in scales))


def preact() -> nn.Module:
    stem = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False)
    last = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU())
    return network(PreActivation(WIDTH, WIDTH, 1), PreActivation(WIDTH, 32, 2), last, stem=stem, width=32)


def blurpool() -> nn.Module:
    pool = nn.Sequential(nn.MaxPool2d(2, 1), BlurPool(WIDTH))
    main = nn.Sequential(unit(WIDTH, 32), BlurPool(32), unit(32, 32, act=None))
    side = nn.Sequential(BlurPool(WIDTH), unit(WIDTH, 32, 1, act=None))
    return network(pool, Residual(main, side), width=32)


def dense() -> nn.Module:
    norm, conv = nn.BatchNorm2d(32), nn.Conv2d(32, WIDTH, 1, bias=False)
    transition = nn.Sequential(norm, nn.ReLU(), conv, nn.AvgPool2d(2))
    return network(DenseBlock(2, 8), transition, nn.BatchNorm2d(WIDTH), nn.ReLU())


def concat() -> nn.Module:
    """An Inception block, then one of VoVNet."""
    pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(WIDTH, WIDTH, 1))
    branches = Branches(unit(WIDTH, WIDTH, 1), unit(WIDTH, WIDTH), pool)
    return network(branches, unit(3 * WIDTH, WIDTH), Aggregation())


def groupnorm() -> nn.Module:
    side = unit(WIDTH, 32, 1, 2, act=None, norm=group_norm)
    blocks = Residual(two(norm=group_norm)), Residual(two(WIDTH, 32, 2, norm=group_norm), side)
    return network(*blocks, stem=unit(3, WIDTH, norm=group_norm), width=32)


def pools() -> nn.Module:
    """ResNet-D's shortcut, ceil mode, a head on mean and maximum; of dropout nothing is left."""
    stem = nn.Sequential(unit(3, WIDTH), nn.MaxPool2d(3, 2, ceil_mode=True))
    mean = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    block = Residual(two(WIDTH, 32, 2), nn.Sequential(mean, unit(WIDTH, 32, 1, act=None)))
    head = nn.Sequential(nn.Dropout(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, CLASSES))
    return network(block, nn.Dropout2d(0.1), stem=stem, pool=TwoPools(), head=head)


def depthwise() -> nn.Module:
    """An inverted residual of MobileNet, then a bottleneck of ResNeXt."""
    shape = [unit(WIDTH, 32, 1, act=nn.ReLU6), unit(32, 32, groups=32, act=nn.ReLU6)]
    inverted = nn.Sequential(*shape, unit(32, WIDTH, 1, act=None))
    grouped = nn.Sequential(unit(WIDTH, 32, 1), unit(32, 32, groups=4), unit(32, WIDTH, 1, act=None))
    return network(Residual(inverted, act=nn.Identity()), Residual(grouped))


def silu() -> nn.Module:
    """SiLU throughout, and arithmetic with constants on both the main path and the trunk."""
    main = nn.Sequential(two(act=nn.SiLU), Scaled())
    return network(Residual(main, act=nn.SiLU()), Scaled(), stem=unit(3, WIDTH, act=nn.SiLU))


def transposed() -> nn.Module:
    up = nn.ConvTranspose2d(32, WIDTH, 2, 2)
    grouped = nn.ConvTranspose2d(WIDTH, 8, 3, 1, 1, groups=2)
    return network(unit(WIDTH, 32, stride=2), up, nn.ReLU(), grouped, nn.ReLU(), width=8)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    make.__name__: make
    for make in (gates, preact, blurpool, dense, concat, groupnorm, pools, depthwise, silu, transposed)
}


def build(name: str) -> nn.Module:
    """Return a network with seeded weights, ready to be traced; one channel of each layer is dead."""
    torch.manual_seed(0)
    module = NETWORKS[name]().eval()
    generator = torch.Generator().manual_seed(7)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
            _draw(part.weight, 0.6, 1.4, generator)
            _draw(part.bias, -0.4, 0.4, generator)
        if isinstance(part, nn.BatchNorm2d):
            _draw(part.running_mean, -0.3, 0.3, generator)
            _draw(part.running_var, 0.5, 1.5, generator)
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            _draw_weight(part.weight, generator)
    return module


def _draw(tensor: Tensor | None, low: float, high: float, generator: torch.Generator) -> None:
    assert tensor is not None
    with torch.no_grad():
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))


def _draw_weight(weight: Tensor, generator: torch.Generator) -> None:
    with torch.no_grad():
        spread = (2 / weight[0].numel()) ** 0.5
        weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
        if len(weight) > 1:
            weight[0] = 0
