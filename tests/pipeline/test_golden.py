from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from resedge.artifacts import Artifact, sha256_bytes
from resedge.errors import InputRefused
from resedge.pipeline.golden import read_golden

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
