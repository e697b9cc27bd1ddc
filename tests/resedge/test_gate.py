from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from resedge.errors import InputRefused
from resedge.gate import MAX_TENSORS, check_safetensors


def _write(path: Path, header: str | bytes, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def _entry(**change: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}


def test_a_sound_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32)}, path, metadata={"k": "v"})
    check_safetensors(path)


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
        check_safetensors(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="truncated"):
        check_safetensors(_write(tmp_path / "w.safetensors", "{}", length=1000))


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 50 << 20) + b" " * (50 << 20))
    with pytest.raises(InputRefused, match="claims"):
        check_safetensors(path)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w"])
def test_other_files_are_refused_with_the_cure(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputRefused, match="save_file"):
        check_safetensors(tmp_path / name)


def test_missing_and_short_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputRefused, match="cannot be read"):
        check_safetensors(path)
    path.write_bytes(b"123")
    with pytest.raises(InputRefused, match="only 3 bytes"):
        check_safetensors(path)
