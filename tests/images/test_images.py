from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resedge import images
from resedge.artifacts import Preprocessing
from resedge.errors import InputRefused, StaleArtifact

SMALL = Preprocessing(2, 3, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
SIZE = (2, 3)


def _picture(path: Path, value: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (3, 2), value if mode == "L" else (value,) * len(mode)).save(path)
    return path


def _set(count: int, classes: int = 4) -> images.ImageSet:
    return images.ImageSet(
        origin="made",
        digests=tuple(f"{i:064x}" for i in range(count)),
        labels=np.arange(count, dtype=np.int64) % classes,
        decode=lambda indices: np.stack([np.full((2, 3, 3), i % 256, np.uint8) for i in indices]),
    )


def test_preparing_scales_and_moves_channels_first() -> None:
    frame = np.array([[[[255, 0, 51]] * 3] * 2], np.uint8)
    prepared = images.prepare(frame, SMALL)
    assert prepared.shape == (1, 3, 2, 3)
    assert prepared.dtype == np.float32
    assert prepared.flags.c_contiguous
    np.testing.assert_allclose(prepared[0, :, 1, 2], [1.0, -1.0, 0.2], rtol=1e-6)


def test_blue_comes_first_where_the_model_takes_it_so() -> None:
    frame = np.array([[[[10, 20, 30]] * 3] * 2], np.uint8)
    bgr = replace(SMALL, channels="BGR", mean=(0.0,) * 3, std=(1 / 255,) * 3)
    np.testing.assert_allclose(images.prepare(frame, bgr)[0, :, 0, 0], [30, 20, 10], rtol=1e-6)


def test_grey_is_what_pillow_makes_of_every_colour() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    grey = Preprocessing(64, 64, (0.0,), (1 / 255,), channels="L")
    prepared = images.prepare(colours[np.newaxis], grey)
    assert prepared.shape == (1, 1, 64, 64)
    expected = np.asarray(Image.fromarray(colours).convert("L"))
    np.testing.assert_allclose(prepared[0, 0], expected, rtol=1e-6)


def test_alpha_is_a_channel_as_any() -> None:
    frame = np.array([[[[10, 20, 30, 40]] * 3] * 2], np.uint8)
    rgba = Preprocessing(2, 3, (0.0,) * 4, (1 / 255,) * 4, channels="RGBA")
    np.testing.assert_allclose(images.prepare(frame, rgba)[0, :, 0, 0], [10, 20, 30, 40], rtol=1e-6)
    with pytest.raises(InputRefused, match=r"the model takes \(N, 2, 3, 4\) uint8"):
        images.prepare(frame[..., :3], rgba)


def test_means_that_do_not_fit_the_channels_are_refused() -> None:
    with pytest.raises(InputRefused, match="the mean has 3 numbers for the channels L"):
        Preprocessing(2, 3, (0.5,) * 3, (0.5,), channels="L")


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 3, 2, 3), np.uint8),
        np.zeros((1, 2, 3, 1), np.uint8),
        np.zeros((2, 3, 3), np.uint8),
        np.zeros((1, 2, 3, 3), np.float32),
    ],
)
def test_frames_of_another_form_are_refused(frames: images.Frames) -> None:
    with pytest.raises(InputRefused, match="the model takes"):
        images.prepare(frames, SMALL)


def test_the_builtin_sets_are_what_they_are_said_to_be_and_disjoint() -> None:
    test, calibration = images.builtin_test(), images.builtin_calibration()
    assert (len(test), len(calibration)) == (10_000, 2_048)
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert not set(test.digests) & set(calibration.digests)
    assert len(set(calibration.digests)) == 2_048
    assert test.class_names[int(test.labels[0])] == "Ankle boot"
    frames = test.decode([0, 1])
    assert frames.shape == (2, 28, 28, 3)
    assert (frames[..., 0] == frames[..., 2]).all()
    assert frames[0].astype(int).sum() == 3 * 33_456


def test_selecting_keeps_images_digests_and_labels_together() -> None:
    chosen = _set(10).select([7, 2]).select([1])
    assert chosen.digests == (f"{2:064x}",)
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [2]
    assert chosen.decode([0])[0, 0, 0, 0] == 2


def test_batches_cover_every_image_once_in_order() -> None:
    sizes = [len(batch) for batch in _set(10).batches(4, SMALL)]
    assert sizes == [4, 4, 2]
    np.testing.assert_array_equal(_set(10).prepared(SMALL), np.concatenate(list(_set(10).batches(3, SMALL))))


@pytest.mark.parametrize("outside", [None, SMALL], ids=["frames", "prepared"])
def test_an_engine_is_given_frames_or_prepared_images_in_order(outside: Preprocessing | None) -> None:
    whole = _set(10)
    frames = whole.decode(range(10))
    expected = frames if outside is None else images.prepare(frames, outside)
    given = list(whole.inputs(4, outside))
    assert [len(batch) for batch in given] == [4, 4, 2]
    for found in (np.concatenate(given), whole.all_inputs(outside), images.as_input(frames, outside)):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("frames", [np.zeros((1, 3, 2, 3), np.uint8), np.zeros((1, 2, 3, 3), np.float32)])
