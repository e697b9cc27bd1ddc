from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from resedge.benchmarks.pictures import THUMBNAIL, png, thumbnail


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (5, 40)])
def test_a_png_holds_the_frame_to_the_bit(shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(png(frame))) as read:
        assert read.format == "PNG"
        assert np.array_equal(np.asarray(read), frame)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((28, 28), (28, 28)),
        ((64, 64), (64, 64)),
        ((65, 65), (32, 32)),
        ((224, 224), (56, 56)),
        ((500, 200), (62, 25)),
        ((1000, 3), (62, 1)),
    ],
)
def test_a_thumbnail_is_small_and_keeps_its_shape(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    found = thumbnail(np.full((*shape, 3), 7, np.uint8))
    assert found.shape == (*expected, 3)
    assert max(found.shape) <= THUMBNAIL
    assert (found == 7).all()


def test_a_thumbnail_is_made_of_means() -> None:
    frame = np.zeros((128, 128, 3), np.uint8)
    frame[0, 0] = 200
    assert thumbnail(frame)[0, 0].tolist() == [50, 50, 50]
    assert thumbnail(frame)[1:].sum() == 0
