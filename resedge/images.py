"""Images with their digests and labels: the built-in set, folders, the split, and preprocessing.

One implementation of preprocessing serves calibration, evaluation and prediction. Images are decoded when
they are asked for, a batch at a time; what is known of every image beforehand is the digest of its content,
so an image is the same wherever it lies and however it was saved without loss.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from resedge import data
from resedge.artifacts import Preprocessing, sha256_json
from resedge.errors import InputRefused, RuntimeUnavailable, StaleArtifact
from resedge.protocols import Float32Array, Int64Array

Frames = npt.NDArray[np.uint8]  # (N, H, W, 3), RGB

NOTEBOOK_PREPROCESSING = Preprocessing(28, 28, mean=(0.2860,) * 3, std=(0.3530,) * 3)
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_DECODED_AT_ONCE = 256
_NAMED_AT_MOST = 3


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order.

    `digests` has the `content_digest` of each image; `labels` is (N,) int64 class indices or None;
    `decode` maps indices to frames, (n, H, W, 3) uint8 RGB. `origin` names the set in reports, `place` in
    errors where it is a folder: as the user wrote it.
    """

    origin: str
    digests: tuple[str, ...]
    labels: Int64Array | None
    decode: Callable[[Sequence[int]], Frames]
    class_names: tuple[str, ...] = ()
    place: str = ""

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def sha256(self) -> str:
        """The digest of the set: its images and their labels, in this order."""
        labels = None if self.labels is None else self.labels.tolist()
        return sha256_json({"images": list(self.digests), "labels": labels})

    def select(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order."""
        chosen = list(indices)
        return replace(
            self,
            digests=tuple(self.digests[i] for i in chosen),
            labels=None if self.labels is None else self.labels[chosen],
            decode=lambda positions: self.decode([chosen[i] for i in positions]),
        )

    def batches(self, size: int, preprocessing: Preprocessing) -> Iterator[Float32Array]:
        """Yield the prepared images in order, (at most `size`, 3, H, W) float32."""
        for start in range(0, len(self), size):
            indices = range(start, min(start + size, len(self)))
            yield prepare(self.decode(indices), preprocessing)

    def prepared(self, preprocessing: Preprocessing) -> Float32Array:
        """Return all images prepared, (N, 3, H, W) float32; for sets that fit in memory."""
        return np.concatenate(list(self.batches(_DECODED_AT_ONCE, preprocessing)))


def content_digest(frame: Frames) -> str:
    """Return the SHA-256 of a decoded image, (H, W, 3) uint8: its shape (big-endian uint32), its bytes."""
    return hashlib.sha256(struct.pack(">3I", *frame.shape) + frame.tobytes()).hexdigest()


@dataclass(frozen=True)
class Split:
    """Three disjoint sets; `overlaps` test images were removed as they occur in another set."""

    calibration: ImageSet
    tuning: ImageSet
    test: ImageSet
    overlaps: int


def prepare(frames: Frames, preprocessing: Preprocessing) -> Float32Array:
    """Map (N, H, W, 3) uint8 RGB frames to the model's input, (N, 3, H, W) float32, C-contiguous.

    Raises:
        InputRefused: The frames have another size, number of channels or dtype.
    """
    expected = (preprocessing.height, preprocessing.width, 3)
    if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != np.uint8:
        raise InputRefused(
            f"frames are {frames.shape} {frames.dtype}, the model takes "
            f"(N, {expected[0]}, {expected[1]}, 3) uint8.",
            cure="Resize the images to the model's size first.",
        )
    mean = np.array(preprocessing.mean, np.float32)
    std = np.array(preprocessing.std, np.float32)
    scaled = (frames.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


# --- the built-in set ----------------------------------------------------------------------------


def builtin_test() -> ImageSet:
    """The 10,000 test images of Fashion-MNIST, grey repeated to three channels."""
    return _fashion_mnist("test")


def builtin_calibration() -> ImageSet:
    """2,048 training images of Fashion-MNIST, disjoint from the test images."""
    return _fashion_mnist("train2048")


def _fashion_mnist(part: str) -> ImageSet:
    grey = _read_idx_xz(data.FOLDER / f"fashion-mnist-{part}-images-idx3-ubyte.xz")
    labels = _read_idx_xz(data.FOLDER / f"fashion-mnist-{part}-labels-idx1-ubyte.xz")
    return ImageSet(
        origin=f"built-in Fashion-MNIST ({part})",
        digests=tuple(content_digest(_rgb(image)) for image in grey),
        labels=labels.astype(np.int64),
        decode=lambda indices: _rgb(grey[list(indices)]),
        class_names=data.FASHION_MNIST_CLASSES,
    )


def _rgb(grey: Frames) -> Frames:
    return np.repeat(grey[..., None], 3, axis=-1)


def _read_idx_xz(path: Path) -> Frames:
    try:
        raw = lzma.decompress(path.read_bytes(), lzma.FORMAT_XZ)
    except (OSError, lzma.LZMAError) as error:
        raise InputRefused(
            f"cannot be read ({error}).", where=str(path), cure="Install resedge again."
        ) from error
    rank = raw[3]
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


# --- folders -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaling:
    """Until when an image is scaled, (height, width) that it just covers, and how."""

    cover: tuple[int, int]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


def scaling_of(preprocessing: Preprocessing) -> Scaling | None:
    """Return how image files come to the model's size; None: they must have it."""
    if preprocessing.resize is None:
        return None
    return Scaling(preprocessing.resize, preprocessing.interpolation)


class _OtherSize(InputRefused):
    """An image has another size, `found`, than the model takes; both are (height, width)."""

    def __init__(self, path: Path, found: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__(
            f"is {found[0]}x{found[1]}, the model takes {size[0]}x{size[1]} (height x width).",
            where=str(path),
            cure=f"Resize the images to {size[0]}x{size[1]} first, or export with --resize.",
        )
        self.found = found


def read_folder(folder: Path, size: tuple[int, int], scaling: Scaling | None = None) -> ImageSet:
    """Read a tree of images: one subfolder a class (in sorted order), or images alone, unlabelled.

    Every file is decoded once, one at a time, for its digest; `decode` of the set checks it again.

    Args:
        folder: Where the images are.
        size: Height and width that every image must have, pixels, once it is scaled.
        scaling: How it is scaled before; None: not at all.

    Raises:
        InputRefused: Missing, unreadable, not a folder, without images, classes and loose images mixed, or
            a file that is no image of that size.
        RuntimeUnavailable: Pillow is not installed.
    """
    with _readable(folder):
        loose, classes = _listed(folder)
        origin = folder.resolve().name or str(folder)
    paths = loose or [path for files in classes.values() for path in files]
    labels = None
    if not loose:
        counts = [len(files) for files in classes.values()]
        labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    digests = _digests(paths, size, scaling)
    return ImageSet(
        origin=origin,
        digests=digests,
        labels=labels,
        decode=lambda indices: np.stack(
            [_decode_unchanged(paths[i], digests[i], size, scaling) for i in indices]
        ),
        class_names=() if loose else tuple(classes),
        place=str(folder),
    )


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = str(error.filename or folder)
        raise InputRefused(f"cannot be read ({error.strerror or error}).", where=where) from error


def _listed(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Return the loose images of a folder, or those of its class folders by name; never both."""
    where = str(folder)
    if not folder.is_dir():
        reason = "is not a folder." if folder.exists() else "does not exist."
        raise InputRefused(reason, where=where, cure="Name a folder of images.")
    loose = _image_files(folder)
    classes = {path.name: _image_files(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    if loose and any(classes.values()):
        cure = "Put every image into a class folder."
        raise InputRefused("has images beside class folders.", where=where, cure=cure)
    if not loose and not any(classes.values()):
        raise InputRefused(
            f"holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).",
            where=where,
            cure="Name a folder with one subfolder of images a class.",
        )
    empty = [name for name, files in classes.items() if not files]
    if empty and not loose:
        raise InputRefused(f"the class folders {empty} hold no images.", where=where)
    return loose, classes


def _image_files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    for path in paths:
        if not path.is_file():
            reason = "leads nowhere." if not path.exists() else "is named as an image and is not a file."
            raise InputRefused(reason, where=str(path), cure="Remove or rename it.")
    return paths


def _digests(paths: Sequence[Path], size: tuple[int, int], scaling: Scaling | None) -> tuple[str, ...]:
    """Decode every file in turn, and refuse those of another size together."""
    digests: list[str] = []
    others: list[_OtherSize] = []
    for path in paths:
        try:
            digests.append(content_digest(decode_file(path, size, scaling)))
        except _OtherSize as error:
            others.append(error)
    if not others:
        return tuple(digests)
    first, rest = others[0], others[1:]
    what = first.what
    if rest:
        named = [f"{error.where} ({error.found[0]}x{error.found[1]})" for error in rest[:_NAMED_AT_MOST]]
        end = ", ..." if len(rest) > _NAMED_AT_MOST else "."
        what += f" {len(rest)} more of the {len(paths)} images have another size: {', '.join(named)}{end}"
    raise InputRefused(what, where=first.where, cure=first.cure)


def _decode_unchanged(path: Path, digest: str, size: tuple[int, int], scaling: Scaling | None) -> Frames:
    # Unscaled, a file that has another size by now is told by its digest, as any other that has changed.
    frame = decode_file(path, size, scaling) if scaling else decode_file(path)
    if content_digest(frame) != digest:
        raise StaleArtifact(
            "has changed since it was listed.", where=str(path), cure="Leave the images alone and run again."
        )
    return frame


def decode_file(path: Path, size: tuple[int, int] | None = None, scaling: Scaling | None = None) -> Frames:
    """Decode one image file to (H, W, 3) uint8 RGB; grey is repeated, EXIF orientation is applied.

    With `scaling`, the middle of `size` is cut out of the scaled image; an image that has `size` to begin
    with is scaled too.

    Raises:
        InputRefused: Unreadable, no image, a mode other than RGB and 8-bit grey, or not of `size`
            (height, width).
        RuntimeUnavailable: Pillow is not installed.
    """
    image_module, image_ops = _pillow()
    try:
        with image_module.open(path) as opened:
            # By the header first, so that a large photograph costs no decoding; turning may swap the sides.
            exact = size if scaling is None else None
            if exact is not None and sorted(opened.size) != sorted(exact):
                raise _OtherSize(path, (opened.height, opened.width), exact)
            image = image_ops.exif_transpose(opened)
            if exact is not None and (image.height, image.width) != exact:
                raise _OtherSize(path, (image.height, image.width), exact)
            if image.mode not in ("RGB", "L"):
                cure = "Convert it to RGB or 8-bit grey."
                raise InputRefused(f"has mode {image.mode}.", where=str(path), cure=cure)
            image = image.convert("RGB")
            if size is not None and scaling is not None:
                image = _scaled(image, size, scaling)
            return np.asarray(image, np.uint8)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        image_module.DecompressionBombError,
    ) as error:
        raise InputRefused(f"is no readable image ({error}).", where=str(path)) from error


def _scaled(image: Any, size: tuple[int, int], scaling: Scaling) -> Any:  # noqa: ANN401 - Pillow's
    """Scale an image until it just covers a rectangle, and cut the middle out.

    For squares that is what torchvision's Resize and CenterCrop do, to the pixel.
    """
    image_module, _ = _pillow()
    (height, width), (tall, wide) = size, scaling.cover
    if tall * image.width >= wide * image.height:
        scaled = (int(tall * image.width / image.height), tall)
    else:
        scaled = (wide, int(wide * image.height / image.width))
    image = image.resize(scaled, image_module.Resampling[scaling.interpolation.upper()])
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise RuntimeUnavailable(
            "reading image files needs Pillow, which is not installed.",
            cure="Try: pip install 'resedge[images]'",
        ) from error
    return Image, ImageOps


# --- the split -----------------------------------------------------------------------------------


def split(images: ImageSet, seed: int) -> Split:
    """Split one set into calibration (a quarter, at most 1,024), tuning (the same) and test (the rest).

    Stratified by class and decided by each image's digest and the seed alone, so neither the order nor
    the names of files matter. Copies of one image all land in one place, and leave the test set where
    they also occur in another.

    Raises:
        InputRefused: Too few images for three sets.
    """
    if len(images) < 8:
        raise InputRefused(
            f"{len(images)} images are too few to split into calibration, tuning and test.",
            where=images.place or images.origin,
            cure="Give more images, or --calibration-data and --test-data apart.",
        )
    share = min(1024, len(images) // 4)
    order = _stratified_order(images, seed)
    return disjoint(
        images.select(order[:share]),
        images.select(order[share : 2 * share]),
        images.select(order[2 * share :]),
    )


def halve(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split one set evenly into calibration and tuning images, stratified as `split` does.

    Raises:
        InputRefused: Fewer than two images.
    """
    if len(images) < 2:
        raise InputRefused(
            "one image cannot be split.", where=images.place or images.origin, cure="Give more images."
        )
    order = _stratified_order(images, seed)
    half = len(images) // 2
    return images.select(order[:half]), images.select(order[half:])


def disjoint(calibration: ImageSet, tuning: ImageSet, test: ImageSet) -> Split:
    """Make three sets disjoint by digest: tuning gives way to calibration, test to both.

    Raises:
        InputRefused: Nothing is left of a set.
    """
    tuning = without(tuning, frozenset(calibration.digests))
    kept = without(test, frozenset(calibration.digests) | frozenset(tuning.digests))
    return Split(calibration, tuning, kept, overlaps=len(test) - len(kept))


def without(images: ImageSet, seen: frozenset[str]) -> ImageSet:
    """Return the images whose digests are not among `seen`.

    Raises:
        InputRefused: None is left.
    """
    kept = [i for i, digest in enumerate(images.digests) if digest not in seen]
    if not kept:
        raise InputRefused(
            f"all {len(images)} images already serve calibration or tuning.",
            where=images.place or images.origin,
            cure="Give images that no earlier stage has seen.",
        )
    return images if len(kept) == len(images) else images.select(kept)


def _stratified_order(images: ImageSet, seed: int) -> list[int]:
    """Order the images so that every prefix has the classes in proportion."""
    labels = np.zeros(len(images), np.int64) if images.labels is None else images.labels
    ranks = [hashlib.sha256(f"{seed}:{digest}".encode()).digest() for digest in images.digests]
    position: dict[int, float] = {}
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: (ranks[i], i))
        position.update({i: (k + 0.5) / len(members) for k, i in enumerate(members)})
    return sorted(position, key=lambda i: (position[i], ranks[i], i))