def test_what_is_no_frame_of_the_model_is_refused(frames: images.Frames) -> None:
    with pytest.raises(InputRefused, match=r"the model takes \(N, 2, 3, 3\) uint8"):
        images.demand_frames(frames, SMALL)


def test_a_split_is_disjoint_stratified_and_independent_of_order() -> None:
    whole = _set(400)
    first = images.split(whole, seed=1)
    assert [len(s) for s in (first.calibration, first.tuning, first.test)] == [100, 100, 200]
    together = first.calibration.digests + first.tuning.digests + first.test.digests
    assert sorted(together) == sorted(whole.digests)
    for part in (first.calibration, first.tuning, first.test):
        assert part.labels is not None
        assert np.ptp(np.bincount(part.labels)) <= 1
    shuffled = whole.select(np.random.default_rng(0).permutation(400).tolist())
    assert images.split(shuffled, seed=1).calibration.digests == first.calibration.digests
    assert images.split(whole, seed=2).calibration.digests != first.calibration.digests


def test_duplicates_leave_the_test_set_and_are_counted() -> None:
    whole = _set(100)
    split = images.disjoint(whole.select([0, 1]), whole.select([1, 2]), whole.select([2, 3, 0, 4]))
    assert split.tuning.digests == whole.select([2]).digests
    assert split.test.digests == whole.select([3, 4]).digests
    assert split.overlaps == 2


def test_sets_that_share_every_image_are_refused() -> None:
    whole = _set(10)
    with pytest.raises(InputRefused, match="already serve calibration"):
        images.disjoint(whole.select([0]), whole.select([1]), whole.select([0, 1]))


def test_the_digest_of_a_set_follows_labels_and_order() -> None:
    whole = _set(4)
    assert whole.sha256 == _set(4).sha256
    assert whole.sha256 != whole.select([1, 0, 2, 3]).sha256
    assert whole.sha256 != _set(4, classes=2).sha256


def test_a_tree_of_classes_is_read_in_sorted_order(tmp_path: Path) -> None:
    _picture(tmp_path / "dog" / "1.png", 10)
    _picture(tmp_path / "cat" / "2.PNG", 20)
    _picture(tmp_path / "cat" / "1.png", 30, mode="L")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    found = images.read_folder(tmp_path, SIZE)
    assert found.class_names == ("cat", "dog")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1]
    assert found.decode([0, 1, 2])[:, 0, 0, 0].tolist() == [30, 20, 10]


def test_loose_images_are_unlabelled(tmp_path: Path) -> None:
    _picture(tmp_path / "1.png", 1)
    assert images.read_folder(tmp_path, SIZE).labels is None


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="does not exist"):
        images.read_folder(tmp_path / "none", SIZE)
    with pytest.raises(InputRefused, match="holds no images"):
        images.read_folder(tmp_path, SIZE)
    _picture(tmp_path / "cat" / "1.png", 1)
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputRefused, match=r"\['dog'\] hold no images"):
        images.read_folder(tmp_path, SIZE)
    _picture(tmp_path / "loose.png", 1)
    with pytest.raises(InputRefused, match="beside class folders"):
        images.read_folder(tmp_path, SIZE)
    with pytest.raises(InputRefused, match="is not a folder"):
        images.read_folder(tmp_path / "loose.png", SIZE)


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n????")
    with pytest.raises(InputRefused, match=r"broken\.png: is no readable image"):
        images.decode_file(broken)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    assert images.decode_file(path).shape == (8, 4, 3)


def test_a_digest_is_of_shape_and_bytes() -> None:
    frame = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    shape = bytes([0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 3])
    assert images.content_digest(frame) == hashlib.sha256(shape + bytes(range(18))).hexdigest()
    assert images.content_digest(frame) != images.content_digest(frame.reshape(3, 2, 3))
    assert images.content_digest(frame[:, ::-1]) != images.content_digest(frame)


def test_builtin_images_are_recognised_in_files_of_any_lossless_kind(tmp_path: Path) -> None:
    builtin = images.builtin_test().select([0, 1, 2, 3])
    frames = builtin.decode(range(4))
    Image.fromarray(frames[0]).save(tmp_path / "0.png", compress_level=9)
    Image.fromarray(frames[1]).save(tmp_path / "1.bmp")
    Image.fromarray(frames[2][..., 0]).save(tmp_path / "2.png")
    Image.fromarray(frames[3]).save(tmp_path / "3.webp", lossless=True)
    found = images.read_folder(tmp_path, (28, 28))
    assert found.digests == builtin.digests
    np.testing.assert_array_equal(found.decode(range(4)), frames)


def test_a_file_that_changes_after_it_was_listed_is_named(tmp_path: Path) -> None:
    _picture(tmp_path / "1.png", 1)
    changing = _picture(tmp_path / "2.png", 2)
    found = images.read_folder(tmp_path, SIZE)
    Image.new("RGB", (3, 2), (2, 2, 2)).save(changing, compress_level=0)
    assert found.decode([0, 1])[:, 0, 0, 0].tolist() == [1, 2]
    _picture(changing, 3)
    with pytest.raises(StaleArtifact, match=r"2\.png: has changed since it was listed"):
        found.decode([0, 1])
    Image.new("RGB", (9, 9)).save(changing)
    with pytest.raises(StaleArtifact, match=r"2\.png: has changed since it was listed"):
        found.select([1]).decode([0])


