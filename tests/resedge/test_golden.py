from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from resedge.artifacts import Artifact, sha256_bytes
from resedge.errors import InputRefused
from resedge.golden import Thresholds, agreement, read_golden, read_thresholds

IMAGES, LOGITS = np.ones((2, 3, 4, 4), np.float32), np.ones((2, 5), np.float32)


def _written(path: Path, data: bytes) -> Artifact:
    path.write_bytes(data)
    return Artifact(path, sha256_bytes(data), "golden")


def test_golden_images_and_logits_are_read(tmp_path: Path) -> None:
    images, logits = read_golden(_written(tmp_path / "g", save({"input": IMAGES, "logits": LOGITS})))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(logits, LOGITS)


def test_golden_frames_are_read(tmp_path: Path) -> None:
    frames = np.full((2, 4, 4, 3), 200, np.uint8)
    images, _ = read_golden(_written(tmp_path / "g", save({"input": frames, "logits": LOGITS})))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, frames)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"input": IMAGES}, "does not hold the input and the logits"),
        ({"input": IMAGES, "logits": LOGITS[:1]}, "of as many images"),
        ({"input": IMAGES[0], "logits": LOGITS}, "does not hold the input and the logits"),
        ({"input": IMAGES.astype(np.float16), "logits": LOGITS}, "does not hold float32"),
        ({"input": IMAGES[:0], "logits": LOGITS[:0]}, "of at least one image"),
    ],
)
def test_what_holds_something_else_is_refused(tmp_path: Path, tensors: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputRefused, match=reason):
        read_golden(_written(tmp_path / "g", save(tensors)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "only 0 bytes"),
        (struct.pack("<Q", 1 << 40) + b"{}", "its header claims"),
        (save({"input": IMAGES, "logits": LOGITS}) + b"\0", "is not a sound safetensors file"),
        (save({"input": IMAGES, "logits": LOGITS})[:-1], "is truncated"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(InputRefused, match=reason):
        read_golden(_written(tmp_path / "g", data))


def test_tensors_of_any_order_and_of_other_names_are_read_past(tmp_path: Path) -> None:
    data = save(
        {"logits": LOGITS * 2, "also": np.zeros(3, np.int8), "input": IMAGES * 3}, {"made": "by hand"}
    )
    images, logits = read_golden(_written(tmp_path / "g", data))
    assert (images.max(), images.flags.writeable) == (3, True)
    assert logits.max() == 2


def _header(entries: dict[str, Any], data_bytes: int) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(data_bytes)


def _entry(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("input_entry", "logits_entry", "reason"),
    [
        (_entry([1, 1, 1, 1], 0, 4), _entry([1, 2], 8, 16), "do not adjoin"),
        (_entry([1, 1, 1, 1], 0, 4), _entry([1, 4], 0, 16), "do not adjoin"),
        (_entry([1, 1, 1, 2], 0, 4), _entry([1, 3], 4, 16), "a shape is not its size"),
        (_entry([1, 1, 1, 1], 0, 4), _entry([1, 2], 4, 12), "bytes of no tensor"),
    ],
)
def test_offsets_that_lie_are_refused(
    tmp_path: Path, input_entry: dict[str, Any], logits_entry: dict[str, Any], reason: str
) -> None:
    data = _header({"input": input_entry, "logits": logits_entry}, 16)
    with pytest.raises(InputRefused, match=reason):
        read_golden(_written(tmp_path / "g", data))


def test_agreement_is_the_share_of_rows_with_one_best_class() -> None:
    ours = np.array([[1, 2], [3, 0], [0, 1], [5, 4]], np.float32)
    theirs = np.array([[0, 9], [0, 3], [0, 1], [1, 0]], np.float32)
    assert agreement(ours, theirs) == 0.75


def test_thresholds_are_read(tmp_path: Path) -> None:
    written = _written(tmp_path / "t", b'{"format_version": 1, "images": 70, "min_agreement": 1}')
    assert read_thresholds(written) == Thresholds(1, 70, 1.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\xff", "not UTF-8"),
        (b'{"format_version": 2, "images": 70, "min_agreement": 1}', "format version 2"),
        (b'{"format_version": 1, "images": 0, "min_agreement": 1}', "no images"),
        (b'{"format_version": 1, "images": 9, "min_agreement": 0}', "no agreement"),
        (b'{"format_version": 1, "images": 9}', "min_agreement"),
    ],
)
def test_thresholds_that_demand_nothing_are_refused(tmp_path: Path, text: bytes, reason: str) -> None:
    with pytest.raises(InputRefused, match=reason):
        read_thresholds(_written(tmp_path / "t", text))
