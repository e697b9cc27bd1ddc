"""The manifest: what a bundle says of itself, every file in it by digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from resedge.artifacts import Artifact, Engine, JsonValue, Preprocessing, TensorSpec
from resedge.errors import InputRefused

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
GOLDEN = "golden/golden.safetensors"
THRESHOLDS = "golden/trial.json"
AGENT = "device/resedge-agent.pyz"
AGENT_SIGNATURE = "device/resedge-agent.pyz.sig"


@dataclass(frozen=True)
class ModelInfo:
    """What the model is: its source, the reference that verdicts are against, and its border."""

    name: str
    reference: str
    batchnorm: str
    input: TensorSpec
    output: TensorSpec


@dataclass(frozen=True)
class Target:
    """What the bundle is for; None where it does not say.

    `cpu_features` are those that the INT8 graph for CPUs was written for.
    """

    runtimes: tuple[str, ...]
    cpu_features: tuple[str, ...] = ()
    jetpack: str | None = None
    tensorrt: str | None = None
    compute_capability: str | None = None


@dataclass(frozen=True)
class Signing:
    """Who signs: the namespace and the key's fingerprint. The signature itself is manifest.sig."""

    namespace: str
    key: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; paths are relative to the bundle.

    `counter` grows with every change. `expires` and `signed_at` are UTC, ISO 8601 to the second
    ("2026-03-01T12:00:00Z"); they and `signing` are None until the bundle is signed.
    """

    format_version: int
    counter: int
    expires: str | None
    signing: Signing | None
    signed_at: str | None
    model: ModelInfo
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    target: Target
    files: tuple[Artifact, ...]
    engines: tuple[Engine, ...]
    toolchain: Mapping[str, str]
    parents: Mapping[str, str]
    trtexec: Mapping[str, JsonValue]

    @property
    def outside(self) -> Preprocessing | None:
        """What is left to do to a frame before an engine gets it; None where its graph does all."""
        return None if self.model.input.dtype == "uint8" else self.preprocessing


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, its manifest read and its files not yet looked at."""

    path: Path
    manifest: Manifest

    def file(self, relative: str) -> Artifact:
        """Return the file of that path, to be read through its digest.

        Raises:
            InputRefused: The manifest names no such file.
        """
        for artifact in self.manifest.files:
            if artifact.path.as_posix() == relative:
                return artifact.under(self.path)
        raise InputRefused(f"names no {relative}.", where=str(self.path / MANIFEST))

    def engine(self, runtime: str, precision: str) -> Engine | None:
        """Return that engine with its paths resolved, or None where the bundle has none."""
        for engine in self.manifest.engines:
            if (engine.runtime, engine.precision) == (runtime, precision):
                return resolve(engine, self.path)
        return None


def resolve(engine: Engine, root: Path) -> Engine:
    """Return an engine of a manifest with its paths below `root`."""
    return replace(
        engine,
        artifact=engine.artifact.under(root),
        companions=tuple(companion.under(root) for companion in engine.companions),
    )


def unsigned(manifest: Manifest) -> Manifest:
    """Return a manifest without what signing adds to one: times, the signer, and the agent's files."""
    return replace(
        manifest,
        expires=None,
        signing=None,
        signed_at=None,
        files=tuple(a for a in manifest.files if a.path.as_posix() not in (AGENT, AGENT_SIGNATURE)),
    )
