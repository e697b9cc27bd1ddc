"""The bundle: a folder whose manifest names every file in it by digest.

    manifest.json   reference/   onnx/   engines/   calibration/   golden/   verdicts/

A bundle is published whole: it is staged beside its place and renamed into it. A bundle that is read is
checked against its manifest; what the manifest does not name, lacks or names by another digest is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from resedge import files
from resedge.artifacts import (
    FORMAT_VERSION,
    Artifact,
    Engine,
    JsonValue,
    Preprocessing,
    TensorSpec,
    canonical_json,
    encode,
    load,
    parse_json,
    read_text,
    sha256_bytes,
    sha256_file,
)
from resedge.errors import InputRefused, StaleArtifact

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"


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
    """The content of manifest.json; paths are relative to the bundle."""

    format_version: int
    counter: int
    expires: str | None
    signing: Signing | None
    model: ModelInfo
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    target: Target
    files: tuple[Artifact, ...]
    engines: tuple[Engine, ...]
    toolchain: Mapping[str, str]
    parents: Mapping[str, str]
    trtexec: Mapping[str, JsonValue]


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


def is_bundle(path: Path) -> bool:
    """Whether a folder has a manifest."""
    return (path / MANIFEST).is_file()


def read(path: Path) -> Bundle:
    """Read a bundle's manifest.

    Raises:
        InputRefused: No such folder, no bundle, or a manifest of another format version or form.
    """
    where = path / MANIFEST
    if not is_bundle(path):
        reason = "is not a bundle: it has no manifest.json." if path.exists() else "does not exist."
        raise InputRefused(reason, where=str(path), cure="Make one with `resedge export`.")
    document = parse_json(read_text(where), str(where))
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise InputRefused(
            f"has format version {version!r}, this resedge reads {FORMAT_VERSION}.",
            where=str(where),
            cure="Use the resedge that wrote it, or export again.",
        )
    return Bundle(path, load(Manifest, where))


def check(bundle: Bundle) -> None:
    """Check that the folder holds exactly the manifest's files with the manifest's digests.

    Raises:
        StaleArtifact: A file is missing, changed, or not in the manifest; it is named.
    """
    named = {artifact.path.as_posix(): artifact.sha256 for artifact in bundle.manifest.files}
    present = set(_files_below(bundle.path)) - {MANIFEST, SIGNATURE}
    cure = "Run `resedge export` again to write the bundle anew."
    for extra in sorted(present - set(named)):
        raise StaleArtifact("is not in the manifest.", where=str(bundle.path / extra), cure=cure)
    for missing in sorted(set(named) - present):
        raise StaleArtifact("is missing.", where=str(bundle.path / missing), cure=cure)
    for name, digest in named.items():
        if sha256_file(bundle.path / name) != digest:
            raise StaleArtifact(
                "is not the file that the manifest names.", where=str(bundle.path / name), cure=cure
            )


@dataclass(frozen=True)
class Published:
    """What `publish` did: the bundle, and whether anything had to be written."""

    bundle: Bundle
    changed: bool
    dropped_signature: bool


def check_place(out: Path) -> None:
    """Check, before any work is done, that a bundle can be written to `out`.

    Raises:
        InputRefused: It is a file, a folder with something else in it, or not writable.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputRefused("is not a folder.", where=str(out), cure="Name another folder with --out.")
    if out.exists() and any(out.iterdir()) and not is_bundle(out):
        raise InputRefused(
            "holds something that is not a bundle; nothing was written.",
            where=str(out),
            cure="Name another folder with --out.",
        )
    parent = out.absolute().parent
    if not parent.is_dir():
        raise InputRefused("does not exist.", where=str(parent), cure="Make the folder first.")
    probe = parent / f".{out.name}.probe{files.ASIDE_SUFFIX}"
    with files.disk_errors(parent):
        probe.touch()
        probe.unlink()


def publish(manifest: Manifest, sources: Mapping[str, Path], out: Path, *, locks: Path) -> Published:
    """Write a bundle to `out`, or find that it is there already.

    Args:
        manifest: Counter and signing are set here: the counter is one more than the old bundle's.
        sources: Where to copy each of the manifest's files from, by its path in the bundle.
        out: The bundle's folder; its parent must exist.
        locks: A folder for the lock that keeps two writers of one bundle apart.

    Raises:
        InputRefused: `out` is something else, or not writable, or another process is writing it.
        MachineFailure: The disk is full.
    """
    out = out.absolute()
    with _writing(out, locks):
        files.recover_folder(out)
        check_place(out)
        old = read(out) if is_bundle(out) else None
        if old is not None and _same_content(old, manifest):
            return Published(old, changed=False, dropped_signature=False)
        counter = old.manifest.counter + 1 if old is not None else 1
        manifest = replace(manifest, counter=counter, signing=None)
        staged = out.with_name(f".{out.name}.staged{files.ASIDE_SUFFIX}")
        signed = old is not None and (out / SIGNATURE).exists()
        with files.disk_errors(staged):
            shutil.rmtree(staged, ignore_errors=True)
            try:
                _stage(manifest, sources, staged)
                files.publish_folder(staged, out)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
    return Published(Bundle(out, manifest), changed=True, dropped_signature=signed)


def _stage(manifest: Manifest, sources: Mapping[str, Path], staged: Path) -> None:
    staged.mkdir()
    for artifact in manifest.files:
        target = staged / artifact.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources[artifact.path.as_posix()], target)
        if sha256_file(target) != artifact.sha256:
            raise StaleArtifact("changed while the bundle was written.", where=str(artifact.path))
    (staged / MANIFEST).write_text(canonical_json(encode(manifest)), encoding="utf-8")


def _same_content(old: Bundle, manifest: Manifest) -> bool:
    same = replace(manifest, counter=old.manifest.counter, signing=old.manifest.signing)
    if canonical_json(encode(old.manifest)) != canonical_json(encode(same)):
        return False
    try:
        check(old)
    except StaleArtifact:
        return False
    return True


def _writing(out: Path, locks: Path) -> AbstractContextManager[object]:
    lock = FileLock(locks / f"bundle-{sha256_bytes(str(out).encode())[:24]}.lock")
    try:
        return lock.acquire(timeout=60)
    except Timeout as error:
        raise InputRefused(
            "is being written by another resedge.",
            where=str(out),
            cure="Wait until it has finished.",
        ) from error


def _files_below(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    )
