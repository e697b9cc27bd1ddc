"""`resedge explain`: what INT8 and FP16 cost a bundle's model, layer by layer, and what each cure buys."""

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
from resedge.export.halfreport import HalfReport, NodeInHalf, WeightsInHalf
from resedge.pipeline.calibrating import LayersDocument, RangesDocument
from resedge.pipeline.halving import Extremes, Wide, explain_wide

COARSE = 20.0  # dB; below it a tenth of the signal's amplitude is noise
_CLIPPED = 0.9  # of an end of the values; a range that ends before it is said
_FAINT = 0.1  # of a node's values; where more lose digits in FP16 it is said
_NAMED = 5
_CURES = 3

_HALF = "onnx/half.json"
_HALF_GRAPHS = ("onnx/fp16.onnx", "onnx/int8.tensorrt.onnx")

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
class InHalf:
    """What FP16 does to a model, and the graphs of the bundle that are in it.

    `wide` are the nodes that stay FP32 in these. Of the others `weights` lose some that become zero, and of
    what `faint` write a part worth naming is below 6.1e-5, the most first.
    """

    report: HalfReport
    graphs: tuple[str, ...]
    wide: tuple[Wide, ...]
    weights: tuple[WeightsInHalf, ...]
    faint: tuple[NodeInHalf, ...]


@dataclass(frozen=True)
class Explanation:
    """What is known of a bundle's INT8 and FP16 graphs.

    `methods` and `fits` map a scheme to its bake-offs. `layers` is empty where nothing was measured.
    `search` has what stays float, and what was tried for the budget. `half` is None in a bundle from before
    models were tried in half.
    """

    methods: Mapping[str, BakeOff]
    fits: Mapping[str, BakeOff]
    layers: tuple[Sensitivity, ...]
    clipped: tuple[Clipped, ...]
    half: InHalf | None
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
        half=_half(bundle, ranges.extremes),
        cures=_cures(found),
        search=layers.search,
        max_drop=layers.max_drop,
    )


def _document(kind: type[T], bundle: Bundle, name: str) -> T:
    file = bundle.file(name)
    return decode(kind, parse_json(file.read().decode(), str(file.path)), str(file.path))


def _half(bundle: Bundle, extremes: Extremes) -> InHalf | None:
    files = {artifact.path.as_posix(): artifact for artifact in bundle.manifest.files}
    if _HALF not in files:
        return None
    report = _document(HalfReport, bundle, _HALF)
    written = {name: files[name].meta["wide"] for name in _HALF_GRAPHS if name in files}
    names = frozenset(report.wide).union(
        *(decode(tuple[str, ...], wide, name) for name, wide in written.items())
    )
    faint = [node for node in report.nodes if node.underflow > _FAINT and node.name not in names]
    return InHalf(
        report,
        tuple(written),
        explain_wide(report, extremes, names),
        tuple(entry for entry in report.weights if entry.zero and entry.name not in names),
        tuple(sorted(faint, key=lambda node: -node.underflow)[:_NAMED]),
    )


def _clipped(document: RangesDocument) -> tuple[Clipped, ...]:
    """Return the tensors of which most is cut off, by the shorter of both ends in any scheme.

    Schemes whose graphs hold other values in a tensor, one of them equalised, have an entry each.
    """
    found: dict[tuple[str, tuple[float, float]], dict[str, tuple[float, float]]] = {}
    shortest: dict[tuple[str, tuple[float, float]], float] = {}
    for scheme, choice in document.schemes.items():
        for tensor, (low, high) in choice.ranges.table.items():
            values = choice.extremes[tensor]
            ends = zip((low, high), values, strict=True)
            left = min((end / value for end, value in ends if value), default=1.0)
            if left < _CLIPPED:
                found.setdefault((tensor, values), {})[scheme] = (low, high)
                shortest[tensor, values] = min(left, shortest.get((tensor, values), left))
    worst = sorted(found, key=lambda held: shortest[held])[:_NAMED]
    return tuple(Clipped(tensor, found[tensor, values], values) for tensor, values in worst)


def _cures(layers: tuple[Sensitivity, ...]) -> tuple[Cure, ...]:
    """Return the layers that buy most for the work that leaves INT8."""
    helping = [layer for layer in layers if layer.kl_gain > 0]
    total = sum(layer.kl_gain for layer in helping)
    helping.sort(key=lambda layer: -layer.kl_gain / layer.share)
    return tuple(Cure(layer.name, layer.kl_gain / total, layer.share) for layer in helping[:_CURES])
