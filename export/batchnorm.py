"""Shared BatchNorm: found, measured, and repaired by giving every call site statistics of its own.

A BatchNorm that is called at several places of a network normalises each of them with its batch's own
statistics in training, but keeps one running mean and variance, a mixture that fits none of them. `split`
gives each call site a BatchNorm, and `reestimate` fills its statistics from images, without labels or
training. Re-estimation as a cumulative average over batches: Wu and Johnson, "Rethinking 'Batch' in
BatchNorm" (arXiv:2105.07576), section 3 (PreciseBN). Importing this module imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resedge.errors import InputRefused
from resedge.protocols import Float32Array, Int64Array


@dataclass(frozen=True)
class BatchNormReport:
    """How far evaluation mode is from batch statistics on the same images.

    `calls` counts the calls of each shared BatchNorm in one forward pass. `agreement` is the fraction of
    images on which both predict the same class; top1 is None without labels.
    """

    calls: Mapping[str, int]
    images: int
    agreement: float
    top1_eval: float | None
    top1_batch: float | None


def call_counts(module: nn.Module, example: Float32Array) -> dict[str, int]:
    """Count the calls of each BatchNorm in one forward pass.

    Args:
        module: Run once in eval mode; its own mode is put back.
        example: An input batch, such as (1, 3, 28, 28) float32.

    Returns:
        The count of every BatchNorm by its module path, 0 where it is not called.
    """
    counts = {path: 0 for path, _ in _batchnorms(module)}
    handles = []
    for path, batchnorm in _batchnorms(module):

        def count(*_: object, path: str = path) -> None:
            counts[path] += 1

        handles.append(batchnorm.register_forward_hook(count))
    try:
        with _modes(module, batchnorm_training=False), torch.no_grad():
            module(torch.tensor(example))
    finally:
        for handle in handles:
            handle.remove()
    return counts


def shared(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the entries of `call_counts` that are called more than once."""
    return {path: calls for path, calls in counts.items() if calls > 1}


class _CallOrder:
    """Runs the root's forward pass: every split BatchNorm starts at its first site and ends after its last.

    `forward` stands in for the root's own, on the instance: two forward hooks would cost more. A bound
    method, as torch.export asks for; a deep copy of the root copies it along with the modules that it
    speaks to. The start comes first, so a pass that ended in an exception does not shift the next.
    """

    def __init__(self, forward: Callable[[Tensor], Any], splits: Mapping[str, SplitBatchNorm]) -> None:
        self._forward = forward
        self._positions = tuple((path, split_batchnorm.position) for path, split_batchnorm in splits.items())

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - whatever the model returns
        positions = self._positions
        for _, position in positions:
            position.ahead = iter(position.sites)
        result = self._forward(x)
        for path, position in positions:
            if next(position.ahead, None) is not None:
                sites = len(position.sites)
                calls = sites - 1 - len(tuple(position.ahead))
                raise _wrong_calls(path, f"was called {calls} times, split for {sites}")
        return result


class _Position:
    """The call sites of one split BatchNorm, and those that this forward pass has still ahead.

    No module, so torch neither tracks nor registers what it holds, and reading it costs no `__getattr__`.
    """

    def __init__(self, sites: Iterable[nn.Module]) -> None:
        self.sites = tuple(sites)
        self.ahead = iter(self.sites)


