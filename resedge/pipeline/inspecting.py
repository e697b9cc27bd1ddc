"""`resedge inspect` and `resedge doctor`: what a bundle is, what this machine can run."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resedge import bundle as bundles
from resedge import machine
from resedge.artifacts import Engine, Preprocessing
from resedge.bundle import Bundle
from resedge.errors import RuntimeUnavailable
from resedge.jetson import device
from resedge.jetson.device import Jetson
from resedge.pipeline.options import RUNTIMES
from resedge.pipeline.recognising import recognise
from resedge.pipeline.staging import versions
from resedge.protocols import Probe

Line = tuple[str, str]

SATURATES = (
    "this bundle's INT8 graph for CPUs was written for one with VNNI; this one adds pairs of 8-bit products "
    "in 16 bits, where they saturate. Export it on a CPU like this one"
)
_LIBRARIES = ("torch", "onnx", "onnxscript", "scipy", "pillow", "numpy")


def saturates_here(bundle: Bundle) -> bool:
    """Whether this machine would saturate in the bundle's INT8 graph for CPUs."""
    graph = bundle.file("onnx/int8.cpu.onnx")
    return machine.describe().saturates_pairs and not graph.meta["pair_safe"]


def inspect(path: Path) -> list[Line]:
    """Describe a bundle, after its files were checked by digest, or a file; no runtime is loaded.

    Raises:
        InputRefused: No bundle, one whose files are not those of its manifest, or a file of no known kind.
        RuntimeUnavailable: Reading this kind of file takes a library that is not installed.
    """
    if path.is_file():
        return recognise(path)
    bundle = bundles.read(path)
    bundles.check(bundle)
    manifest = bundle.manifest
    model, prep = manifest.model, manifest.preprocessing
    shape = ", ".join(str(size) for size in model.input.shape)
    signed = "not signed"
    if manifest.signing is not None and (path / bundles.SIGNATURE).exists():
        says = f"says that {manifest.signing.key} signed it at {manifest.signed_at}"
        signed = f"{says}, expires {manifest.expires}; `resedge keys verify` checks that"
    return [
        (
            "bundle",
            f"{path}, format {manifest.format_version}, counter {manifest.counter}, {signed}",
        ),
        ("model", f"{model.name}; reference: {model.reference}"),
        ("input", f"{model.input.name} ({shape}) {model.input.dtype}"),
        (
            "images",
            f"{prep.width} x {prep.height} {prep.channels}, (value / 255 - {_numbers(prep.mean)}) "
            f"/ {_numbers(prep.std)}{_scaled(prep)}",
        ),
        ("classes", ", ".join(manifest.labels)),
        ("int8 (cpu)", f"written for a CPU with {', '.join(manifest.target.cpu_features) or '-'}"),
        *(("engine", _engine_line(bundle, engine)) for engine in manifest.engines),
        *(
            ("file", f"{a.path.as_posix()}  {_size(path / a.path)}  sha256 {a.sha256[:12]}")
            for a in manifest.files
        ),
        *(("trtexec", f"{graph}: {line}") for graph, line in _trtexec(bundle)),
        ("made with", ", ".join(f"{name} {v}" for name, v in manifest.toolchain.items())),
        ("all files", f"{len(manifest.files)}, each as the manifest names it"),
    ]


def _trtexec(bundle: Bundle) -> list[Line]:
    """Return the lines that build the graphs for TensorRT, to be run in the bundle's folder."""
    return [
        (f"{graph} with {version}", str(line))
        for graph, lines in bundle.manifest.trtexec.items()
        if isinstance(lines, Mapping)
        for version, line in lines.items()
    ]


def _engine_line(bundle: Bundle, engine: Engine) -> str:
    names = ", ".join(a.path.as_posix() for a in (engine.artifact, *engine.companions))
    return f"{engine.runtime}:{engine.precision} ({engine.runtime} {engine.version}): {names}"


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _scaled(prep: Preprocessing) -> str:
    if prep.resize is None:
        return ""
    height, width = prep.resize
    return f"; files scaled to cover {width} x {height} ({prep.interpolation}), the middle cut out"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


@dataclass(frozen=True)
class Diagnosis:
    """What is here: the machine, the libraries, a probe or the reason of its absence for each runtime."""

    machine: machine.Machine
    python: str
    libraries: tuple[str, ...]
    runtimes: tuple[Probe | RuntimeUnavailable, ...]
    jetson: Jetson | None


def diagnose(root: Path = device.ROOT) -> Diagnosis:
    """Probe every runtime of this machine; `root` is where a Jetson's files lie."""
    from resedge.runtimes.table import runtime

    def probe(name: str) -> Probe | RuntimeUnavailable:
        try:
            return runtime(name).probe()
        except RuntimeUnavailable as error:
            return error

    installed = versions(*_LIBRARIES)
    return Diagnosis(
        machine.describe(),
        platform.python_version(),
        tuple(
            f"{name} {'is missing' if installed[name] == 'absent' else installed[name]}"
            for name in _LIBRARIES
        ),
        tuple(probe(name) for name in RUNTIMES),
        device.read(root),
    )
