from __future__ import annotations

import io
import json

import pytest

from resedge.artifacts import sha256_bytes
from resedge.errors import InputRefused, MachineFailure, ResedgeError
from resedge.shipping import wire
from resedge.shipping.chunks import CHUNK_BYTES, FileChunks

DIGEST = "ab" * 32
BEGUN = wire.Begun(DIGEST, (wire.Missing("cd" * 32, (0, 2)),), 1234)


def test_an_answer_comes_back_as_it_was() -> None:
    assert wire.read_answer(wire.Begun, wire.answer_text(BEGUN), "nano") == BEGUN


@pytest.mark.parametrize("kind", [InputRefused, MachineFailure])
def test_an_error_is_raised_again_as_what_it_was(kind: type[ResedgeError]) -> None:
    text = wire.error_text(kind("is full.", where="/data", cure="Free some."))
    with pytest.raises(kind) as caught:
        wire.read_answer(wire.Begun, text, "nano")
    assert (type(caught.value), str(caught.value)) == (kind, "/data: is full. Free some.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback",
        "{}",
        json.dumps({"wire": 2, "error": None, "answer": None}),
        json.dumps({"wire": 1, "error": None, "answer": {"digest": DIGEST}}),
        json.dumps({"wire": 1, "error": None, "answer": None}),
    ],
)
def test_what_is_no_answer_is_refused_by_the_devices_name(text: str) -> None:
    with pytest.raises(InputRefused, match="nano"):
        wire.read_answer(wire.Begun, text, "nano")


def test_an_error_of_an_unknown_kind_is_a_refusal() -> None:
    failure = {"kind": "annotations", "what": "broke.", "where": "", "cure": ""}
    with pytest.raises(InputRefused, match="broke"):
        wire.read_answer(wire.Begun, json.dumps({"wire": 1, "error": failure, "answer": None}), "nano")


def test_progress_is_one_line_and_other_lines_are_none() -> None:
    progress = wire.Progress("receive", "füllt\nauf", 3, 7)
    line = wire.progress_line(progress)
    assert line.count("\n") == 1
    assert wire.read_progress(line) == progress
    assert wire.read_progress("WARNING: something\n") is None


def _reader(data: bytes) -> wire.Read:
    return io.BytesIO(data).read


def test_a_request_comes_back_as_it_was() -> None:
    files = (FileChunks(sha256_bytes(b"x"), 1, (sha256_bytes(b"x"),)),)
    sent = wire.begin_request(b"{}", b"signature", files)
    assert wire.read_request(_reader(sent)) == wire.Request(b"{}", b"signature", wire.Offer(files))
    for length in range(len(sent)):
        with pytest.raises(MachineFailure, match="ended early"):
            wire.read_request(_reader(sent[:length]))


def test_a_request_of_gigabytes_is_refused_before_it_is_read() -> None:
    with pytest.raises(InputRefused, match="announced"):
        wire.read_request(_reader(b"\xff\xff\xff\xff"))


def test_frames_come_as_they_were_sent_until_the_stream_breaks_off() -> None:
    chunks = [b"a" * 10, b"", b"c" * CHUNK_BYTES]
    sent = b"".join(wire.chunk_frame(DIGEST, index, data) for index, data in enumerate(chunks))
    found = list(wire.read_frames(_reader(sent)))
    assert found == [wire.Frame(DIGEST, index, data, True) for index, data in enumerate(chunks)]
    for length in (len(sent) - 1, 72 + 10 + 71, 82):
        assert list(wire.read_frames(_reader(sent[:length]))) == found[: 1 if length < 154 else 2]
    flipped = bytearray(sent)
    flipped[75] ^= 1
    assert [frame.sound for frame in wire.read_frames(_reader(bytes(flipped)))] == [False, True, True]


def test_a_chunk_beyond_the_size_of_one_is_refused() -> None:
    with pytest.raises(InputRefused, match="announced"):
        list(wire.read_frames(_reader(wire.chunk_frame(DIGEST, 0, b"x" * (CHUNK_BYTES + 1)))))
