"""Writing a bundle whole: staged beside its place and renamed into it, or swapped with what stands there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from resedge import files
from resedge.artifacts import canonical_json, encode, sha256_file
from resedge.bundle.manifest import MANIFEST, SIGNATURE, Bundle, Manifest, unsigned
from resedge.bundle.reading import check, is_bundle, read, reading_errors, unnamed
from resedge.errors import InputRefused, StaleArtifact

_ANOTHER_PLACE = "Name another folder with --out."
_LOCK_SECONDS = 60.0
_NAMED_IN_ERRORS = 5

Seal = Callable[[bytes], bytes]


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


def publish(
    manifest: Manifest, sources: Mapping[str, Path], out: Path, seal: Seal | None = None
) -> Published:
    """Write a bundle to `out`, or find that it is there already.

    The parent of `out` is locked meanwhile, which keeps the writers of one place apart whatever name they
    reach it by; the lock leaves no file and ends with the process.

    Args:
        manifest: Its counter is set here, to one more than the old bundle's.
        sources: Where to copy each of the manifest's files from, by its path in the bundle.
        out: The bundle's folder; its parent must exist.
        seal: Signs the bytes of manifest.json. A bundle is then written anew whatever stands there; without
            it the bundle is unsigned, and a signed one of the same content stays.

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
        if seal is None and old is not None and _same_content(old, manifest):
            return Published(old, changed=False, dropped_signature=False)
        counter = old.manifest.counter + 1 if old is not None else 1
        manifest = replace(manifest if seal else unsigned(manifest), counter=counter)
        staged = out.with_name(f".{out.name}.staged{files.ASIDE_SUFFIX}")
        signed = old is not None and (out / SIGNATURE).exists()
        with files.disk_errors(staged):
            shutil.rmtree(staged, ignore_errors=True)
            try:
                _stage(manifest, sources, staged, seal)
                files.publish_folder(staged, out)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
    return Published(Bundle(out, manifest), changed=True, dropped_signature=signed and seal is None)


def _place(out: Path) -> Path:
    """Return the one name of a place, however it is reached; what a folder cannot replace is refused.

    Raises:
        InputRefused: As `check_place`.
    """
    with reading_errors(out):
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
    with reading_errors(out):
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
    if strange := unnamed(old):
        more = len(strange) - _NAMED_IN_ERRORS
        names = ", ".join(strange[:_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
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


def _stage(manifest: Manifest, sources: Mapping[str, Path], staged: Path, seal: Seal | None) -> None:
    staged.mkdir()
    for artifact in manifest.files:
        target = staged / artifact.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources[artifact.path.as_posix()], target)
        if sha256_file(target) != artifact.sha256:
            raise StaleArtifact("changed while the bundle was written.", where=str(artifact.path))
    text = canonical_json(encode(manifest)).encode()
    (staged / MANIFEST).write_bytes(text)
    if seal is not None:
        (staged / SIGNATURE).write_bytes(seal(text))


def _same_content(old: Bundle, manifest: Manifest) -> bool:
    same = replace(unsigned(manifest), counter=old.manifest.counter)
    if canonical_json(encode(unsigned(old.manifest))) != canonical_json(encode(same)):
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
        with reading_errors(out.parent):
            try:
                stack.enter_context(files.locked_folder(out.parent, _LOCK_SECONDS))
            except TimeoutError as error:
                raise InputRefused(
                    "is being written by another resedge.",
                    where=str(out),
                    cure="Wait until it has finished.",
                ) from error
        yield
