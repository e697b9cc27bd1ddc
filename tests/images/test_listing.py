from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from resedge.errors import InputRefused
from resedge.images import read_folder, read_list

SIZE = (2, 3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, the first with a space in its name; the red of each is its number."""
    (tmp_path / "in side").mkdir()
    for number, name in enumerate(("in side/a b.png", "c.png", "d.png")):
        Image.new("RGB", (3, 2), (number, 0, 0)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "labels", "classes", "reds"),
    [
        ("l.txt", "d.png 3\n\nin side/a b.png 0\n", [3, 0], (), [2, 0]),
        ("l.txt", "c.png\tcat\nin side/a b.png dog\nd.png cat", [0, 1, 0], ("cat", "dog"), [1, 0, 2]),
        ("l.csv", "path,label\nin side/a b.png,7\nc.png,2\n", [7, 2], (), [0, 1]),
        ("l.csv", "in side/a b.png,T-shirt/top\n", [0], ("T-shirt/top",), [0]),
        ("l.csv", '"c.png","a, b"\n', [0], ("a, b",), [1]),
        ("L.CSV", "path\nd.png\nc.png\n", None, (), [2, 1]),
    ],
)
def test_a_list_names_images_and_labels(
    photos: Path, name: str, text: str, labels: list[int] | None, classes: tuple[str, ...], reds: list[int]
) -> None:
    (photos / name).write_text(text)
    found = read_list(photos / name, SIZE)
    assert (None if found.labels is None else found.labels.tolist()) == labels
    assert found.class_names == classes
    assert found.decode(range(len(found)))[:, 0, 0, 0].tolist() == reds
    assert found.place == str(photos / name)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.txt", "", "names no images"),
        ("l.csv", "path,label\n", "names no images"),
        ("l.txt", "c.png 1\nd.png", r"l\.txt: line 2: is not a path and a label"),
        ("l.csv", "c.png,1,2", r"l\.csv: line 1: is not a path and a label"),
        ("l.csv", "c.png,1\nd.png\n", "labels for some images and not for others"),
        ("l.csv", 'c.png,"1\n', "is no CSV"),
        ("l.txt", "c.png 1\n\nmissing.png 2", r"l\.txt: line 3: names 'missing\.png', which is no file"),
        ("l.txt", "in\0side.png 2", "which is no file"),
        ("l.txt", "in_side 2\n".replace("_", " "), "'in side', which is no file"),
    ],
)
def test_a_list_that_is_none_is_refused(photos: Path, name: str, text: str, reason: str) -> None:
    (photos / name).write_text(text)
    with pytest.raises(InputRefused, match=reason):
        read_list(photos / name, SIZE)


def test_a_list_that_is_no_text_is_refused(photos: Path) -> None:
    (photos / "l.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputRefused, match="not UTF-8 text"):
        read_list(photos / "l.txt", SIZE)


def test_undecodable_images_are_left_out_with_their_labels_and_named(photos: Path) -> None:
    (photos / "c.png").write_bytes(b"no picture")
    (photos / "l.txt").write_text("in side/a b.png 4\nc.png 5\nd.png 6\n")
    found = read_list(photos / "l.txt", SIZE)
    assert found.labels is not None
    assert found.labels.tolist() == [4, 6]
    assert found.decode([1])[0, 0, 0, 0] == 2
    ((path, reason),) = [(file.path, file.reason) for file in found.undecodable]
    assert path == str(photos / "c.png")
    assert reason == "cannot identify image file"


def test_images_none_of_which_can_be_decoded_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(InputRefused, match=r"none of the 2 images can be decoded; the first is .*a\.png \("):
        read_folder(tmp_path, SIZE)
