"""The graphs for TensorRT, parsed and built by TensorRT for RTX where it is installed: no GPU is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resedge.artifacts import Artifact
from resedge.errors import MachineFailure, RuntimeUnavailable, UsageError
from resedge.pipeline.reporting import Reporter
from resedge.pipeline.staging import Done, Site, run_stage, versions
from resedge.runtimes.rtx_preflight import TARGET, Preflight, preflight
from resedge.runtimes.tensorrt_rtx import CURE, DISTRIBUTIONS, installed_version
from resedge.store import Key

_PROVES = (
    "so NVIDIA's parser and builder take these graphs, and their layers have these types; what a Jetson "
    "fuses, how fast it is and what accuracy it keeps, it alone can show"
)


def preflights(
    site: Site, graphs: Sequence[Artifact], batch_range: tuple[int, int, int]
) -> Mapping[str, Done[Preflight]]:
    """Look at each graph; return what was found by its place in the bundle.

    What cannot be looked at is missing from it and the reason is said: an export does not fail for that.
    """
    if not graphs:
        return {}
    if installed_version() is None:
        site.reporter.note(
            f"NVIDIA's parser has not looked at the graphs for TensorRT. {CURE} (no GPU needed)"
        )
        return {}
    found: dict[str, Done[Preflight]] = {}
    for graph in graphs:
        try:
            done = looked_at(site, graph, batch_range)
        except (RuntimeUnavailable, UsageError, MachineFailure) as error:
            site.reporter.warn(f"{graph.path.name} is not looked at by NVIDIA's parser: {error}")
            continue
        _say(site.reporter, graph.path.name, done)
        found[f"onnx/{graph.path.name}"] = done
    if any(done.value.accepted for done in found.values()):
        site.reporter.note(_PROVES)
    return found


def looked_at(site: Site, graph: Artifact, batch_range: tuple[int, int, int]) -> Done[Preflight]:
    """Look at one graph, once for each version of TensorRT for RTX.

    Raises:
        RuntimeUnavailable: It cannot be loaded, or is too old.
        MachineFailure: It ran into a limit of time or memory.
    """
    key = Key(
        "preflight",
        inputs={"graph": graph.sha256},
        options={"batch_range": list(batch_range), "compute_capability": TARGET},
        versions=versions(*DISTRIBUTIONS),
    )
    return run_stage(site, key, Preflight, lambda _: preflight(graph, batch_range))


def _say(reporter: Reporter, name: str, done: Done[Preflight]) -> None:
    found = done.value
    if not found.accepted:
        reporter.warn(f"{name}: {found.sentence()}")
        return
    reporter.stage("preflight", f"{name}: {found.sentence()}", reused=done.reused)
    if found.layers is not None and found.layers.fell_back:
        reporter.warn(f"{name}: INT8 in the graph and not in the plan: {', '.join(found.layers.fell_back)}")
