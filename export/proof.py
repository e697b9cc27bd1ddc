"""The proof of a fold: the folded convolution beside the unfolded pair, on real activations, in float64.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx

from resedge.errors import InputRefused
from resedge.export.trace import shortened

TOLERANCE: Final = 1e-9  # of the largest output; float64 rounding gives about 1e-15


@dataclass(frozen=True)
class Pair:
    """A call of a convolution and the call of a BatchNorm on its output, by node name."""

    conv: str
    batchnorm: str
    conv_path: str
    batchnorm_path: str


@dataclass(frozen=True)
class Parameters:
    """A convolution's weight (out, in / groups, ...) and bias (out,), float64."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Residual:
    """The largest difference of a folded convolution from its pair, over the largest output."""

    float64: float
    float32: float


def prove(
    graph: fx.GraphModule, folds: dict[Pair, Parameters], images: Tensor
) -> tuple[dict[Pair, Residual], Tensor]:
    """Run the unfolded graph and compare, at each pair, the folded convolution with the pair.

    Args:
        graph: Unfolded, float64.
        folds: The parameters to try.
        images: (N, *input_shape) float64.

    Returns:
        The residual of each pair, and the unfolded graph's logits, (N, classes) float64.

    Raises:
        InputRefused: The graph cannot run in float64, or its logits hold NaN or Inf.
    """
    prover = _Prover(graph, folds)
    try:
        with torch.no_grad():
            logits: Tensor = prover.run(images.clone())  # forward may write over them
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputRefused(
            f"the traced graph cannot run in float64: {shortened(error)}",
            where="folding",
            cure="forward must not fix a dtype of its own.",
        ) from error
    if not logits.isfinite().all():
        raise InputRefused(
            "the logits hold NaN or Inf on the sample images.",
            where="folding",
            cure="Check the weights, and that the images are preprocessed as in training.",
        )
    return prover.residuals, logits


class _Prover(fx.Interpreter):
    """Runs the unfolded graph, with the folded convolution beside each pair."""

    def __init__(self, graph: fx.GraphModule, folds: dict[Pair, Parameters]) -> None:
        super().__init__(graph)
        self._by_conv = {pair.conv: pair for pair in folds}
        self._by_batchnorm = {pair.batchnorm: pair for pair in folds}
        self._folds = folds
        self._pending: dict[Pair, tuple[Tensor, Tensor]] = {}
        self.residuals: dict[Pair, Residual] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node's value may be anything
        value = super().run_node(n)
        if pair := self._by_conv.get(n.name):
            args, _ = self.fetch_args_kwargs_from_env(n)
            self._pending[pair] = _run_folded(n.target, args, self._folds[pair])
        elif pair := self._by_batchnorm.get(n.name):
            wide, narrow = self._pending.pop(pair)
            self.residuals[pair] = Residual(relative(wide, value), relative(narrow, value))
        return value


def relative(value: Tensor, expected: Tensor) -> float:
    """Return max |value - expected| over max |expected|; infinite where that is no number."""
    worst, largest = float((value - expected).abs().max()), float(expected.abs().max())
    if worst == 0.0:
        return 0.0
    ratio = worst / largest if largest > 0.0 else math.inf
    return math.inf if math.isnan(ratio) else ratio


def _run_folded(conv: Any, args: tuple[Any, ...], folded: Parameters) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    x, rest = args[0], args[3:]
    wide = conv(x, folded.weight, folded.bias, *rest)
    narrow = conv(x.float(), folded.weight.float(), folded.bias.float(), *rest)
    return wide, narrow.double()
