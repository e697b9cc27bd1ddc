"""Whether a bundle can run on a device, from its manifest and the device's facts, before anything is sent.

It is no promise: the trial on the device is the judge. It saves sending what cannot run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from resedge.artifacts import Artifact
from resedge.bundle import Manifest
from resedge.engines import BUILT_ON_DEVICE, GRAPHS, EngineName
from resedge.errors import InputRefused, RuntimeUnavailable
from resedge.shipping.wire import Facts

# What is taken where nobody names an engine: the first that the bundle has and that fits.
PREFERENCE: Final[tuple[EngineName, ...]] = (
    ("tensorrt", "int8"),
    ("tensorrt", "fp16"),
    ("openvino", "int8"),
    ("onnxruntime", "int8"),
    ("openvino", "fp16"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp32"),
)
_INT8_FOR_CPUS: Final = "onnx/int8.cpu"
_CURE: Final = "Name another engine with --backend, or export a bundle for this device."


def choose(manifest: Manifest, facts: Facts, wanted: EngineName | None = None) -> EngineName:
    """Return the engine to run on a device: the one that is wanted, or the first of `PREFERENCE` that fits.

    Raises:
        RuntimeUnavailable: No runtime of these is on the device.
        InputRefused: One is, and the bundle does not fit; every reason is given.
    """
    offered = [wanted] if wanted else [name for name in PREFERENCE if files_of(manifest, name)]
    refusals = {name: misfits(manifest, facts, name) for name in offered}
    for name, reasons in refusals.items():
        if not reasons:
            return name
    texts = [f"{':'.join(name)}: {', '.join(reasons)}" for name, reasons in refusals.items()]
    what = f"the bundle does not fit this device: {'; '.join(texts) or 'it has no engine and no graph'}."
    if offered and not any(_is_here(facts, name) for name in offered):
        raise RuntimeUnavailable(what, cure="Install one of these runtimes on the device.")
    raise InputRefused(what, cure=_CURE)


def misfits(manifest: Manifest, facts: Facts, name: EngineName) -> tuple[str, ...]:
    """Return why an engine of a bundle cannot run on a device, each in a few words; nothing where it can."""
    return tuple(_misfits(manifest, facts, name))


def files_of(manifest: Manifest, name: EngineName) -> tuple[Artifact, ...]:
    """Return the files of a bundle that an engine is opened or built from."""
    for engine in manifest.engines:
        if (engine.runtime, engine.precision) == name and name[0] not in BUILT_ON_DEVICE:
            return (engine.artifact, *engine.companions)
    return tuple(a for a in manifest.files if a.path.as_posix() == GRAPHS.get(name))


def _misfits(manifest: Manifest, facts: Facts, name: EngineName) -> Iterator[str]:
    runtime, precision = name
    if not files_of(manifest, name):
        yield "the bundle has neither this engine nor the graph that it is built from"
    if runtime not in manifest.target.runtimes:
        yield f"the bundle is for {', '.join(manifest.target.runtimes)}"
    found = facts.runtime(runtime)
    if found is None or found.version is None:
        yield (found.absent if found else None) or f"runtime '{runtime}' is not known to the agent"
    elif precision not in found.precisions:
        yield f"{runtime} {found.version} computes {', '.join(found.precisions)} there"
    if precision == "int8" and runtime not in BUILT_ON_DEVICE and _saturates(manifest, facts):
        yield "its INT8 graph was written for a CPU with VNNI, and there pairs of 8-bit products saturate"
    yield from _other_targets(manifest, facts)


def _other_targets(manifest: Manifest, facts: Facts) -> Iterator[str]:
    """Compare what the bundle says of a Jetson with what the device is."""
    target, jetson, tensorrt = manifest.target, facts.jetson, facts.runtime("tensorrt")
    installed = (tensorrt.version if tensorrt else None) or (jetson.tensorrt if jetson else None)
    for what, wanted, found in (
        ("JetPack", target.jetpack, jetson.jetpack if jetson else None),
        ("TensorRT", target.tensorrt, installed),
        ("compute capability", target.compute_capability, jetson.compute_capability if jetson else None),
    ):
        if wanted is not None and not _is_version(found, wanted):
            yield f"it is for {what} {wanted}, and there is {found or 'none that is known'}"


def _is_here(facts: Facts, name: EngineName) -> bool:
    found = facts.runtime(name[0])
    return found is not None and found.version is not None


def _saturates(manifest: Manifest, facts: Facts) -> bool:
    graphs = [artifact for artifact in manifest.files if artifact.kind == _INT8_FOR_CPUS]
    return not facts.exact_int8 and not all(graph.meta.get("pair_safe") for graph in graphs)


def _is_version(found: str | None, wanted: str) -> bool:
    """Whether a version is the one that is wanted, whose last numbers may be left out."""
    return found is not None and f"{found}.".startswith(f"{wanted.rstrip('.')}.")
