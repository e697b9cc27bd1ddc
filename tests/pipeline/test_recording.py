from __future__ import annotations

from pathlib import Path

import pytest

from resedge import images
from resedge.artifacts import Preprocessing
from resedge.errors import InputRefused, UsageError
from resedge.export.names import parse
from resedge.export.records import ImageRecord
from resedge.pipeline import recording
from resedge.pipeline.options import ImageOptions
from resedge.pipeline.recording import UNRECORDED, record_file, recorded

RESNET, CODE = parse("resnet-20"), parse("net.py:make")
IMAGENET = ImageRecord("a library", (224, 224), 256, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "bicubic")


def toml(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_without_a_record_values_are_fractions_and_that_is_warned_of() -> None:
    found = recorded(RESNET, ImageOptions(), None)
    assert found.preprocessing == Preprocessing(28, 28, (0.0,) * 3, (1.0,) * 3)
    assert (found.note, found.warning) == ("", UNRECORDED)


def test_the_notebooks_record_is_built_in() -> None:
    found = recorded(parse("notebook"), ImageOptions(), None)
    assert found.preprocessing == images.NOTEBOOK_PREPROCESSING
    assert found.warning == ""


def test_a_file_beside_the_weights_or_the_code_is_the_record(tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    assert record_file(weights, RESNET) is None
    file = toml(
        tmp_path, 'size = [20, 30]\nmean = 0.5\nstd = [0.1, 0.2, 0.3]\nresize = 40\ninterpolation = "bicubic"'
    )
    assert record_file(weights, RESNET) == file
    assert record_file(None, parse(f"{tmp_path / 'mine.py'}:make")) == file
    assert record_file(None, RESNET) is None
    found = recorded(RESNET, ImageOptions(), file)
    assert found.preprocessing == Preprocessing(
        *(20, 30), (0.5,) * 3, (0.1, 0.2, 0.3), resize=(40, 60), interpolation="bicubic"
    )
    assert found.note == "images as mine.toml has it"
    assert found.warning == ""


def test_options_come_before_the_file_and_the_file_before_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "library_record", lambda _: IMAGENET)
    named = parse("torchvision:resnet18")
    of_library = recorded(named, ImageOptions(), None)
    assert of_library.preprocessing == Preprocessing(
        *(224, 224), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), resize=(256, 256), interpolation="bicubic"
    )
    file = toml(tmp_path, "mean = 0.5\nstd = 0.25")
    found = recorded(named, ImageOptions(mean=(0.7, 0.8, 0.9)), file)
    assert found.preprocessing.mean == (0.7, 0.8, 0.9)
    assert found.preprocessing.std == (0.25,) * 3
    assert found.preprocessing.resize == (256, 256)
    assert found.note == "images as options, then mine.toml, then the record of a library has it"


def test_a_library_says_nothing_of_how_images_come_to_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "library_record", lambda _: IMAGENET)
    found = recorded(parse("timm:resnet18"), ImageOptions(input_shape=(3, 64, 96)), None).preprocessing
    assert (found.height, found.width, found.resize) == (64, 96, None)
    asked = ImageOptions(input_shape=(3, 64, 96), resize=80)
    assert recorded(parse("timm:resnet18"), asked, None).preprocessing.resize == (80, 120)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        (ImageOptions(input_shape=(1, 28, 28)), "L"),
        (ImageOptions(input_shape=(3, 28, 28)), "RGB"),
        (ImageOptions(input_shape=(4, 28, 28)), "RGBA"),
        (ImageOptions(input_shape=(3, 28, 28), channels="BGR"), "BGR"),
        (ImageOptions(channels="L"), "L"),
    ],
)
def test_channels_are_those_that_are_said_or_go_by_their_number(options: ImageOptions, channels: str) -> None:
    found = recorded(RESNET, options, None).preprocessing
    assert found.channels == channels
    assert found.mean == (0.0,) * len(channels)


def test_numbers_of_values_to_255_become_fractions(tmp_path: Path) -> None:
    file = toml(tmp_path, 'channels = "BGR"\nrange = 255\nmean = [102, 51, 25.5]')
    found = recorded(RESNET, ImageOptions(), file)
    assert found.preprocessing.channels == "BGR"
    assert found.preprocessing.mean == (0.4, 0.2, 0.1)
    assert found.preprocessing.std == (1 / 255,) * 3
    assert found.warning == ""


def test_a_record_of_other_channels_is_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "library_record", lambda _: IMAGENET)
    named, bgr = parse("timm:resnet18"), ImageOptions(channels="BGR")
    with pytest.raises(UsageError, match="mean on record is for RGB, and the model takes BGR"):
        recorded(named, bgr, None)
    full = ImageOptions(channels="BGR", value_range=255)
    assert recorded(named, full, None).preprocessing.std == (1 / 255,) * 3


def test_code_must_be_told_its_size_and_a_program_knows_it() -> None:
    with pytest.raises(UsageError, match=r"^--input-shape: net.py:make does not say"):
        recorded(CODE, ImageOptions(), None)
    assert recorded(CODE, ImageOptions(), None, (3, 40, 50)).preprocessing.width == 50


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        (
            ImageOptions(input_shape=(2, 28, 28)),
            InputRefused,
            "takes 2 channels, and an image file has",
        ),
        (ImageOptions(input_shape=(1, 28, 28), channels="RGB"), UsageError, "1 channels, and RGB are 3"),
        (
            ImageOptions(channels="RGBA", mean=(0.5,) * 3),
            InputRefused,
            "^--mean: has 3 numbers, .* RGBA",
        ),
        (ImageOptions(std=(0.0,)), InputRefused, "^--std: is 0, 0, 0, which is not possible"),
        (ImageOptions(input_shape=(3, 0, 28)), UsageError, "no shape of an image"),
        (ImageOptions(input_shape=(28, 28)), UsageError, "no shape of an image"),
        (ImageOptions(resize=20), UsageError, "less than the model takes"),
    ],
)
def test_impossible_options_are_refused(options: ImageOptions, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        recorded(RESNET, options, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mean = ", "is no TOML"),
        ("means = 0.5", "unknown key 'means'"),
        ('channels = "CMYK"', "expected RGB, BGR, L, RGBA"),
        ("range = 256", "expected 1 or 255"),
        ("range = true", "expected 1 or 255"),
        ("mean = [0.5, 0.5]", "mine.toml: mean: has 2 numbers, and the model takes RGB"),
        ("mean = []", "expected a number or one a channel"),
        ("mean = true", "expected a number or one a channel"),
        ("std = 0.0", "which is not possible"),
        ("mean = nan", "which is not possible"),
        ("std = inf", "which is not possible"),
        ("size = 28", "expected .height, width."),
        ("size = [28, 1000000]", "expected pixels up to"),
        ("resize = 2.5", "expected pixels up to"),
        ('interpolation = "nearest"', "expected bilinear or bicubic"),
    ],
)
def test_a_wrong_file_is_refused_by_its_key(text: str, reason: str, tmp_path: Path) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(InputRefused, match=reason) as refused:
        recorded(RESNET, ImageOptions(), file)
    assert str(file) in refused.value.where
