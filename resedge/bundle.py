"""The bundle: a folder whose manifest names every file in it by digest.

    manifest.json   reference/   onnx/   engines/   calibration/   golden/   verdicts/

A bundle is published whole: it is staged beside its place and renamed into it, or swapped with the one that
stands there. A bundle that is read is checked against its manifest; what the manifest does not name, lacks
or names by another digest is refused.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from resedge import files
from resedge.artifacts import (
    FORMAT_VERSION,
    Artifact,
    Engine,
    JsonValue,
    Preprocessing,
    TensorSpec,
    canonical_json,
    decode,
    encode,
    parse_json,
    read_text,
    sha256_file,
)
from resedge.errors import InputRefused, StaleArtifact

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"

MAX_MANIFEST_BYTES = 16 << 20

_ANOTHER_PLACE = "Name another folder with --out."
_LOCK_SECONDS = 60.0
_NAMED_IN_ERRORS = 5


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


def is_bundle(path: Path) -> bool:
    """Whether a folder has a manifest.

    Raises:
        InputRefused: It may not be looked into.
    """
    with _reading(path):
        try:
            return stat.S_ISREG((path / MANIFEST).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False


def read(path: Path) -> Bundle:
    """Read a bundle's manifest.

    Raises:
        InputRefused: No such folder, none that may be read, no bundle, or a manifest of another format
            version or form.
    """
    where = path / MANIFEST
    if not is_bundle(path):
        reason = "is not a bundle: it has no manifest.json." if path.exists() else "does not exist."
        raise InputRefused(reason, where=str(path), cure="Make one with `resedge export`.")
    with _reading(where):
        size = where.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        raise InputRefused(f"has {size:,} bytes, more than {MAX_MANIFEST_BYTES:,}.", where=str(where))
    document = parse_json(read_text(where), str(where))
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise InputRefused(
            f"has format version {version!r}, this resedge reads {FORMAT_VERSION}.",
            where=str(where),
            cure="Use the resedge that wrote it, or export again.",
        )
    manifest = decode(Manifest, document, str(where))
    _demand_plain_files(path, manifest)
    return Bundle(path, manifest)


def _demand_plain_files(root: Path, manifest: Manifest) -> None:
    """Refuse a bundle whose files lead elsewhere, or are pipes and devices, which could be read for ever.

    What is missing is left to whoever reads it.
    """
    engines = [artifact for engine in manifest.engines for artifact in (engine.artifact, *engine.companions)]
    names = {artifact.path for artifact in (*manifest.files, *engines)}
    folders = {parent for name in names for parent in name.parents} - {Path()}
    for name in sorted(folders | names):
        with _reading(root / name):
            try:
                mode = (root / name).lstat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
        if not (stat.S_ISREG(mode) if name in names else stat.S_ISDIR(mode)):
            raise InputRefused(
                "is a link or not a regular file; a bundle holds its files itself.", where=str(root / name)
            )


def check(bundle: Bundle) -> None:
    """Check that the folder holds exactly the manifest's files with the manifest's digests.

    Raises:
        StaleArtifact: A file is missing, changed, or not in the manifest; it is named.
        InputRefused: A file or a folder may not be read.
    """
    named = {artifact.path.as_posix(): artifact.sha256 for artifact in bundle.manifest.files}
    cure = "Run `resedge export` again to write the bundle anew."
    for extra in _unnamed(bundle):
        raise StaleArtifact(
            "is not in the manifest.", where=str(bundle.path / extra), cure="Move it elsewhere."
        )
    for missing in sorted(set(named) - set(_files_below(bundle.path))):
        raise StaleArtifact("is missing.", where=str(bundle.path / missing), cure=cure)
    for name, digest in named.items():
        with _reading(bundle.path / name):
            found = sha256_file(bundle.path / name)
        if found != digest:
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

    What a killed `publish` left of an old bundle is put back in its place.

    Raises:
        InputRefused: It is a file, a symbolic link or a mount point, holds something other than the files
            of a bundle, may not be read or written, or another process is writing there.
        MachineFailure: The disk is full or failing.
    """
    out = _place(out)
    with _alone(out):
        _standing(out)


