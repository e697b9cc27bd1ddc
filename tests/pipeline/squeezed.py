"""Run by `test_preflight_matrix.py`: a ResNet-50 with squeeze-and-excitation (Hu et al., 2018).

Its gate follows the last convolution of each bottleneck, as in the paper's figure 3, its two layers written
as 1x1 convolutions, with a reduction of 16.
"""

from __future__ import annotations

from torch import Tensor, nn

REDUCTION = 16


class Gate(nn.Module):
    """Each channel scaled by what pooling, two layers and a sigmoid make of all of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze, self.relu = nn.Conv2d(channels, channels // REDUCTION, 1), nn.ReLU()
        self.excite, self.sigmoid = nn.Conv2d(channels // REDUCTION, channels, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scales: Tensor = self.sigmoid(self.excite(self.relu(self.squeeze(self.pool(x)))))
        return x * scales


def with_gates(resnet: nn.Module) -> nn.Module:
    """Put a gate behind the main path of each block of a ResNet of bottlenecks."""
    for block in resnet.get_submodule("blocks").children():
        main = block.get_submodule("main")
        assert isinstance(main, nn.Sequential)
        channels = next(part for part in reversed(list(main.modules())) if isinstance(part, nn.BatchNorm2d))
        main.append(Gate(channels.num_features))
    return resnet.eval()
