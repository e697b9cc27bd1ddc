"""Taking a bundle in, chunk by chunk: what is there is found by hashing, and is not sent again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from resedge import bundle as bundles
from resedge import files
from resedge.agent import admission, journal
from resedge.agent.layout import Layout, link_or_copy, remove
from resedge.artifacts import sha256_bytes, sha256_file
from resedge.bundle import Manifest
from resedge.codec import canonical_json, encode, load
from resedge.errors import InputRefused, MachineFailure
from resedge.shipping import framing, moments, wire
from resedge.shipping.chunks import CHUNK_BYTES, FileChunks, missing_chunks

SPARE_BYTES: Final = 16 << 20  # beside a bundle: the journal, and an engine that is built
_OFFER: Final = "offer.json"
_PART: Final = ".part"

Tell = Callable[[wire.Progress], None]


def begin(layout: Layout, read: framing.Read) -> wire.Begun:
    """Let a bundle in whose signature holds and that has not expired; say what of it is missing.

    What another bundle left that never came to its end makes room for it.

    Args:
        layout: Of the device.
        read: Returns that many bytes of the request.

    Raises:
        InputRefused: The bundle is refused, or what is offered are not its files.
        MachineFailure: The request ended early, or the disk has no room for the files.
    """
    request = framing.read_request(read)
    digest = sha256_bytes(request.manifest)
    with layout.alone():
        manifest = admission.authentic(layout, request.manifest, request.signature)
        known = journal.read(layout)
        newest = admission.admit(known, digest, manifest, moments.now())
        offered = _offered(manifest, request.offer)
        if newest != known.newest_signed:
            journal.write(layout, replace(known, newest_signed=newest))
        folder = _open_folder(layout, digest)
        _write_request(folder, request)
        _take_over(layout, folder, offered)
        _complete_all(folder, offered)
        missing = _missing(folder, offered)
        size = sum(offered[file.sha256].span(index)[1] for file in missing for index in file.chunks)
        _demand_room(layout, size)
        return wire.Begun(digest, missing, size)


def receive(layout: Layout, digest: str, read: framing.Read, tell: Tell) -> wire.Received:
    """Write the chunks that come, each checked before it is written; say what is still missing.

    Args:
        layout: Of the device.
        digest: Of a bundle that was begun.
        read: Returns that many bytes of the frames; fewer where the stream has ended or broken off.
        tell: Told how many chunks have come.

    Raises:
        InputRefused: The bundle was not begun, or the stream is out of step.
        MachineFailure: The disk is full or failing.
    """
    with layout.alone():
        folder = layout.arriving(digest)
        offered = _read_offer(folder)
        wanted = sum(len(file.chunks) for file in _missing(folder, offered))
        refused: list[str] = []
        try:
            for count, frame in enumerate(framing.read_frames(read), 1):
                reason = _reason_against(frame, offered)
                if reason:
                    refused.append(reason)
                else:
                    _write_chunk(folder, offered[frame.sha256], frame)
                tell(wire.Progress("receive", "", count, wanted))
        finally:  # a stream that is out of step, or a disk that is full: what came whole is kept
            refused += _complete_all(folder, offered)
        return wire.Received(tuple(refused), _missing(folder, offered))


def _offered(manifest: Manifest, offer: framing.Offer) -> dict[str, FileChunks]:
    """Return what is offered of a manifest's files, by digest."""
    by_digest = {file.sha256: file for file in offer.files}
    wanted = {artifact.sha256: artifact.path for artifact in manifest.files}
    for digest, path in wanted.items():
        if digest not in by_digest:
            raise InputRefused("is not among the files that are offered.", where=path.as_posix())
    return {digest: by_digest[digest] for digest in wanted}


def _open_folder(layout: Layout, digest: str) -> Path:
    folder = layout.arriving(digest)
    with files.disk_errors(folder):
        for other in layout.incoming.iterdir():
            if other != folder:
                remove(other)
        (folder / "files").mkdir(parents=True, exist_ok=True)
    return folder