def publish(manifest: Manifest, sources: Mapping[str, Path], out: Path) -> Published:
    """Write a bundle to `out`, or find that it is there already.

    The parent of `out` is locked meanwhile, which keeps the writers of one place apart whatever name they
    reach it by; the lock leaves no file and ends with the process.

    Args:
        manifest: Counter and signing are set here: the counter is one more than the old bundle's.
        sources: Where to copy each of the manifest's files from, by its path in the bundle.
        out: The bundle's folder; its parent must exist.

    Returns:
        What was done; its bundle's path has symbolic links resolved.

    Raises:
        InputRefused: As `check_place`, which is checked again.
        StaleArtifact: A source is not the file that the manifest names.
        MachineFailure: The disk is full or failing.
    """
    out = _place(out)
    with _alone(out):
        old = _standing(out)
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


def _place(out: Path) -> Path:
    """Return the one name of a place, however it is reached; what a folder cannot replace is refused.

    Raises:
        InputRefused: As `check_place`.
    """
    with _reading(out):
        if out.is_symlink():
            raise InputRefused("is a symbolic link.", where=str(out), cure=_ANOTHER_PLACE)
        place = Path(os.path.realpath(out))
        if place.exists() and not place.is_dir():
            raise InputRefused("is not a folder.", where=str(out), cure=_ANOTHER_PLACE)
        if place.is_mount():
            raise InputRefused("is a mount point.", where=str(out), cure="Name a folder in it with --out.")
        if not place.parent.is_dir():
            raise InputRefused("does not exist.", where=str(place.parent), cure="Make the folder first.")
    return place


def _standing(out: Path) -> Bundle | None:
    """Return the bundle that stands at `out` and may be replaced, or None where nothing stands.

    The caller holds the place's lock.

    Raises:
        MachineFailure, InputRefused: As `check_place`.
    """
    files.recover_folder(out)
    _probe_writing(out.parent, out.name)
    with _reading(out):
        if not out.exists() or not any(out.iterdir()):
            return None
    if not is_bundle(out):
        raise InputRefused(
            "holds something that is not a bundle; nothing was written.", where=str(out), cure=_ANOTHER_PLACE
        )
    old = _read_to_replace(out)
    _demand_own_files(old)
    return old


def _probe_writing(folder: Path, name: str) -> None:
    probe = folder / f".{name}.{os.getpid()}.probe{files.ASIDE_SUFFIX}"
    with files.disk_errors(folder):
        probe.touch()
        probe.unlink(missing_ok=True)


def _read_to_replace(out: Path) -> Bundle:
    try:
        return read(out)
    except InputRefused as error:
        raise InputRefused(
            error.what, where=error.where, cure="Remove the folder or name another with --out."
        ) from error


def _demand_own_files(old: Bundle) -> None:
    """Refuse to replace, and so to delete, files that resedge did not write or that are write-protected."""
    if unnamed := _unnamed(old):
        more = len(unnamed) - _NAMED_IN_ERRORS
        names = ", ".join(unnamed[:_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
        raise InputRefused(
            f"holds files that are not in its manifest: {names}; nothing was written.",
            where=str(old.path),
            cure="Move them elsewhere, or name another folder with --out.",
        )
    for root, _, _ in os.walk(old.path):
        if not os.access(root, os.W_OK | os.X_OK):
            raise InputRefused(
                "is write-protected, so the bundle cannot be replaced.",
                where=root,
                cure="Let it be written to, or name another folder with --out.",
            )


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


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the lock on the folder that `out` is in.

    Raises:
        InputRefused: The folder may not be read, or another process holds the lock for too long.
    """
    with ExitStack() as stack:
        with _reading(out.parent):
            try:
                stack.enter_context(files.locked_folder(out.parent, _LOCK_SECONDS))
            except TimeoutError as error:
                raise InputRefused(
                    "is being written by another resedge.",
                    where=str(out),
                    cure="Wait until it has finished.",
                ) from error
        yield


@contextmanager
def _reading(where: Path) -> Iterator[None]:
    """Translate an OSError of a block that only looks.

    Raises:
        InputRefused: The block raised one.
    """
    try:
        yield
    except OSError as error:
        raise InputRefused(
            f"cannot be read ({error.strerror}).",
            where=str(error.filename or where),
            cure="See that you may read it, or name another place.",
        ) from error


def _unnamed(bundle: Bundle) -> list[str]:
    """Return the files of the folder that its manifest does not name, in order."""
    named = {artifact.path.as_posix() for artifact in bundle.manifest.files}
    return sorted(set(_files_below(bundle.path)) - named - {MANIFEST, SIGNATURE})


def _files_below(folder: Path) -> list[str]:
    """Return what is no folder below `folder`; a symbolic link to one is none."""
    found = []
    with _reading(folder):
        for root, folders, names in os.walk(folder, onerror=_raise):
            links = [name for name in folders if Path(root, name).is_symlink()]
            found += [Path(root, name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise error
