"""The networks that quantisers are compared on, written from the papers.

ResNet-20 is the CIFAR network of He et al. (2015), section 4.2, with a convolution on the shortcuts that
change shape; ResNet-18 and -50 are of section 4.1, with the stride of a bottleneck in its 3x3 convolution;
ResNeXt-50 (32x4d) is of Xie et al. (2016), table 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from resedge.export.cifar import Block, ResNet, basic_main, cifar, conv_norm


def _basic(cin: int, cout: int, stride: int) -> Block:
    return Block(basic_main(cin, cout, stride), cin, cout, stride)


def _bottleneck(cin: int, width: int, stride: int, groups: int, cout: int) -> Block:
    inner = (conv_norm(cin, width, 1), nn.ReLU(), conv_norm(width, width, 3, stride, groups), nn.ReLU())
    main = nn.Sequential(*inner, conv_norm(width, cout, 1))
    return Block(main, cin, cout, stride)


def resnet20() -> ResNet:
    """20 layers, widths 16, 32, 64, for 3 x 28 x 28 images of 10 classes."""
    return cifar(20, residual=True, classes=10)


def _imagenet_stem() -> nn.Sequential:
    return nn.Sequential(conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


def resnet18() -> ResNet:
    """For 3 x 224 x 224 images of 1000 classes."""
    blocks, cin = [], 64
    for stage, cout in enumerate((64, 128, 256, 512)):
        blocks += [_basic(cin, cout, 1 if stage == 0 else 2), _basic(cout, cout, 1)]
        cin = cout
    return ResNet(_imagenet_stem(), blocks, 512, 1000)


def _bottlenecks(widths: Sequence[int], groups: int) -> ResNet:
    blocks, cin = [], 64
    for stage, (width, depth) in enumerate(zip(widths, (3, 4, 6, 3), strict=True)):
        cout = 256 * 2**stage
        for index in range(depth):
            blocks.append(_bottleneck(cin, width, 2 if stage and index == 0 else 1, groups, cout))
            cin = cout
    return ResNet(_imagenet_stem(), blocks, 2048, 1000)


def resnet50() -> ResNet:
    """For 3 x 224 x 224 images of 1000 classes."""
    return _bottlenecks((64, 128, 256, 512), 1)


def resnext50() -> ResNet:
    """ResNeXt-50 (32x4d), for 3 x 224 x 224 images of 1000 classes."""
    return _bottlenecks((128, 256, 512, 1024), 32)


NETWORKS = {"resnet20": resnet20, "resnet18": resnet18, "resnet50": resnet50, "resnext50": resnext50}


def untrained(name: str, seed: int = 0) -> ResNet:
    """Return a network with seeded weights whose BatchNorm statistics are those of normal noise.

    Its activations have the sizes of a trained network's; its predictions mean nothing.
    """
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    side = 28 if name == "resnet20" else 224
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = None  # the mean over all batches
        model.train()
        for _ in range(2):
            model(torch.randn(4, 3, side, side))
    return model.eval()
