from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resedge.errors import InputRefused
from resedge.images import decode_file
from resedge.images.decoding import Decoding, NotDecodable


def _palette(*, transparent: bool = False) -> Image.Image:
    picture = Image.new("P", (3, 2), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    if transparent:
        picture.info["transparency"] = bytes([0, 0])
    return picture


@pytest.mark.parametrize(
    ("picture", "suffix", "colour"),
    [
        (Image.new("RGB", (3, 2), (10, 20, 30)), ".png", (10, 20, 30)),
        (Image.new("L", (3, 2), 7), ".png", (7, 7, 7)),
        (Image.new("1", (3, 2), 1), ".png", (255, 255, 255)),
        (_palette(), ".png", (10, 20, 30)),
        (_palette(transparent=True), ".png", (10, 20, 30)),
        (Image.new("RGBA", (3, 2), (10, 20, 30, 0)), ".png", (10, 20, 30)),
        (Image.new("LA", (3, 2), (7, 0)), ".png", (7, 7, 7)),
    ],
)
def test_grey_palette_and_alpha_become_rgb(
    tmp_path: Path, picture: Image.Image, suffix: str, colour: tuple[int, int, int]
) -> None:
    path = tmp_path / f"picture{suffix}"
    picture.save(path)
    assert (decode_file(path, (2, 3)) == np.array(colour, np.uint8)).all()


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.new("RGBA", (3, 2), (10, 20, 30, 40)), (10, 20, 30, 40)),
        (Image.new("LA", (3, 2), (7, 40)), (7, 7, 7, 40)),
        (Image.new("RGB", (3, 2), (10, 20, 30)), (10, 20, 30, 255)),
        (_palette(transparent=True), (10, 20, 30, 0)),
        (_palette(), (10, 20, 30, 255)),
    ],
)
def test_a_model_that_takes_alpha_gets_it_and_pictures_without_are_opaque(
    tmp_path: Path, picture: Image.Image, colour: tuple[int, int, int, int]
) -> None:
    path = tmp_path / "picture.png"
    picture.save(path)
    assert (decode_file(path, (2, 3), Decoding(alpha=True)) == np.array(colour, np.uint8)).all()


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", ".jpg"), ("I;16", ".png"), ("F", ".tif"), ("LAB", ".tif"), ("I", ".tif")]
)
def test_other_modes_are_refused(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.new(mode, (3, 2)).save(path)
    with pytest.raises(InputRefused, match=f"has mode {mode}") as refused:
        decode_file(path)
    assert not isinstance(refused.value, NotDecodable)


def _postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 2\n%%EndComments\n%%EOF\n")


def _gif(path: Path) -> None:
    Image.new("L", (3, 2)).save(path, format="GIF")


def _cut(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:2000])


def _bomb(path: Path) -> None:
    Image.new("1", (1 << 14, 1 << 13)).save(path, format="PNG")


def _huge_bomb(path: Path) -> None:
    Image.new("1", (1 << 14, 1 << 14)).save(path, format="PNG")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "cannot identify image file"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n????"), "cannot identify|broken PNG|Truncated"),
        (_postscript, "cannot identify image file"),
        (_gif, "cannot identify image file"),
        (_cut, "truncated"),
        (_bomb, "134217728 pixels"),
        (_huge_bomb, "268435456 pixels"),
    ],
)
def test_what_is_no_image_damaged_or_a_bomb_cannot_be_decoded(
    tmp_path: Path, write: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "picture.png"
    write(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotDecodable, match=reason):
            decode_file(path)
