from __future__ import annotations

import io

import pytest

from resedge.artifacts import sha256_bytes
from resedge.errors import InputRefused, MachineFailure
from resedge.shipping import framing
from resedge.shipping.chunks import CHUNK_BYTES, FileChunks

DIGEST = "ab" * 32


def _reader(data: bytes) -> framing.Read:
    return io.BytesIO(data).read


def test_a_request_comes_back_as_it_was() -> None:
    files = (FileChunks(sha256_bytes(b"x"), 1, (sha256_bytes(b"x"),)),)
    sent = framing.begin_request(b"{}", b"signature", files)
    assert framing.read_request(_reader(sent)) == framing.Request(b"{}", b"signature", framing.Offer(files))
    for length in range(len(sent)):
        with pytest.raises(MachineFailure, match="ended early"):
            framing.read_request(_reader(sent[:length]))


def test_a_request_of_gigabytes_is_refused_before_it_is_read() -> None:
    with pytest.raises(InputRefused, match="announced"):
        framing.read_request(_reader(b"\xff\xff\xff\xff"))


def test_frames_come_as_they_were_sent_until_the_stream_breaks_off() -> None:
    chunks = [b"a" * 10, b"", b"c" * CHUNK_BYTES]
    sent = b"".join(framing.chunk_frame(DIGEST, index, data) for index, data in enumerate(chunks))
    found = list(framing.read_frames(_reader(sent)))
    assert found == [framing.Frame(DIGEST, index, data, True) for index, data in enumerate(chunks)]
    for length in (len(sent) - 1, 72 + 10 + 71, 82):
        assert list(framing.read_frames(_reader(sent[:length]))) == found[: 1 if length < 154 else 2]
    flipped = bytearray(sent)
    flipped[75] ^= 1
    assert [frame.sound for frame in framing.read_frames(_reader(bytes(flipped)))] == [False, True, True]


def test_a_chunk_beyond_the_size_of_one_is_refused() -> None:
    with pytest.raises(InputRefused, match="announced"):
        list(framing.read_frames(_reader(framing.chunk_frame(DIGEST, 0, b"x" * (CHUNK_BYTES + 1)))))
