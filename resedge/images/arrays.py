"""Images as arrays in one file: numpy's .npz, the idx files of MNIST, and the built-in set, which is such.

What a header claims is compared with the file before anything of that size is asked for.
"""

from __future__ import annotations

import gzip
import io
import lzma
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from resedge import data
from resedge.errors import InputRefused
from resedge.images.decoding import AS_IT_IS, Decoding
from resedge.images.preparing import Frames
from resedge.images.sets import ImageSet, content_digest

MAX_BYTES: Final = 8 << 30  # of an array, unpacked
_UNSIGNED_BYTES: Final = 8  # the type of an idx file
_DAMAGES: Final = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)


# --- the built-in set ----------------------------------------------------------------------------


def builtin_test(decoding: Decoding = AS_IT_IS) -> ImageSet:
    """The 10,000 test images of Fashion-MNIST, grey repeated to three channels."""
    return _fashion_mnist("test", decoding)


def builtin_calibration(decoding: Decoding = AS_IT_IS) -> ImageSet:
    """2,048 training images of Fashion-MNIST, disjoint from the test images."""
    return _fashion_mnist("train2048", decoding)


def _fashion_mnist(part: str, decoding: Decoding) -> ImageSet:
    images, labels = (
        _read_idx(data.FOLDER / f"fashion-mnist-{part}-{name}-ubyte.xz")
        for name in ("images-idx3", "labels-idx1")
    )
    origin = f"built-in Fashion-MNIST ({part})"
    return _set_of(images, labels, origin, decoding, class_names=data.FASHION_MNIST_CLASSES)


def _set_of(
    images: Frames,
    labels: npt.NDArray[Any] | None,
    origin: str,
    decoding: Decoding,
    *,
    class_names: tuple[str, ...] = (),
    place: str = "",
) -> ImageSet:
    """Return the set of images, (N, H, W) grey or (N, H, W, 1, 3 or 4)."""
    frames = images[..., None] if images.ndim == 3 else images
    return ImageSet(
        origin=origin,
        digests=tuple(content_digest(_coloured(frame, decoding.alpha)) for frame in frames),
        labels=None if labels is None else labels.astype(np.int64),
        decode=lambda indices: _coloured(frames[list(indices)], decoding.alpha),
        class_names=class_names,
        place=place,
    )


def _coloured(frames: Frames, alpha: bool) -> Frames:
    """Return frames as RGB, or as RGBA, opaque where they have no alpha."""
    coloured = np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames
    if not alpha or coloured.shape[-1] == 4:
        return coloured
    return np.concatenate([coloured, np.full_like(coloured[..., :1], 255)], axis=-1)


# --- the user's ----------------------------------------------------------------------------------


def read_npz(file: Path, size: tuple[int, int], decoding: Decoding = AS_IT_IS) -> ImageSet:
    """Read `images` and, where there are any, `labels` from numpy's .npz; nothing pickled is loaded.

    Args:
        file: `images` are uint8, (N, H, W) grey, (N, H, W, 3) RGB, or (N, H, W, 4) RGBA where alpha is
            asked for; `labels` N whole numbers, the model's classes counted from 0.
        size: Height and width that the images must have, pixels.
        decoding: Whether the model takes alpha; arrays are never scaled.

    Raises:
        InputRefused: Damaged, without `images`, or arrays of another form.
    """
    where = str(file)
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if "images.npy" not in names:
                raise InputRefused(
                    f"has no array 'images', but {', '.join(names[:5]) or 'none'}.", where=where
                )
            images = _read_npy(archive, "images.npy", where)
            labels = _read_npy(archive, "labels.npy", where) if "labels.npy" in names else None
    except (*_DAMAGES, RuntimeError, NotImplementedError) as error:  # RuntimeError: a password is set
        raise _damaged(error, where) from error
    return _checked(images, labels, file, size, decoding)


