"""What was found of a graph in half, as values; importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeInHalf:
    """One node of the ONNX graph when all of it is half, and the tensor that it writes.

    `largest` is the largest magnitude of its output in float32, over the images of the run and the extremes
    that were given. `finite` says that half gave numbers where float32 did, not infinity or NaN. `underflow`
    is the fraction of values that are not zero in float32, and zero or subnormal (below 6.1e-5) in half.
    `sqnr` is signal over error of half against float32 in dB; None where half is not finite, or there is no
    error.
    """

    name: str
    op_type: str
    tensor: str
    largest: float
    finite: bool
    underflow: float
    sqnr: float | None


@dataclass(frozen=True)
class WeightsInHalf:
    """The constants that one node computes with, `values` in all.

    `largest` is their largest magnitude. `zero` counts those that are not zero in float32 and zero in half,
    `subnormal` those that keep some of their digits alone, below 6.1e-5.
    """

    name: str
    values: int
    largest: float
    zero: int
    subnormal: int


@dataclass(frozen=True)
class LogitsInHalf:
    """The logits of a run with half in it against those of float32.

    `agreement` is the fraction of images of the same class; logits that are no numbers agree with nothing.
    `largest_difference` is None where any logit is infinite or NaN.
    """

    agreement: float
    largest_difference: float | None


@dataclass(frozen=True)
class HalfReport:
    """What half does to a graph, on `images` images.

    `limit` is the magnitude beyond which an activation counts as overflowing: half of FP16's largest number,
    since an image in service may reach further than those that were run. `overflowing` names the nodes that
    write beyond it or give no numbers in half, `wide` all that must stay float32: these, the nodes that read
    what they write, and nodes with a constant that FP16 cannot hold. `all_half` is the run with everything
    in half, `mixed` the one with `wide` in float32; None where nothing must be.
    """

    images: int
    limit: float
    nodes: tuple[NodeInHalf, ...]
    weights: tuple[WeightsInHalf, ...]
    overflowing: tuple[str, ...]
    wide: tuple[str, ...]
    all_half: LogitsInHalf
    mixed: LogitsInHalf | None

    @property
    def final(self) -> LogitsInHalf:
        """The run of the graph as it is to be written."""
        return self.all_half if self.mixed is None else self.mixed
