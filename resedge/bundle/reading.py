"""Reading a bundle: its manifest first, then its files against it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from resedge.artifacts import FORMAT_VERSION, decode, parse_json, read_text, sha256_file
from resedge.bundle.manifest import MANIFEST, SIGNATURE, Bundle, Manifest
from resedge.errors import InputRefused, StaleArtifact

MAX_MANIFEST_BYTES = 16 << 20


def is_bundle(path: Path) -> bool:
    """Whether a folder has a manifest.

    Raises:
        InputRefused: It may not be looked into.
    """
    with reading_errors(path):
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
    with reading_errors(where):
        size = where.stat().st_size
    if size > MAX_MANIFEST_BYTES:
        raise InputRefused(f"has {size:,} bytes, more than {MAX_MANIFEST_BYTES:,}.", where=str(where))
    manifest = parse(read_text(where), str(where))
    _demand_plain_files(path, manifest)
    return Bundle(path, manifest)


def parse(text: str, where: str) -> Manifest:
    """Return the manifest that a text is; `where` is named in errors.

    Raises:
        InputRefused: It is no JSON, or a manifest of another format version or form.
    """
    document = parse_json(text, where)
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise InputRefused(
            f"has format version {version!r}, this resedge reads {FORMAT_VERSION}.",
            where=where,
            cure="Use the resedge that wrote it, or export again.",
        )
    return decode(Manifest, document, where)


def _demand_plain_files(root: Path, manifest: Manifest) -> None:
    """Refuse a bundle whose files lead elsewhere, or are pipes and devices, which could be read for ever.

    What is missing is left to whoever reads it.
    """
    engines = [artifact for engine in manifest.engines for artifact in (engine.artifact, *engine.companions)]
    names = {artifact.path for artifact in (*manifest.files, *engines)}
    folders = {parent for name in names for parent in name.parents} - {Path()}
    for name in sorted(folders | names):
        with reading_errors(root / name):
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
    for extra in unnamed(bundle):
        raise StaleArtifact(
            "is not in the manifest.", where=str(bundle.path / extra), cure="Move it elsewhere."
        )
    for missing in sorted(set(named) - set(_files_below(bundle.path))):
        raise StaleArtifact("is missing.", where=str(bundle.path / missing), cure=cure)
    for name, digest in named.items():
        with reading_errors(bundle.path / name):
            found = sha256_file(bundle.path / name)
        if found != digest:
            raise StaleArtifact(
                "is not the file that the manifest names.", where=str(bundle.path / name), cure=cure
            )


def unnamed(bundle: Bundle) -> list[str]:
    """Return the files of the folder that its manifest does not name, in order."""
    named = {artifact.path.as_posix() for artifact in bundle.manifest.files}
    return sorted(set(_files_below(bundle.path)) - named - {MANIFEST, SIGNATURE})


def _files_below(folder: Path) -> list[str]:
    """Return what is no folder below `folder`; a symbolic link to one is none."""
    found = []
    with reading_errors(folder):
        for root, folders, names in os.walk(folder, onerror=_raise):
            links = [name for name in folders if Path(root, name).is_symlink()]
            found += [Path(root, name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(found)


def _raise(error: OSError) -> NoReturn:
    raise error


@contextmanager
def reading_errors(where: Path) -> Iterator[None]:
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