def read_idx(file: Path, size: tuple[int, int], decoding: Decoding = AS_IT_IS) -> ImageSet:
    """Read an idx file of images, as it is or packed as .gz or .xz, with the labels that lie beside it.

    Args:
        file: Unsigned bytes, (N, H, W) grey, (N, H, W, 3) RGB, or (N, H, W, 4) RGBA where alpha is
            asked for. Its labels are in the file whose name has
            "labels" for "images" and "idx1" for "idx3"; where there is none, the images are unlabelled.
        size: Height and width that the images must have, pixels.
        decoding: Whether the model takes alpha; arrays are never scaled.

    Raises:
        InputRefused: Damaged, or arrays of another form.
    """
    beside = file.with_name(_name_of_labels(file.name))
    labels = _read_idx(beside) if beside.name != file.name and beside.is_file() else None
    return _checked(_read_idx(file), labels, file, size, decoding)


def _name_of_labels(name: str) -> str:
    return name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")


def _read_npy(archive: zipfile.ZipFile, name: str, where: str) -> npt.NDArray[Any]:
    """Read one array of an archive, once its header agrees with the size of its entry."""
    entry = archive.getinfo(name)
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):  # others are for the long headers of structures
            raise InputRefused(f"has {name} in version {version} of numpy's format.", where=where)
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
        wanted = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or dtype.kind not in "ui":
            raise InputRefused(f"has {name} of {dtype}, expected whole numbers.", where=where)
        numbers = np.frombuffer(_read_exactly(stream, wanted, f"{where}: {name}"), dtype)
        return numbers.reshape(shape, order="F" if by_columns else "C")


def _read_idx(file: Path) -> Frames:
    """Read one idx file, its shape as its header says."""
    where = str(file)
    try:
        with _opened(file) as stream:
            magic = stream.read(4)
            if len(magic) < 4 or magic[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or magic[3] not in (1, 3, 4):
                raise InputRefused("is no idx file of unsigned bytes.", where=where)
            sizes = stream.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise InputRefused("is truncated.", where=where)
            shape = struct.unpack(f">{magic[3]}I", sizes)
            return np.frombuffer(_read_exactly(stream, math.prod(shape), where), np.uint8).reshape(shape)
    except _DAMAGES as error:
        raise _damaged(error, where) from error


def _opened(file: Path) -> io.BufferedIOBase:
    """Open a file, unpacking it where its name says that it is packed."""
    if file.suffix == ".gz":
        return gzip.open(file, "rb")
    return lzma.open(file, "rb") if file.suffix == ".xz" else file.open("rb")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _read_exactly(stream: _Readable, wanted: int, where: str) -> bytes:
    """Return the rest of a stream, which must be that many bytes."""
    if not 0 <= wanted <= MAX_BYTES:
        raise InputRefused(f"claims {wanted:,} bytes, of at most {MAX_BYTES:,}.", where=where)
    pieces, left = [], wanted + 1
    while left and (piece := stream.read(min(left, 1 << 24))):  # what is claimed is not asked for at once
        pieces.append(piece)
        left -= len(piece)
    if left != 1:
        much = "more" if left == 0 else f"{wanted + 1 - left:,}"
        raise InputRefused(f"claims {wanted:,} bytes and has {much}.", where=where)
    return b"".join(pieces)


def _damaged(error: Exception, where: str) -> InputRefused:
    return InputRefused(f"cannot be read ({getattr(error, 'strerror', None) or error}).", where=where)


def _checked(
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None,
    file: Path,
    size: tuple[int, int],
    decoding: Decoding,
) -> ImageSet:
    """Return the set of a file's arrays, or refuse their form."""
    where = str(file)
    depths = (1, 3, 4) if decoding.alpha else (1, 3)
    known = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in depths)
    if images.dtype != np.uint8 or not known or not len(images):
        raise InputRefused(
            f"has images of the form {images.shape} {images.dtype}.",
            where=where,
            cure=f"Save them as (N, H, W) or (N, H, W, {depths[-1]}) uint8.",
        )
    if images.shape[1:3] != size:
        raise InputRefused(
            f"has images of {images.shape[1]}x{images.shape[2]}, the model takes {size[0]}x{size[1]} "
            "(height x width).",
            where=where,
            cure=f"Resize the images to {size[0]}x{size[1]} first.",
        )
    if labels is not None and labels.shape != (len(images),):
        raise InputRefused(f"has {len(images)} images and labels of the form {labels.shape}.", where=where)
    return _set_of(images, labels, file.name, decoding, place=where)