def _write_request(folder: Path, request: framing.Request) -> None:
    """Write what is needed to go on; the manifest last, which makes it count."""
    files.write_bytes(folder / _OFFER, canonical_json(encode(request.offer)).encode())
    files.write_bytes(folder / bundles.SIGNATURE, request.signature)
    files.write_bytes(folder / bundles.MANIFEST, request.manifest)


def _read_offer(folder: Path) -> dict[str, FileChunks]:
    if not (folder / bundles.MANIFEST).exists():
        raise InputRefused("was not begun here.", where=folder.name[:12], cure="Ship the bundle again.")
    return {file.sha256: file for file in load(framing.Offer, folder / _OFFER).files}


def _take_over(layout: Layout, folder: Path, offered: Mapping[str, FileChunks]) -> None:
    """Link files that a release has, too: they need not be sent again."""
    for digest, path in _held(layout):
        place = folder / "files" / digest
        if digest in offered and not place.exists() and path.is_file() and sha256_file(path) == digest:
            with files.disk_errors(place):
                link_or_copy(path, place)


def _held(layout: Layout) -> Iterator[tuple[str, Path]]:
    for release in sorted(layout.releases.iterdir()):
        root = release / "bundle"
        try:
            artifacts = bundles.read(root).manifest.files
        except InputRefused:  # a release that is damaged has nothing to give
            continue
        yield from ((artifact.sha256, root / artifact.path) for artifact in artifacts)


def _missing(folder: Path, offered: Mapping[str, FileChunks]) -> tuple[wire.Missing, ...]:
    return tuple(
        wire.Missing(digest, missing_chunks(_part(folder, digest), file))
        for digest, file in sorted(offered.items())
        if not (folder / "files" / digest).exists()
    )


def _demand_room(layout: Layout, size: int) -> None:
    found = os.statvfs(layout.root)
    free = found.f_bavail * found.f_frsize
    if size and free < size + SPARE_BYTES:
        raise MachineFailure(
            f"has {free / 1e6:.1f} MB free; the files that are missing need {size / 1e6:.1f} MB, and "
            f"{SPARE_BYTES / 1e6:.1f} MB must stay free.",
            where=str(layout.root),
            cure="Free some space there and run the same command again.",
        )


def _reason_against(frame: framing.Frame, offered: Mapping[str, FileChunks]) -> str | None:
    """Return why a chunk is not written."""
    named = f"chunk {frame.index} of {frame.sha256[:12]}"
    file = offered.get(frame.sha256)
    if file is None or frame.index >= len(file.chunks):
        return f"{named} is none of the bundle"
    if not frame.sound:
        return f"{named} was damaged on its way"
    if sha256_bytes(frame.data) != file.chunks[frame.index]:
        return f"{named} is not the one that was offered"
    return None


def _write_chunk(folder: Path, file: FileChunks, frame: framing.Frame) -> None:
    part = _part(folder, file.sha256)
    if (folder / "files" / file.sha256).exists():
        return
    with files.disk_errors(part):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            rest, offset = memoryview(frame.data), frame.index * CHUNK_BYTES
            while rest:
                written = os.pwrite(descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
        finally:
            os.close(descriptor)


def _complete_all(folder: Path, offered: Mapping[str, FileChunks]) -> list[str]:
    """Give the files that are whole their names; return in words which are not what they should be."""
    whole = [
        file
        for digest, file in offered.items()
        if not (folder / "files" / digest).exists() and not missing_chunks(_part(folder, digest), file)
    ]
    return [
        f"{file.sha256[:12]} is not the file of its name, though every chunk is as it was offered"
        for file in whole
        if not _complete(folder, file)
    ]


def _complete(folder: Path, file: FileChunks) -> bool:
    """Give a file its name whose chunks are all there; one that is another file altogether is dropped."""
    part = _part(folder, file.sha256)
    with files.disk_errors(part):
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, file.size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if sha256_file(part) != file.sha256:
            part.unlink()
            return False
        part.replace(folder / "files" / file.sha256)
        files.sync_folder(folder / "files")
    return True


def _part(folder: Path, digest: str) -> Path:
    return folder / "files" / f"{digest}{_PART}"
