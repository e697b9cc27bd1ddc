from __future__ import annotations

import torch

from resedge.export.notebook import ResNet

BLOCK = {
    "conv1.weight": (64, 64, 3, 3),
    "conv1.bias": (64,),
    "conv2.weight": (64, 64, 3, 3),
    "conv2.bias": (64,),
    "conv3.weight": (64, 64, 1, 1),
    "conv3.bias": (64,),
    "bn.weight": (64,),
    "bn.bias": (64,),
    "bn.running_mean": (64,),
    "bn.running_var": (64,),
    "bn.num_batches_tracked": (),
}
FIRST = {**BLOCK, "conv1.weight": (64, 3, 3, 3), "conv3.weight": (64, 3, 1, 1)}
LAYOUT = {
    **{f"layer.0.{key}": shape for key, shape in FIRST.items()},
    **{f"layer.{i}.{key}": shape for i in (1, 2) for key, shape in BLOCK.items()},
    "linear.weight": (10, 50176),
    "linear.bias": (10,),
}


def test_a_checkpoint_of_the_notebook_fits_key_by_key() -> None:
    assert {key: tuple(value.shape) for key, value in ResNet().state_dict().items()} == LAYOUT


def test_a_batch_of_32_gives_32_rows_of_logits() -> None:
    with torch.no_grad():
        assert ResNet().eval()(torch.zeros(32, 3, 28, 28)).shape == (32, 10)


def test_nothing_follows_the_addition() -> None:
    block = ResNet().eval().layer[1]
    with torch.no_grad():
        out = block(torch.randn(2, 64, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert (out < 0).any()  # a ReLU after the addition would leave none
