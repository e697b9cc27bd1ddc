"""The notebook's ResNet: three residual blocks at full 28 x 28 resolution, one shared BatchNorm a block.

The layout is fixed by checkpoints that exist (`layer.0.conv1.weight` ... `linear.bias`), so nothing here
may be renamed. Importing this module imports torch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_CLASSES = 10
INPUT_SHAPE = (3, 28, 28)
_WIDTH = 64


class ResidualBlock(nn.Module):
    """conv1 - bn - relu - conv2 - bn, plus conv3 - bn on the shortcut; nothing after the addition.

    One BatchNorm2d is called after each of the three convolutions, so in training its running
    statistics mix three distributions: what evaluation mode then computes can differ widely from
    what training saw (`resedge.export.batchnorm` measures and repairs that).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) float32 to (N, out_channels, H, W) float32."""
        main = self.relu(self.bn(self.conv1(x)))
        main = self.bn(self.conv2(main))
        shortcut = self.bn(self.conv3(x))
        out: Tensor = main + shortcut
        return out


class ResNet(nn.Module):
    """(N, 3, 28, 28) float32 to (N, 10) float32 logits."""

    def __init__(self, block: type[ResidualBlock] = ResidualBlock) -> None:
        super().__init__()
        self.linear = nn.Linear(28 * 28 * _WIDTH, NUM_CLASSES)
        self.layer = nn.Sequential(block(3, _WIDTH), block(_WIDTH, _WIDTH), block(_WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 28, 28) float32 to (N, 10) float32."""
        x = self.layer(x)
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits
