"""Folding of BatchNorm into what is before it, on the traced graph, one call site at a time, each proved.

    y = (conv(x, W, b) - m) * g / sqrt(v + eps) + beta      is      conv(x, W', b')
    W' = W * g / sqrt(v + eps)                 b' = (b - m) * g / sqrt(v + eps) + beta

with one factor an output channel (Jacob et al., "Quantization and Training of Neural Networks",
arXiv:1712.05877, section 3.2); `conv` is a convolution, a transposed one, or a linear layer. The algebra runs
in float64. A fold is kept only if, on real images, the folded convolution gives what the pair gives; a site
that does not qualify stays as it is, with the reason in the report. Each site gets parameters of its own, so
modules that are used twice fold right.
Importing this module imports torch.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from resedge.errors import InputRefused
from resedge.export.proof import TOLERANCE, Pair, Parameters, Residual, prove, relative
from resedge.export.trace import Traced, module_path
from resedge.protocols import Float32Array

_ATEN = torch.ops.aten
_BATCH_NORM = _ATEN.batch_norm.default
_LINEAR = _ATEN.linear.default
_CONVS = {
    getattr(getattr(_ATEN, f"conv{n}d"), overload) for n in (1, 2, 3) for overload in ("default", "padding")
}
_TRANSPOSED = {
    _ATEN.conv_transpose1d.default,
    _ATEN.conv_transpose2d.input,
    _ATEN.conv_transpose3d.input,
}
_FOLDABLE = _CONVS | _TRANSPOSED | {_LINEAR}
_SCALINGS = {_ATEN.mul.Tensor, _ATEN.mul_.Tensor}
_TRANSPOSED_GROUPS = 6  # the argument of a transposed convolution

REASONS: Final = {
    "batch statistics": "the BatchNorm normalises with batch statistics, it has no running ones",
    "no conv": "the BatchNorm does not follow a convolution or a linear layer",
    "other axis": "the BatchNorm normalises another axis than the linear layer's outputs",
    "arithmetic": "the layer's output is scaled by constants in arithmetic, as a frozen BatchNorm does it",
    "two readers": "the output of what it follows has another reader",
    "computed": "a weight or a statistic is computed in forward, it is not a parameter",
    "overflow": "the folded convolution leaves the range of float32",
    "unproved": "the folded convolution differs from the pair by {residual:.1e} of its largest output",
}


@dataclass(frozen=True)
class FoldedSite:
    """A fold that was proved: the call sites, and the largest error over the largest output.

    `residual_float64` is the algebra's; `residual_float32` is that of float32 weights and input.
    """

    conv: str
    batchnorm: str
    residual_float64: float
    residual_float32: float


@dataclass(frozen=True)
class RefusedSite:
    """A BatchNorm call that stays in the graph, and why."""

    batchnorm: str
    reason: str


@dataclass(frozen=True)
class FoldReport:
    """What was folded and what was not; `residual` is the whole graph's, in float64, over `images`."""

    folded: tuple[FoldedSite, ...]
    refused: tuple[RefusedSite, ...]
    residual: float
    images: int


@dataclass(frozen=True)
class Folded:
    """The folded graph, float32 as `Traced.graph`, and its proof."""

    graph: fx.GraphModule
    report: FoldReport


def fold(traced: Traced, sample: Float32Array) -> Folded:
    """Fold every convolution with the BatchNorm behind it, where that can be proved.

    Args:
        traced: Left as it is.
        sample: Real images, (N, *input_shape) float32, on which the proofs run.

    Raises:
        InputRefused: The graph cannot run in float64, gives NaN or Inf on the sample, or the folded
            graph as a whole differs from the unfolded one.
    """
    images = torch.tensor(sample, dtype=torch.float64)
    wide = copy.deepcopy(traced.graph).double()
    pairs, refused = find_pairs(wide)
    sound, unsound = _fold_all(wide, pairs)
    residuals, logits = prove(wide, sound, images)
    proved = {pair: sound[pair] for pair in sound if _is_proved(residuals[pair])}
    unproved = [_unproved(pair, residuals[pair]) for pair in sound if pair not in proved]
    narrow = rewrite(wide, proved)
    report = FoldReport(
        folded=tuple(_folded_site(pair, residuals[pair]) for pair in proved),
        refused=(*refused, *unsound, *unproved),
        residual=_whole_residual(narrow, images, logits),
        images=len(images),
    )
    return Folded(narrow.float(), report)


def find_pairs(graph: fx.GraphModule) -> tuple[list[Pair], list[RefusedSite]]:
    """Return the pairs that qualify by their structure, and the normalisations that do not."""
    paths = call_paths(graph.graph)
    pairs, refused = [], []
    for node in graph.graph.nodes:
        if _is_frozen(node):
            refused.append(_refusal(module_path(node) or node.name, "arithmetic"))
        if node.target is not _BATCH_NORM:
            continue
        if reason := _structural_fault(node):
            refused.append(_refusal(paths[node], reason))
        else:
            conv: Any = node.args[0]
            pairs.append(Pair(conv.name, node.name, paths[conv], paths[node]))
    return pairs, refused


def fold_parameters(graph: fx.GraphModule, pair: Pair) -> Parameters:
    """Return W' and b' of a pair, in the graph's dtype (float64); see the head of this file."""
    nodes = {node.name: node for node in graph.graph.nodes}
    conv, batchnorm = nodes[pair.conv], nodes[pair.batchnorm]
    weight = _constant(graph, conv.args[1])
    bias = _constant(graph, _argument(conv, 2))
    gamma, beta, mean, variance = (_constant(graph, arg) for arg in batchnorm.args[1:5])
    epsilon = batchnorm.args[7]
    factor = (1.0 if gamma is None else gamma) / (variance + epsilon).sqrt()
    shift = 0.0 if beta is None else beta
    start = 0.0 if bias is None else bias
    return Parameters(_scaled(weight, factor, conv), (start - mean) * factor + shift)


def _scaled(weight: Tensor, factor: Tensor, node: fx.Node) -> Tensor:
    """Return a weight with each output channel times its factor.

    A transposed convolution's is (in, out / groups, ...): the channels of a group of outputs stand beside the
    inputs of that group.
    """
    if node.target not in _TRANSPOSED:
        return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    groups = node.args[_TRANSPOSED_GROUPS] if len(node.args) > _TRANSPOSED_GROUPS else 1
    assert isinstance(groups, int)  # by the operator's schema
    apart = weight.reshape(groups, -1, *weight.shape[1:])
    scaled = apart * factor.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return scaled.reshape(weight.shape)


def rewrite(graph: fx.GraphModule, folds: dict[Pair, Parameters]) -> fx.GraphModule:
    """Return a copy in which each pair is one convolution with parameters of its own."""
    result = copy.deepcopy(graph)
    nodes = {node.name: node for node in result.graph.nodes}
    for index, (pair, parameters) in enumerate(folds.items()):
        conv, batchnorm = nodes[pair.conv], nodes[pair.batchnorm]
        with result.graph.inserting_before(conv):
            weight = _add_parameter(result, f"_folded_{index}_weight", parameters.weight)
            bias = _add_parameter(result, f"_folded_{index}_bias", parameters.bias)
        conv.args = (conv.args[0], weight, bias, *conv.args[3:])
        conv.kwargs = {}
        batchnorm.replace_all_uses_with(conv)
        result.graph.erase_node(batchnorm)
    result.graph.eliminate_dead_code()
    return fx.GraphModule(result, result.graph).eval()  # takes over only what the graph still reads


def call_paths(graph: fx.Graph) -> dict[fx.Node, str]:
    """Name each call of what can fold, and of a BatchNorm: its module's path, "@k" from the second on."""
    paths: dict[fx.Node, str] = {}
    seen: dict[str, int] = {}
    for node in graph.nodes:
        if node.target is _BATCH_NORM or node.target in _FOLDABLE:
            path = module_path(node) or node.name
            paths[node] = f"{path}@{seen[path]}" if path in seen else path
            seen[path] = seen.get(path, 0) + 1
    return paths


def _is_frozen(node: fx.Node) -> bool:
    """Whether a node scales the output of a foldable layer by constants: a normalisation without a name."""
    if node.target not in _SCALINGS or len(node.all_input_nodes) != 2:
        return False
    first, second = node.all_input_nodes
    return any(
        layer.target in _FOLDABLE and _is_constant(scale)
        for layer, scale in ((first, second), (second, first))
    )


def _is_constant(node: fx.Node) -> bool:
    """Whether a node is computed from parameters and buffers alone."""
    if node.op == "get_attr":
        return True
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(map(_is_constant, inputs))


def _structural_fault(batchnorm: fx.Node) -> str:
    """Return the key of the reason that forbids a fold, or ""."""
    conv: Any = batchnorm.args[0]
    if batchnorm.args[5]:
        return "batch statistics"
    if conv.target not in _FOLDABLE:
        return "no conv"
    if conv.target is _LINEAR and conv.meta["val"].dim() != 2:
        return "other axis"
    if list(conv.users) != [batchnorm]:
        return "two readers"
    constants = (*conv.args[1:3], *batchnorm.args[1:5])
    if any(isinstance(arg, fx.Node) and arg.op != "get_attr" for arg in constants):
        return "computed"
    return ""


def _fold_all(
    graph: fx.GraphModule, pairs: Iterable[Pair]
) -> tuple[dict[Pair, Parameters], list[RefusedSite]]:
    sound, unsound = {}, []
    with torch.no_grad():
        for pair in pairs:
            folded = fold_parameters(graph, pair)
            if all(part.float().isfinite().all() for part in (folded.weight, folded.bias)):
                sound[pair] = folded
            else:
                unsound.append(_refusal(pair.batchnorm_path, "overflow"))
    return sound, unsound


def _is_proved(residual: Residual) -> bool:
    return residual.float64 <= TOLERANCE and math.isfinite(residual.float32)


def _unproved(pair: Pair, residual: Residual) -> RefusedSite:
    reason = "overflow" if residual.float64 <= TOLERANCE else "unproved"
    return _refusal(pair.batchnorm_path, reason, residual=residual.float64)


def _whole_residual(folded: fx.GraphModule, images: Tensor, expected: Tensor) -> float:
    with torch.no_grad():
        residual = relative(folded(images.clone()), expected)
    if residual > TOLERANCE:
        raise InputRefused(
            f"the folded graph differs from the unfolded one by {residual:.1e} of its largest logit.",
            where="folding",
            cure="Every fold was proved on its own, so this is a defect of resedge: please report it.",
        )
    return residual


def _constant(graph: fx.GraphModule, argument: object) -> Any:  # noqa: ANN401 - a tensor, or None
    """Return the tensor that a get_attr node names; None for an argument that is not given."""
    if not isinstance(argument, fx.Node):
        return None
    return operator.attrgetter(str(argument.target))(graph)


def _argument(node: fx.Node, index: int) -> object:
    return node.args[index] if len(node.args) > index else None


def _add_parameter(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return graph.graph.get_attr(name)


def _folded_site(pair: Pair, residual: Residual) -> FoldedSite:
    return FoldedSite(pair.conv_path, pair.batchnorm_path, residual.float64, residual.float32)


def _refusal(path: str, reason: str, **facts: float) -> RefusedSite:
    return RefusedSite(path, REASONS[reason].format(**facts))
