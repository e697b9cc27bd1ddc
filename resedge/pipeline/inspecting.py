"""`resedge inspect` and `resedge doctor`: what a bundle is, what this machine can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resedge import bundle as bundles
from resedge.artifacts import Engine
from resedge.bundle import Bundle
from resedge.errors import InputRefused, RuntimeUnavailable
from resedge.pipeline import machine
from resedge.pipeline.options import RUNTIMES
from resedge.protocols import Probe

Line = tuple[str, str]


def inspect(path: Path) -> list[Line]:
    """Describe a bundle, after its files were checked by digest; no runtime is loaded.

    Raises:
        InputRefused: No bundle, or one whose files are not those of its manifest.
    """
    if path.is_file():
        raise InputRefused(
            "is a file; so far only bundles are inspected.",
            where=str(path),
            cure="Name a bundle's folder.",
        )
    bundle = bundles.read(path)
    bundles.check(bundle)
    manifest = bundle.manifest
    model, prep = manifest.model, manifest.preprocessing
    shape = ", ".join(str(size) for size in model.input.shape)
    signed = "signed" if (path / bundles.SIGNATURE).exists() else "not signed"
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
            f"/ {_numbers(prep.std)}",
        ),
        ("classes", ", ".join(manifest.labels)),
        ("int8 (cpu)", f"written for a CPU with {', '.join(manifest.target.cpu_features) or '-'}"),
        *(("engine", _engine_line(bundle, engine)) for engine in manifest.engines),
        *(
            ("file", f"{a.path.as_posix()}  {_size(path / a.path)}  sha256 {a.sha256[:12]}")
            for a in manifest.files
        ),
        ("made with", ", ".join(f"{name} {v}" for name, v in manifest.toolchain.items())),
        ("all files", f"{len(manifest.files)}, each as the manifest names it"),
    ]


def _engine_line(bundle: Bundle, engine: Engine) -> str:
    names = ", ".join(a.path.as_posix() for a in (engine.artifact, *engine.companions))
    return f"{engine.runtime}:{engine.precision} ({engine.runtime} {engine.version}): {names}"


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


@dataclass(frozen=True)
class Diagnosis:
    """What is here: the machine, a probe or the reason of its absence for each runtime."""

    machine: machine.Machine
    runtimes: tuple[Probe | RuntimeUnavailable, ...]


def diagnose() -> Diagnosis:
    """Probe every runtime of this machine."""
    from resedge.runtimes.table import runtime

    def probe(name: str) -> Probe | RuntimeUnavailable:
        try:
            return runtime(name).probe()
        except RuntimeUnavailable as error:
            return error

    return Diagnosis(machine.describe(), tuple(probe(name) for name in RUNTIMES))
