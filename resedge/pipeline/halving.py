"""FP16: a graph tried in half, the nodes that its FP16 forms keep in FP32, and the writing of these forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resedge.artifacts import Artifact, encode
from resedge.errors import InputRefused
from resedge.export.halfrange import LARGEST, LIMIT
from resedge.export.halfreport import HalfReport, NodeInHalf
from resedge.pipeline.reporting import Reporter
from resedge.pipeline.staging import Done, Site, run_stage, versions
from resedge.protocols import Float32Array
from resedge.store import Key

if TYPE_CHECKING:
    from torch import fx

Extremes = Mapping[str, tuple[float, float]]  # a tensor's least and largest value

HALF_IMAGES: Final = 8  # what overflows shows on few
HALF_WORK: Final = 10_000_000_000  # multiply-accumulates of them all: some seconds of torch's half on a CPU
_NAMED = 5


@dataclass(frozen=True)
class Wide:
    """A node that the FP16 graphs keep in FP32; `why` goes on where its name ends."""

    node: str
    why: str


def try_in_half(graph: fx.GraphModule, fp32: Artifact, images: Float32Array) -> HalfReport:
    """Run the folded graph in torch's half on the first images, fewer of them for a large network.

    Args:
        graph: `Folded.graph`.
        fp32: The file that was written of it.
        images: (N, *input_shape) float32, prepared.

    Raises:
        NotFinite: The logits hold NaN or infinity in float32.
    """
    from resedge.calibration.layers import layers_of
    from resedge.export.halfrun import run_half

    work = max(sum(layer.macs for layer in layers_of(fp32)), 1)
    return run_half(graph, fp32, images[: min(max(HALF_WORK // work, 1), HALF_IMAGES)])


def wide_in_all(graphs: Iterable[tuple[Artifact, Extremes]], tried: Sequence[str]) -> tuple[str, ...]:
    """Return the nodes to keep in FP32: those of the run in half, and those of the calibration images.

    Args:
        graphs: FP32 graphs of the same nodes, each with its tensors' extremes on these images.
        tried: The nodes that the run in half found.
    """
    from resedge.export.halfrange import wide_nodes

    found = set(tried)
    for fp32, extremes in graphs:
        found |= wide_nodes(fp32, {tensor: max(-low, high) for tensor, (low, high) in extremes.items()})
    return tuple(sorted(found))


def explain_wide(report: HalfReport, extremes: Extremes, names: AbstractSet[str]) -> tuple[Wide, ...]:
    """Say of each node that stays FP32 why, in the graph's order."""
    weights = {entry.name: entry.largest for entry in report.weights}
    return tuple(
        Wide(node.name, _why(node, report, extremes, weights.get(node.name, 0.0)))
        for node in report.nodes
        if node.name in names
    )


def _why(node: NodeInHalf, report: HalfReport, extremes: Extremes, weight: float) -> str:
    low, high = extremes.get(node.tensor, (0.0, 0.0))
    largest = max(node.largest, -low, high)
    if largest > LIMIT:
        return f"reaches {largest:,.0f}"
    if weight > LARGEST:
        return f"has a weight of {weight:,.0f}"
    return "gives no number in FP16" if node.name in report.overflowing else "reads or feeds such numbers"


def half_graphs(
    site: Site, fp32: Artifact, int8: Artifact, report: HalfReport, wide: Sequence[Wide]
) -> tuple[Done[Artifact], ...]:
    """Write the graphs for TensorRT; what has no FP16 form is said, and its engine is then missing."""
    if report.final.largest_difference is None:
        site.reporter.warn(
            f"no graphs for TensorRT: FP16 gives infinity or NaN on {report.images} images, even with "
            f"{len(report.wide)} of {len(report.nodes)} nodes in FP32"
        )
        return ()
    halves = []
    for graph, name in ((fp32, "fp16.onnx"), (int8, "int8.tensorrt.onnx")):
        try:
            done = half_graph(site, graph, name, [entry.node for entry in wide])
        except InputRefused as error:
            site.reporter.warn(f"no {name}: {error}")
            continue
        site.reporter.stage("onnx", f"{name}, strongly typed for TensorRT", reused=done.reused)
        if done.value.meta["underflowed"]:
            site.reporter.note(f"{done.value.meta['underflowed']:,} of the weights in it are zero in FP16")
        halves.append(done)
    if halves and wide:
        _say_wide(site.reporter, report, wide)
    return tuple(halves)


def half_graph(site: Site, graph: Artifact, name: str, wide: Sequence[str]) -> Done[Artifact]:
    """Write onnx/NAME, the strongly typed FP16 form of a graph (plain, or with Q/DQ), `wide` nodes in FP32.

    Raises:
        InputRefused: A weight or a scale has no FP16 value; the tensor is named.
    """
    key = Key(
        f"half-{name}",
        inputs={"graph": graph.sha256},
        options={"wide": encode(sorted(wide))},
        versions=versions("onnx", "onnx-ir", "numpy"),
    )

    def make(folder: Path) -> Artifact:
        from resedge.calibration.rules import check_qdq
        from resedge.export.half import write_half

        (folder / "onnx").mkdir()
        written = write_half(graph, folder / "onnx" / name, frozenset(wide))
        if "scheme" in written.meta:
            check_qdq(written, str(written.meta["scheme"]))
        return written

    return run_stage(site, key, Artifact, make)


def _say_wide(reporter: Reporter, report: HalfReport, wide: Sequence[Wide]) -> None:
    named = "; ".join(f"{entry.node} {entry.why}" for entry in wide[:_NAMED])
    more = f"; and {len(wide) - _NAMED} more (`resedge explain`)" if len(wide) > _NAMED else ""
    reporter.note(
        f"{len(wide)} of {len(report.nodes)} nodes stay FP32 in the graphs for TensorRT, beyond half of "
        f"FP16's {LARGEST:,.0f}: {named}{more}"
    )
