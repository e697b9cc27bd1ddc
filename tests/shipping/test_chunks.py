from __future__ import annotations

import random
from pathlib import Path

import pytest

from resedge.artifacts import sha256_bytes
from resedge.errors import InputRefused
from resedge.shipping.chunks import CHUNK_BYTES, FileChunks, missing_chunks, read_chunk, split_file

SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17)


@pytest.fixture
def data() -> bytes:
    return random.Random(7).randbytes(3 * CHUNK_BYTES + 17)


@pytest.mark.parametrize("size", SIZES)
def test_chunks_are_those_of_the_file(tmp_path: Path, data: bytes, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(data[:size])
    file = split_file(path)
    file.check("file")
    assert (file.sha256, file.size) == (sha256_bytes(data[:size]), size)
    with path.open("rb") as stream:
        parts = [read_chunk(stream, file, index) for index in range(len(file.chunks))]
    assert b"".join(parts) == data[:size]
    assert [sha256_bytes(part) for part in parts] == list(file.chunks)
    assert missing_chunks(path, file) == ()


def test_a_hole_before_a_chunk_that_arrived_is_missing(tmp_path: Path, data: bytes) -> None:
    path, part = tmp_path / "file", tmp_path / "part"
    path.write_bytes(data)
    file = split_file(path)
    assert missing_chunks(part, file) == (0, 1, 2, 3)
    with part.open("wb") as stream:  # the second block failed, the third was written all the same
        for index in (0, 2):
            stream.seek(file.span(index)[0])
            stream.write(data[file.span(index)[0] :][: file.span(index)[1]])
    assert missing_chunks(part, file) == (1, 3)
    part.write_bytes(data + b"!")
    assert missing_chunks(part, file) == (3,)


@pytest.mark.parametrize(
    ("size", "chunks", "sha256"),
    [(1, (), "0" * 64), (-1, (), "0" * 64), (1, ("0" * 64,), "../" + "0" * 61), (1, ("F" * 64,), "0" * 64)],
)
def test_a_list_that_is_no_files_is_refused(size: int, chunks: tuple[str, ...], sha256: str) -> None:
    with pytest.raises(InputRefused, match="offer"):
        FileChunks(sha256, size, chunks).check("offer")
