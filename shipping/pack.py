"""One file of a bundle, and back: a tar (POSIX ustar, not compressed) in the only form that is accepted.

manifest.json comes first, manifest.sig second where there is one, then the files in the order of their paths;
every header has the same owner, mode and time, so a bundle has one packed form. What is unpacked is compared
with the manifest while it streams, and a header that `pack` would not write is refused: no links, no devices,
no extensions, no second file of a name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from resedge import bundle as bundles
from resedge import files
from resedge.bundle import Bundle, Manifest
from resedge.errors import InputRefused, StaleArtifact

SUFFIX = ".tar"

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_MODE = 0o644
_MAX_SIGNATURE_BYTES = 64 << 10
_PIECE = 1 << 20
_CURE = "Pack the bundle again with `resedge bundle pack`."


def pack(bundle: Bundle, out: Path) -> None:
    """Write a bundle as one file, atomically; a file that is there is replaced.

    Raises:
        StaleArtifact: The folder does not hold exactly the manifest's files.
        InputRefused: A path is too long for the format, or the place cannot be written to.
        MachineFailure: The disk is full or failing.
    """
    bundles.check(bundle)
    digests: dict[str, str | None] = {bundles.MANIFEST: None}
    if (bundle.path / bundles.SIGNATURE).exists():
        digests[bundles.SIGNATURE] = None
    digests |= dict(sorted(_digests(bundle.manifest).items()))
    aside = out.with_name(f".{out.name}.{os.getpid()}{files.ASIDE_SUFFIX}")
    with files.disk_errors(out):
        try:
            with aside.open("wb") as stream:
                for name, digest in digests.items():
                    _append(stream, bundle.path / name, name, digest)
                stream.write(_END)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(out)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        files.sync_folder(out.parent)


def unpack(packed: Path, out: Path) -> Bundle:
    """Write the bundle that a file holds into the new folder `out`, whole or not at all.

    Raises:
        InputRefused: It is not what `pack` writes, its manifest is refused, or `out` is there already.
        StaleArtifact: A file is not the one that the manifest names, is missing, or is not named.
        MachineFailure: The disk is full or failing.
    """
    if out.exists() or out.is_symlink():
        raise InputRefused("is there already.", where=str(out), cure="Name another folder with --out.")
    staged = out.with_name(f".{out.name}.{os.getpid()}{files.ASIDE_SUFFIX}")
    with _opened(packed) as stream, files.disk_errors(out):
        try:
            staged.mkdir()
            _extract(stream, staged, str(packed))
            files.publish_folder(staged, out)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    return bundles.read(out)


def _opened(packed: Path) -> BinaryIO:
    try:
        return packed.open("rb")
    except OSError as error:
        raise InputRefused(f"cannot be read ({error.strerror}).", where=str(packed)) from error


def _digests(manifest: Manifest) -> dict[str, str]:
    return {artifact.path.as_posix(): artifact.sha256 for artifact in manifest.files}


def _header(name: str, size: int) -> bytes:
    """Return the one header of a file, 512 bytes.

    Raises:
        InputRefused: ustar has no room for the path or the size.
    """
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, _MODE
    try:
        return entry.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:
        raise InputRefused(f"does not fit into a tar file ({error}).", where=name) from error


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _append(stream: BinaryIO, path: Path, name: str, digest: str | None) -> None:
    found = hashlib.sha256()
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        stream.write(_header(name, size))
        for piece in _pieces(source, size, str(path)):
            found.update(piece)
            stream.write(piece)
    stream.write(_padding(size))
    if digest is not None and found.hexdigest() != digest:
        raise StaleArtifact("changed while it was packed.", where=str(path))


def _extract(stream: BinaryIO, folder: Path, where: str) -> None:
    """Write what a stream holds into an empty folder, each file compared with the manifest."""
    text = _take_first(stream, where)
    expected = _digests(bundles.parse(_as_text(text, where), where))
    (folder / bundles.MANIFEST).write_bytes(text)
    for name, size in _entries(stream, where):
        if name == bundles.SIGNATURE and not (folder / name).exists():
            (folder / name).write_bytes(
                _read_exactly(stream, _bounded(size, _MAX_SIGNATURE_BYTES, where), where)
            )
        else:
            _extract_file(stream, size, folder / name, expected.pop(name, None), f"{where}: {name}")
        _demand_zeros(stream, -size % _BLOCK, where)
    if expected:
        raise StaleArtifact("is missing.", where=f"{where}: {min(expected)}", cure=_CURE)
    if stream.read(1):
        raise InputRefused("goes on after its end.", where=where, cure=_CURE)


def _extract_file(stream: BinaryIO, size: int, path: Path, digest: str | None, where: str) -> None:
    if digest is None:
        raise StaleArtifact("is not in the manifest, or there twice.", where=where, cure=_CURE)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    with path.open("xb") as target:
        for piece in _pieces(stream, size, where):
            found.update(piece)
            target.write(piece)
    if found.hexdigest() != digest:
        raise StaleArtifact("is not the file that the manifest names.", where=where, cure=_CURE)


def _take_first(stream: BinaryIO, where: str) -> bytes:
    """Return the bytes of the manifest, which comes first."""
    name, size = next(_entries(stream, where), ("", 0))
    if name != bundles.MANIFEST:
        raise InputRefused("does not begin with a manifest.", where=where, cure=_CURE)
    text = _read_exactly(stream, _bounded(size, bundles.MAX_MANIFEST_BYTES, where), where)
    _demand_zeros(stream, -size % _BLOCK, where)
    return text


def _as_text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputRefused("has a manifest that is not UTF-8 text.", where=where) from error


def _entries(stream: BinaryIO, where: str) -> Iterator[tuple[str, int]]:
    """Read header after header; whoever iterates reads the content and its padding in between."""
    while (block := _read_exactly(stream, _BLOCK, where)) != _END[:_BLOCK]:
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise InputRefused("is no tar file, or a damaged one.", where=where, cure=_CURE) from error
        if entry.size < 0 or _header(entry.name, entry.size) != block:
            raise InputRefused(
                f"holds {entry.name!r} in a form that `resedge bundle pack` does not write.",
                where=where,
                cure=_CURE,
            )
        yield entry.name, entry.size
    _demand_zeros(stream, _BLOCK, where)


def _pieces(stream: BinaryIO, size: int, where: str) -> Iterator[bytes]:
    """Yield exactly `size` bytes of a stream in pieces."""
    while size:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            raise InputRefused("ends too early.", where=where)
        size -= len(piece)
        yield piece


def _read_exactly(stream: BinaryIO, size: int, where: str) -> bytes:
    return b"".join(_pieces(stream, size, where))


def _bounded(size: int, most: int, where: str) -> int:
    if size > most:
        raise InputRefused(f"has a manifest or signature of {size:,} bytes.", where=where, cure=_CURE)
    return size


def _demand_zeros(stream: BinaryIO, size: int, where: str) -> None:
    if _read_exactly(stream, size, where).strip(b"\0"):
        raise InputRefused("holds something between its files.", where=where, cure=_CURE)
