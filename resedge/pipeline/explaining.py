"""`resedge explain`: what INT8 costs a bundle's model, layer by layer, and what each cure buys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from resedge import bundle as bundles
from resedge.artifacts import decode, parse_json
from resedge.bundle import Bundle
from resedge.calibration.bakeoff import BakeOff
from resedge.calibration.budget import Search, Sensitivity
from resedge.export.half import LARGEST
from resedge.pipeline.calibrating import LayersDocument, RangesDocument

COARSE = 20.0  # dB; below it a tenth of the signal's amplitude is noise
_CLIPPED = 0.9  # of an end of the values; a range that ends before it is said
_NAMED = 5
_CURES = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Clipped:
    """A tensor whose ranges, by scheme (low, high), leave out some of its values, least and largest."""

    tensor: str
    ranges: Mapping[str, tuple[float, float]]
    values: tuple[float, float]


@dataclass(frozen=True)
class Cure:
    """A layer to keep float: its part of all that such cures buy, the work that leaves INT8; fractions."""

    layer: str
    part: float
    share: float


@dataclass(frozen=True)
class Explanation:
    """What is known of a bundle's INT8 graphs.

    `methods` and `fits` map a scheme to its bake-offs. `layers` is empty where nothing was measured.
    `beyond_half` lists the tensors that FP16 cannot hold, with their largest magnitude. `search` has what
    stays float, and what was tried for the budget.
    """

    methods: Mapping[str, BakeOff]
    fits: Mapping[str, BakeOff]
    layers: tuple[Sensitivity, ...]
    clipped: tuple[Clipped, ...]
    beyond_half: tuple[tuple[str, float], ...]
    cures: tuple[Cure, ...]
    search: Search
    max_drop: float


def explain(path: Path) -> Explanation:
    """Read what calibration left in a bundle; nothing is run.

    Raises:
        InputRefused: No bundle, or one whose files are not those of its manifest.
    """
    bundle = bundles.read(path)
    bundles.check(bundle)
    ranges = _document(RangesDocument, bundle, "calibration/ranges.json")
    layers = _document(LayersDocument, bundle, "calibration/layers.json")
    found = layers.sensitivity or ()
    return Explanation(
        methods={name: choice.methods for name, choice in ranges.schemes.items()},
        fits={name: choice.fits for name, choice in ranges.schemes.items()},
        layers=found,
        clipped=_clipped(ranges),
        beyond_half=tuple(
            (name, max(-low, high))
            for name, (low, high) in ranges.extremes.items()
            if max(-low, high) > LARGEST
        ),
        cures=_cures(found),
        search=layers.search,
        max_drop=layers.max_drop,
    )


def _document(kind: type[T], bundle: Bundle, name: str) -> T:
    file = bundle.file(name)
    return decode(kind, parse_json(file.read().decode(), str(file.path)), str(file.path))


def _clipped(document: RangesDocument) -> tuple[Clipped, ...]:
    """Return the tensors of which most is cut off, by the shorter of both ends in any scheme."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    shortest: dict[str, float] = {}
    for scheme, choice in document.schemes.items():
        for tensor, (low, high) in choice.ranges.table.items():
            ends = zip((low, high), document.extremes[tensor], strict=True)
            left = min((end / value for end, value in ends if value), default=1.0)
            if left < _CLIPPED:
                found.setdefault(tensor, {})[scheme] = (low, high)
                shortest[tensor] = min(left, shortest.get(tensor, left))
    worst = sorted(found, key=lambda tensor: shortest[tensor])[:_NAMED]
    return tuple(Clipped(tensor, found[tensor], document.extremes[tensor]) for tensor in worst)


def _cures(layers: tuple[Sensitivity, ...]) -> tuple[Cure, ...]:
    """Return the layers that buy most for the work that leaves INT8."""
    helping = [layer for layer in layers if layer.kl_gain > 0]
    total = sum(layer.kl_gain for layer in helping)
    helping.sort(key=lambda layer: -layer.kl_gain / layer.share)
    return tuple(Cure(layer.name, layer.kl_gain / total, layer.share) for layer in helping[:_CURES])