def test_images_of_other_sizes_are_refused_together(tmp_path: Path) -> None:
    for i in range(3):
        _picture(tmp_path / "cat" / f"{i}.png", i)
    for i in range(5):
        Image.new("RGB", (4 + i, 2)).save(tmp_path / "cat" / f"wide{i}.png")
    with pytest.raises(InputRefused) as refused:
        images.read_folder(tmp_path, SIZE)
    assert refused.value.where == str(tmp_path / "cat" / "wide0.png")
    assert refused.value.what.startswith(
        "is 2x4, the model takes 2x3 (height x width). 4 more of the 8 images"
    )
    assert [f"wide{i}.png (2x{4 + i})" in refused.value.what for i in range(5)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert refused.value.what.endswith(", ...")
    assert refused.value.cure == "Resize the images to 2x3 first, or export with --resize."


def test_one_image_of_another_size_is_refused_alone(tmp_path: Path) -> None:
    _picture(tmp_path / "1.png", 1)
    Image.new("RGB", (2, 3)).save(tmp_path / "upright.png")
    expected = r"upright\.png: is 3x2, the model takes 2x3 \(height x width\)\. Resize"
    with pytest.raises(InputRefused, match=expected):
        images.read_folder(tmp_path, SIZE)


def test_a_turned_image_has_the_size_that_it_is_seen_in(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert images.read_folder(tmp_path, (8, 4)).decode([0]).shape == (1, 8, 4, 3)
    with pytest.raises(InputRefused, match="is 8x4, the model takes 4x8"):
        images.read_folder(tmp_path, (4, 8))


def test_only_regular_files_count_as_images(tmp_path: Path) -> None:
    _picture(tmp_path / "cat" / "1.png", 1)
    odd = tmp_path / "cat" / "2.png"
    odd.symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputRefused, match=r"2\.png: leads nowhere"):
        images.read_folder(tmp_path, SIZE)
    odd.unlink()
    odd.mkdir()
    with pytest.raises(InputRefused, match=r"2\.png: is named as an image and is not a file"):
        images.read_folder(tmp_path, SIZE)
    odd.rmdir()
    os.mkfifo(odd)
    with pytest.raises(InputRefused, match=r"2\.png: is named as an image and is not a file"):
        images.read_folder(tmp_path, SIZE)
    odd.unlink()
    odd.symlink_to(_picture(tmp_path.with_name("elsewhere.png"), 7))
    assert images.read_folder(tmp_path, SIZE).decode([1])[0, 0, 0, 0] == 7


def test_folders_and_files_that_may_not_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _picture(tmp_path / "cat" / "1.png", 1)
    listed = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        if self.name == "cat":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return listed(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", iterdir)
        with pytest.raises(InputRefused, match=r"cat: cannot be read \(Permission denied\)"):
            images.read_folder(tmp_path, SIZE)

    def denied(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(InputRefused, match=r"1\.png: is no readable image .*Permission denied"):
        images.read_folder(tmp_path, SIZE)


def test_the_working_folder_has_a_name_in_reports_and_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _picture(tmp_path / "photos" / "1.png", 1)
    monkeypatch.chdir(tmp_path / "photos")
    found = images.read_folder(Path(), SIZE)
    assert found.origin == "photos"
    with pytest.raises(InputRefused) as refused:
        images.split(found, seed=0)
    assert refused.value.where == "."


# --- scaling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "cover", "scaled"),
    [((40, 60), (20, 20), (20, 30)), ((60, 40), (20, 20), (30, 20)), ((7, 5), (20, 20), (28, 20))],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_image_is_scaled_until_it_covers_and_its_middle_is_taken(
    given: tuple[int, int],
    cover: tuple[int, int],
    scaled: tuple[int, int],
    interpolation: str,
    tmp_path: Path,
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*given, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    scaling = images.Decoding(cover, interpolation)  # type: ignore[arg-type]
    frame = images.decode_file(tmp_path / "a.png", (16, 16), scaling)
    whole = Image.fromarray(noise).resize(scaled[::-1], Image.Resampling[interpolation.upper()])
    top, left = (scaled[0] - 16) // 2, (scaled[1] - 16) // 2
    assert np.array_equal(frame, np.asarray(whole)[top : top + 16, left : left + 16])


def test_a_folder_of_all_sizes_is_read_scaled_and_is_known_by_what_comes_out(tmp_path: Path) -> None:
    for i, size in enumerate(((40, 60), (33, 21))):
        Image.new("RGB", size, (i, 0, 0)).save(tmp_path / f"{i}.png")
    found = images.read_folder(tmp_path, (16, 12), images.Decoding((20, 15)))
    frames = found.decode([0, 1])
    assert frames.shape == (2, 16, 12, 3)
    assert found.digests == tuple(map(images.content_digest, frames))
