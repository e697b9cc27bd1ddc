"""The networks of the CIFAR experiments: plain and residual, of 6n + 2 layers.

He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2: a 3x3 convolution,
three stages of 2n such layers at widths 16, 32 and 64, global average pooling, a linear classifier. Shortcuts
that change shape are 1x1 convolutions (option B there). `plain` is the same network without shortcuts.
Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

WIDTHS = (16, 32, 64)


def conv_norm(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size (but for the stride), with its BatchNorm."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class Block(nn.Module):
    """A residual block: `main` and the shortcut added, then ReLU."""

    def __init__(self, main: nn.Module, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.main = main
        same = cin == cout and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(cin, cout, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) to (N, cout, H / stride, W / stride)."""
        result: Tensor = self.relu(self.main(x) + self.shortcut(x))
        return result


class ResNet(nn.Module):
    """A stem, blocks, global average pooling, a linear classifier."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, classes)."""
        logits: Tensor = self.linear(self.pool(self.blocks(self.stem(x))).flatten(1))
        return logits


def basic_main(cin: int, cout: int, stride: int) -> nn.Sequential:
    """Return the main path of a basic block: two 3x3 convolutions, each with its BatchNorm."""
    return nn.Sequential(conv_norm(cin, cout, 3, stride), nn.ReLU(), conv_norm(cout, cout, 3))


def cifar(layers: int, *, residual: bool, classes: int, channels: int = 3) -> ResNet:
    """Return an untrained network of `layers` = 6n + 2 layers, n >= 1, for images of any size.

    Raises:
        ValueError: There is no such number of layers.
    """
    n, rest = divmod(layers - 2, 6)
    if n < 1 or rest:
        raise ValueError(f"{layers} is not 6n + 2")
    blocks: list[nn.Module] = []
    cin = WIDTHS[0]
    for cout in WIDTHS:
        for _ in range(n):
            stride = 1 if cout == cin else 2
            main = basic_main(cin, cout, stride)
            blocks.append(Block(main, cin, cout, stride) if residual else nn.Sequential(main, nn.ReLU()))
            cin = cout
    stem = nn.Sequential(conv_norm(channels, WIDTHS[0], 3), nn.ReLU())
    return ResNet(stem, blocks, WIDTHS[-1], classes)
