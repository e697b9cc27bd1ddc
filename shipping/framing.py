"""What is sent to a device: the request that begins a bundle, and then its chunks, each in a frame."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from resedge.artifacts import sha256_bytes
from resedge.codec import canonical_json, decode, encode, parse_json
from resedge.errors import InputRefused, MachineFailure
from resedge.shipping.chunks import CHUNK_BYTES, FileChunks

_LENGTH: Final = struct.Struct(">I")
_FRAME: Final = struct.Struct(">32sII32s")  # the file's digest, the chunk's index, its length and its digest
_MOST_BYTES: Final = 64 << 20

Read = Callable[[int], bytes]


@dataclass(frozen=True)
class Offer:
    """The files of a bundle in chunks, each content once."""

    files: tuple[FileChunks, ...]


@dataclass(frozen=True)
class Request:
    """What `begin` is given: the bytes of manifest and signature, and what can be sent."""

    manifest: bytes
    signature: bytes
    offer: Offer


@dataclass(frozen=True)
class Frame:
    """A chunk of a file; `sound` says whether the bytes are those that were sent."""

    sha256: str
    index: int
    data: bytes
    sound: bool


def begin_request(manifest: bytes, signature: bytes, files: Sequence[FileChunks]) -> bytes:
    """Return what `begin` is given: three blocks, each behind its length."""
    offer = canonical_json(encode(Offer(tuple(files)))).encode()
    return b"".join(_LENGTH.pack(len(block)) + block for block in (manifest, signature, offer))


def read_request(read: Read) -> Request:
    """Read what `begin` is given.

    Args:
        read: Returns that many bytes, or fewer where the stream has ended.

    Raises:
        InputRefused: A block is no such block.
        MachineFailure: It ended early.
    """
    manifest, signature, offer = (_block(read) for _ in range(3))
    try:
        document = parse_json(offer.decode(), "offer")
    except UnicodeDecodeError as error:
        raise InputRefused("is not UTF-8 text.", where="offer") from error
    request = Request(manifest, signature, decode(Offer, document, "offer"))
    for file in request.offer.files:
        file.check(f"offer: {file.sha256:.12}")
    return request


def chunk_frame(sha256: str, index: int, data: bytes) -> bytes:
    """Return the frame of a chunk: a header of 72 bytes, then the chunk."""
    digest = bytes.fromhex(sha256_bytes(data))
    return _FRAME.pack(bytes.fromhex(sha256), index, len(data), digest) + data


def read_frames(read: Read) -> Iterator[Frame]:
    """Read frames for as long as whole ones come; a stream that breaks off just ends.

    Args:
        read: Returns that many bytes, or fewer where the stream has ended.

    Raises:
        InputRefused: A header claims more bytes than a chunk has: the stream is out of step.
    """
    while len(header := read(_FRAME.size)) == _FRAME.size:
        file, index, length, digest = _FRAME.unpack(header)
        if length > CHUNK_BYTES:
            raise InputRefused(f"a chunk of {length:,} bytes was announced, more than {CHUNK_BYTES:,}.")
        data = read(length)
        if len(data) < length:
            return
        yield Frame(file.hex(), index, data, sha256_bytes(data) == digest.hex())


def _block(read: Read) -> bytes:
    prefix = read(_LENGTH.size)
    if len(prefix) == _LENGTH.size:
        (length,) = _LENGTH.unpack(prefix)
        if length > _MOST_BYTES:
            raise InputRefused(f"a block of {length:,} bytes was announced, more than {_MOST_BYTES:,}.")
        block = read(length)
        if len(block) == length:
            return block
    raise MachineFailure("the request ended early.", cure="The connection broke off; send it again.")
