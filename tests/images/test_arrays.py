from __future__ import annotations

import gzip
import lzma
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resedge.errors import InputRefused
from resedge.images import Decoding, builtin_test, content_digest, read, read_idx, read_npz

SIZE = (2, 3)
GREY = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
COLOURED = np.arange(72, dtype=np.uint8).reshape(4, 2, 3, 3)


def _idx(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("images", [GREY, COLOURED, GREY[..., None], np.asfortranarray(COLOURED)])
def test_npz_has_images_and_labels(tmp_path: Path, images: np.ndarray[Any, Any]) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=np.array([3, 1, 0, 2], np.int32))
    found = read(tmp_path / "a.npz", SIZE)
    assert found.labels is not None
    assert found.labels.tolist() == [3, 1, 0, 2]
    frames = found.decode([0, 1, 2, 3])
    expected = COLOURED if images.shape == COLOURED.shape else np.repeat(GREY[..., None], 3, axis=-1)
    np.testing.assert_array_equal(frames, expected)
    assert found.digests == tuple(content_digest(frame) for frame in frames)


def test_arrays_have_alpha_where_the_model_takes_it(tmp_path: Path) -> None:
    alpha = np.concatenate([COLOURED, COLOURED[..., :1] // 2], axis=-1)
    np.savez(tmp_path / "a.npz", images=alpha)
    np.savez(tmp_path / "opaque.npz", images=COLOURED)
    asked = Decoding(alpha=True)
    np.testing.assert_array_equal(read(tmp_path / "a.npz", SIZE, asked).decode([0, 1, 2, 3]), alpha)
    assert (read(tmp_path / "opaque.npz", SIZE, asked).decode([2])[..., 3] == 255).all()
    with pytest.raises(InputRefused, match=r"form \(4, 2, 3, 4\) uint8"):
        read(tmp_path / "a.npz", SIZE)
    assert builtin_test(asked).decode([5]).shape == (1, 28, 28, 4)


def test_npz_without_labels_is_unlabelled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GREY)
    assert read_npz(tmp_path / "a.npz", SIZE).labels is None


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_idx_files_have_their_labels_beside(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    images = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    images.write_bytes(pack(_idx(GREY)))
    assert read(images, SIZE).labels is None
    labels = tmp_path / f"t10k-labels-idx1-ubyte{suffix}"
    labels.write_bytes(pack(_idx(np.array([3, 1, 0, 2], np.uint8))))
    found = read(images, SIZE)
    assert found.labels is not None
    assert found.labels.tolist() == [3, 1, 0, 2]
    assert found.decode([1])[0, :, :, 2].tolist() == GREY[1].tolist()


def test_an_image_is_the_same_in_every_form(tmp_path: Path) -> None:
    builtin = builtin_test().select([0, 1])
    frames = builtin.decode([0, 1])
    np.savez(tmp_path / "a.npz", images=frames)
    (tmp_path / "images-idx3-ubyte").write_bytes(_idx(frames[..., 0]))
    for i in range(2):
        Image.fromarray(frames[i]).save(tmp_path / f"{i}.png")
    (tmp_path / "l.txt").write_text("0.png 9\n1.png 2\n")
    for name in ("a.npz", "images-idx3-ubyte", "l.txt", "."):
        assert read(tmp_path / name, (28, 28)).digests == builtin.digests, name


def test_other_files_are_refused_with_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputRefused, match=r"no images in a known form\. Known: a folder .*\.npz"):
        read(tmp_path / "images.parquet", SIZE)
    with pytest.raises(InputRefused, match="does not exist"):
        read(tmp_path / "nothing.npz", SIZE)


class Bomb:
    """Unpickled, it says so."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was run",)


def _npy(shape: str, dtype: str = "|u1", content: bytes = b"") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def _zip(path: Path, **arrays: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b"no archive"), "cannot be read"),
        (lambda path: np.savez(path, pictures=GREY), r"no array 'images', but pictures\.npy"),
        (lambda path: np.savez(path, images=GREY.astype(np.float32)), r"images\.npy of float32"),
        (lambda path: np.savez(path, images=GREY.astype(np.int64)), r"form \(4, 2, 3\) int64"),
        (lambda path: np.savez(path, images=np.array([Bomb()])), r"images\.npy of object"),
        (lambda path: np.savez(path, images=GREY[:0]), r"form \(0, 2, 3\)"),
        (lambda path: np.savez(path, images=GREY[0]), r"form \(2, 3\)"),
        (lambda path: np.savez(path, images=GREY, labels=np.zeros(3, int)), r"4 images and labels .* \(3,\)"),
        (lambda path: np.savez(path, images=np.zeros((1, 3, 2), np.uint8)), "of 3x2, the model takes 2x3"),
        (
            lambda path: _zip(path, images=_npy("(1099511627776, 2, 3)")),
            "claims 6,597,069,766,656 bytes, of",
        ),
        (lambda path: _zip(path, images=_npy("(4000, 2, 3)")), "claims 24,000 bytes and has 0"),
        (lambda path: _zip(path, images=_npy("(1, 2, 3)", content=bytes(7))), "claims 6 bytes and has more"),
        (lambda path: _zip(path, images=_npy("(1, 2, -3)")), "claims -6 bytes, of"),
        (lambda path: _zip(path, images=_npy("__import__('os')")), "cannot be read"),
        (lambda path: _zip(path, images=b"\x93NUMPY\x09\x00"), "cannot be read|version"),
    ],
)
def test_a_damaged_or_crafted_npz_is_refused(
    tmp_path: Path, write: Callable[[Path], object], reason: str
) -> None:
    write(tmp_path / "a.npz")
    with pytest.raises(InputRefused, match=reason):
        read_npz(tmp_path / "a.npz", SIZE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no idx file"),
        (b"\0\0\x0d\x03", "is no idx file of unsigned bytes"),
        (b"\0\0\x08\x03\0\0", "is truncated"),
        (_idx(GREY)[:-1], "claims 24 bytes and has 23"),
        (_idx(GREY) + b"\0", "claims 24 bytes and has more"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "bytes, of at most"),
        (_idx(GREY[0, 0]), r"form \(3,\) uint8"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes, reason: str, packed: bool) -> None:
    path = tmp_path / ("images-idx3-ubyte" + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputRefused, match=reason):
        read_idx(path, SIZE)


def test_a_damaged_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(GREY))[:-9])
    with pytest.raises(InputRefused, match="cannot be read"):
        read_idx(path, SIZE)
