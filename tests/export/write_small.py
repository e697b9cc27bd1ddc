"""A small residual network of every operator that a ResNet has, written to the ONNX file named first.

Run as a script it does so in a process of its own; `main` is what a test calls in this one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from resedge.artifacts import Artifact
from resedge.export.fold import fold
from resedge.export.onnxfile import write_onnx
from resedge.export.trace import trace


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn, self.relu = nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        main = self.bn(self.conv2(self.relu(self.bn(self.conv1(x)))))
        out: Tensor = self.relu(main + x)
        return out


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1)
        self.pool, self.layer = nn.MaxPool2d(3, 2, 1), nn.Sequential(Block(), Block())
        self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.pool(self.conv(self.bn(x))))
        out: Tensor = self.fc(torch.flatten(self.average(x), 1))
        return out


def small() -> nn.Module:
    module = Small().eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(drawn + 0.5 if "running_var" in key else (drawn - 0.5) / 2)
    return module


def main(out: Path) -> Artifact:
    sample = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    return write_onnx(fold(trace(small(), (3, 16, 16)), sample).graph, (3, 16, 16), out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
