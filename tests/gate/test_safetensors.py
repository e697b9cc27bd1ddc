from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from resedge.errors import InputRefused
from resedge.gate import read_safetensors
from resedge.gate.safetensors import MAX_BYTES, MAX_TENSORS


def _write(path: Path, header: str | bytes, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def _entry(**change: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}


def test_a_sound_file_is_returned_whole(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
    path.write_bytes(save({"a": tensor}, metadata={"k": "v"}))
    assert read_safetensors(path) == save({"a": tensor}, metadata={"k": "v"})


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("[]", "not a JSON object"),
        ("{}", "holds no tensor"),
        ('{"__metadata__": {}}', "holds no tensor"),
        ("{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"a": 1}', "'a' is malformed"),
        ('{"a": {}, "a": {}}', "given twice"),
        (json.dumps({"a": _entry(shape=[-1])}), "shape of 'a'"),
        (json.dumps({"a": _entry(shape=[True])}), "shape of 'a'"),
        (json.dumps({"a": _entry(shape=[1] * 9)}), "shape of 'a'"),
        (json.dumps({"a": _entry(data_offsets=[8, 0])}), "offsets of 'a'"),
        (json.dumps({"a": _entry(data_offsets=[0, 9])}), "is truncated"),
        (json.dumps({str(i): _entry() for i in range(MAX_TENSORS + 1)}), "more than"),
    ],
)
def test_a_crafted_header_is_refused(tmp_path: Path, header: str | bytes, complaint: str) -> None:
    path = _write(tmp_path / "w.safetensors", header, b"\0" * 8)
    with pytest.raises(InputRefused, match=complaint):
        read_safetensors(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="truncated"):
        read_safetensors(_write(tmp_path / "w.safetensors", "{}", length=1000))


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 50 << 20) + b" " * (50 << 20))
    with pytest.raises(InputRefused, match="claims"):
        read_safetensors(path)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w"])
def test_other_files_are_refused_with_the_cure(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputRefused, match="save_file"):
        read_safetensors(tmp_path / name)


def test_missing_and_short_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputRefused, match="cannot be read"):
        read_safetensors(path)
    path.write_bytes(b"123")
    with pytest.raises(InputRefused, match="only 3 bytes"):
        read_safetensors(path)


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_folder_is_refused_as_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputRefused, match=r"is a folder, not a \.safetensors file"):
        read_safetensors(tmp_path / name)


def test_a_file_that_may_not_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setattr(Path, "open", denied)  # root may open whatever its mode says
    with pytest.raises(InputRefused, match=r"cannot be read \(Permission denied\)"):
        read_safetensors(tmp_path / "w.safetensors")


def test_a_pipe_is_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(InputRefused, match="is not a regular file"):
        read_safetensors(tmp_path / "w.safetensors")


def test_a_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = _write(tmp_path / "w.safetensors", "{}")
    os.truncate(path, MAX_BYTES + 1)  # a hole takes no space
    with pytest.raises(InputRefused, match="bytes, more than"):
        read_safetensors(path)