class SplitBatchNorm(nn.Module):
    """One BatchNorm a call site: the k-th call of a forward pass of the root model uses `sites[k]`.

    The split model is the eager baseline that every engine is timed against, so finding the site must
    cost next to nothing: a slow wrapper would pass for a fast engine. Hence a `__call__` of its own, past
    `nn.Module.__call__`: hooks on this module never fire, those on its sites do. Nor may a site be
    exchanged for another module afterwards.
    """

    def __init__(self, shared_batchnorm: nn.Module, calls: int) -> None:
        super().__init__()
        self.sites = nn.ModuleList(copy.deepcopy(shared_batchnorm) for _ in range(calls))
        self.position = _Position(self.sites)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise (N, C, ...) float32 with the statistics of this call site.

        Raises:
            InputRefused: Called more often than there are sites in one forward pass of the root.
        """
        site = next(self.position.ahead, None)
        if site is None:
            sites = len(self.position.sites)
            raise _wrong_calls("a split BatchNorm", f"has {sites} call sites, called once more")
        out: Tensor = site(x)
        return out


def split(module: nn.Module, calls: Mapping[str, int]) -> nn.Module:
    """Return a deep copy in which each named BatchNorm has one BatchNorm for each call site.

    The sites (`<path>.sites.0` and so on) start as copies of the shared one, so the result computes what
    the original does until `reestimate`. Only forward passes of the returned root are counted right.

    Args:
        module: Left as it is.
        calls: Module path to number of call sites, such as `shared` returns.

    Raises:
        InputRefused: A path is no BatchNorm of the module, or is called less than twice.
    """
    root = copy.deepcopy(module)
    known = dict(_batchnorms(root))
    splits: dict[str, SplitBatchNorm] = {}
    for path, count in calls.items():
        if path not in known or count < 2:
            raise InputRefused(
                f"{path!r} with {count} calls cannot be split.",
                where="BatchNorm split",
                cure=f"BatchNorms of this model: {', '.join(known) or 'none'}; split at 2 calls or more.",
            )
        splits[path] = SplitBatchNorm(known[path], count)
    for path, split_batchnorm in splits.items():
        _replace(root, known[path], split_batchnorm)
    if splits:
        root.forward = _CallOrder(root.forward, splits).forward
    return root


def reestimate(module: nn.Module, batches: Iterable[Float32Array]) -> None:
    """Estimate every BatchNorm's running statistics anew, in place, from images in their given order.

    Statistics are the plain mean over batches of each batch's mean and unbiased variance; a short last
    batch counts as much as a full one. Only BatchNorm layers are in training mode, nothing is learned.

    Args:
        module: Its mode and its BatchNorms' momentum are put back.
        batches: Input batches, such as (128, 3, 28, 28) float32.

    Raises:
        InputRefused: There is no batch.
    """
    layers = [layer for _, layer in _batchnorms(module) if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    empty = True
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for the cumulative average
        with _modes(module, batchnorm_training=True), torch.no_grad():
            for batch in batches:
                module(torch.tensor(batch))
                empty = False
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if empty:
        raise InputRefused(
            "there is no image to re-estimate the BatchNorm statistics from.",
            where="calibration images",
            cure="Give calibration images, or deploy with --batchnorm keep.",
        )


def compare_modes(
    module: nn.Module, batches: Iterable[Float32Array], labels: Int64Array | None = None
) -> BatchNormReport:
    """Compare predictions of eval mode with those of batch statistics; the module is left as it is.

    Args:
        module: The model.
        batches: Input batches, such as (128, 3, 28, 28) float32; batch statistics are theirs.
        labels: (N,) class indices of all images in order, or None.

    Raises:
        InputRefused: There is no image, or another number of labels.
    """
    normal, by_batch = copy.deepcopy(module), copy.deepcopy(module)
    pairs: list[tuple[Tensor, Tensor]] = []
    calls: dict[str, int] = {}
    with (
        torch.no_grad(),
        _modes(normal, batchnorm_training=False),
        _modes(by_batch, batchnorm_training=True),
    ):
        for batch in batches:
            images = torch.tensor(batch)
            calls = calls or call_counts(normal, batch[:1])
            pairs.append((normal(images).argmax(1), by_batch(images).argmax(1)))
    total = sum(len(first) for first, _ in pairs)
    if total == 0 or (labels is not None and len(labels) != total):
        count = "no" if labels is None else str(len(labels))
        raise InputRefused(f"{total} images and {count} labels.", where="BatchNorm comparison")
    in_eval, in_batch = (torch.cat(side) for side in zip(*pairs, strict=True))
    truth = None if labels is None else torch.tensor(labels)
    return BatchNormReport(
        calls=shared(calls),
        images=total,
        agreement=_fraction_equal(in_eval, in_batch),
        top1_eval=None if truth is None else _fraction_equal(in_eval, truth),
        top1_batch=None if truth is None else _fraction_equal(in_batch, truth),
    )


@dataclass(frozen=True)
class InputGap:
    """What the first BatchNorm gets from some images, against the statistics that it was trained to.

    `shift` is the distance of the means in trained standard deviations, `spread` the standard deviation
    over the trained one; both the median over channels.
    """

    batchnorm: str
    shift: float
    spread: float


def first_gap(module: nn.Module, images: Float32Array, shared: Collection[str] = ()) -> InputGap | None:
    """Compare what reaches the first BatchNorm with its running statistics; None if there are none.

    The first one sees the images through one linear layer, so that it tells how they were normalised.

    Args:
        module: Left as it is.
        images: (N, C, H, W) float32.
        shared: Paths of BatchNorms to pass over: statistics of several places fit none of them.
    """
    tracked = {
        part: path
        for path, part in _batchnorms(module)
        if part.running_mean is not None and path not in shared
    }
    seen: list[tuple[_BatchNorm, Tensor]] = []

    def look(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not seen and isinstance(part, _BatchNorm):
            seen.append((part, inputs[0].detach().double()))

    handles = [part.register_forward_pre_hook(look) for part in tracked]
    try:
        with _modes(module, batchnorm_training=False), torch.no_grad():
            module(torch.tensor(images))
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        return None
    part, values = seen[0]
    assert part.running_mean is not None  # of those that are looked at
    assert part.running_var is not None
    by_channel = values.transpose(0, 1).flatten(1)
    trained = (part.running_var.double() + part.eps).sqrt()
    shift = ((by_channel.mean(1) - part.running_mean.double()).abs() / trained).median()
    spread = (by_channel.std(1) / trained).median()
    return InputGap(tracked[part], float(shift), float(spread))


@contextmanager
def _modes(module: nn.Module, *, batchnorm_training: bool) -> Iterator[None]:
    """Put all layers in eval mode and the BatchNorms in the given one; put back what was."""
    before = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        for _, batchnorm in _batchnorms(module):
            batchnorm.train(batchnorm_training)
        yield
    finally:
        for part, training in before:
            part.training = training


def _batchnorms(module: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(path, part) for path, part in module.named_modules() if isinstance(part, _BatchNorm)]


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands, under every name that it goes by."""
    for part in list(root.modules()):
        for name, child in part._modules.items():
            if child is old:
                part._modules[name] = new


def _fraction_equal(first: Tensor, second: Tensor) -> float:
    return int((first == second).sum()) / len(first)


def _wrong_calls(where: str, what: str) -> InputRefused:
    return InputRefused(
        f"{what} in one forward pass.",
        where=where,
        cure="The split follows one fixed order of calls from the root model; use --batchnorm keep.",
    )
