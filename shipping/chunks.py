"""A file as a list of chunks, each known by its digest: what is there is found by hashing, never by its size.

A transfer that broke off can leave a hole in the middle, behind which a later block has arrived. So a part
file counts for those of its chunks that have the right digest, wherever they lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from resedge.artifacts import sha256_bytes
from resedge.errors import InputRefused

CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class FileChunks:
    """A file: its own SHA-256, its size in bytes, and the SHA-256 of each of its chunks in order."""

    sha256: str
    size: int
    chunks: tuple[str, ...]

    def check(self, where: str) -> None:
        """Refuse a list that cannot be that of a file.

        Raises:
            InputRefused: The size and the number of chunks disagree, or a digest is none.
        """
        if self.size < 0 or len(self.chunks) != -(-self.size // CHUNK_BYTES):
            raise InputRefused(f"{self.size} bytes are not {len(self.chunks)} chunks.", where=where)
        for digest in (self.sha256, *self.chunks):
            if not is_digest(digest):
                raise InputRefused(f"{digest!r:.80} is not a SHA-256.", where=where)

    def span(self, index: int) -> tuple[int, int]:
        """Return where a chunk begins in the file and how many bytes it has."""
        start = index * CHUNK_BYTES
        return start, min(CHUNK_BYTES, self.size - start)


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 in 64 lower-case hex digits, and so a safe name of a file."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def split_file(path: Path) -> FileChunks:
    """Return the chunks of a file.

    Raises:
        OSError: It cannot be read.
    """
    whole, size, digests = hashlib.sha256(), 0, []
    with path.open("rb") as stream:
        for piece in _pieces(stream):
            whole.update(piece)
            size += len(piece)
            digests.append(sha256_bytes(piece))
    return FileChunks(whole.hexdigest(), size, tuple(digests))


def missing_chunks(part: Path, file: FileChunks) -> tuple[int, ...]:
    """Return the chunks that a part file does not hold, in order; all where there is no such file.

    Raises:
        OSError: It cannot be read.
    """
    if not part.exists():
        return tuple(range(len(file.chunks)))
    with part.open("rb") as stream:
        held = [sha256_bytes(piece) for piece in _pieces(stream)]
    held += [""] * (len(file.chunks) - len(held))
    return tuple(index for index, digest in enumerate(file.chunks) if held[index] != digest)


def read_chunk(stream: BinaryIO, file: FileChunks, index: int) -> bytes:
    """Read one chunk of a file that is open, as it is; it is for the receiver to check.

    Raises:
        OSError: It cannot be read.
    """
    start, length = file.span(index)
    stream.seek(start)
    return stream.read(length)


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(CHUNK_BYTES):
        yield piece
