"""One image file to RGB, through Pillow; to RGBA for a model that takes alpha.

EXIF orientation is applied. Grey and black-and-white are repeated to three channels; a palette is looked up.
Alpha is dropped, and the colours under it stay, as torchvision's loader does, with which most models were
trained; for a model that takes it, it stays, and an image without any is opaque. Other modes (CMYK, 16-bit
grey, float) are refused. Pillow reads many formats, some by running other programs; only those of
`IMAGE_SUFFIXES` are let through, whatever a file is called.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from resedge.artifacts import Preprocessing
from resedge.errors import InputRefused, RuntimeUnavailable
from resedge.images.preparing import Frames

IMAGE_SUFFIXES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_FORMATS: Final = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})


@dataclass(frozen=True)
class Decoding:
    """How a file becomes a frame.

    An image is scaled until it just covers `cover`, (height, width); None: it must have the model's size.
    With `alpha` frames have four channels, RGBA.
    """

    cover: tuple[int, int] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    alpha: bool = False


AS_IT_IS: Final = Decoding()


def decoding_of(preprocessing: Preprocessing) -> Decoding:
    """Return how image files become the frames that a model's input is prepared from."""
    return Decoding(preprocessing.resize, preprocessing.interpolation, preprocessing.channels == "RGBA")


class OtherSize(InputRefused):
    """An image has another size, `found`, than the model takes; both are (height, width)."""

    def __init__(self, path: Path, found: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__(
            f"is {found[0]}x{found[1]}, the model takes {size[0]}x{size[1]} (height x width).",
            where=str(path),
            cure=f"Resize the images to {size[0]}x{size[1]} first, or export with --resize.",
        )
        self.found = found


class NotDecodable(InputRefused):
    """A file can be read and is no image, a damaged one, or a bomb; `reason` says which."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"is no readable image ({reason}).", where=str(path))
        self.reason = reason


def decode_file(path: Path, size: tuple[int, int] | None = None, decoding: Decoding = AS_IT_IS) -> Frames:
    """Decode one image file to (H, W, 3) uint8 RGB, or (H, W, 4) RGBA, by the rules of this module.

    Where it is scaled, the middle of `size` is cut out of the scaled image; an image that has `size` to begin
    with is scaled too.

    Raises:
        InputRefused: Unreadable (`NotDecodable` where its content is at fault), of another mode, or not of
            `size` (height, width).
        RuntimeUnavailable: Pillow is not installed.
    """
    image_module, image_ops = _pillow()
    try:
        with warnings.catch_warnings():
            # Pillow warns of an image of more than 89 million pixels, and refuses one of twice as many.
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            with image_module.open(path, formats=_FORMATS) as opened:
                # By the header first: a large photograph then costs no decoding. Turning may swap the sides.
                exact = size if decoding.cover is None else None
                if exact is not None and sorted(opened.size) != sorted(exact):
                    raise OtherSize(path, (opened.height, opened.width), exact)
                image = _upright(opened, image_ops, path, exact, decoding.alpha)
                if size is not None and decoding.cover is not None:
                    image = _scaled(image, size, decoding.cover, decoding.interpolation)
                return np.asarray(image, np.uint8)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        image_module.DecompressionBombError,
        image_module.DecompressionBombWarning,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputRefused(f"is no readable image ({error}).", where=str(path)) from error
        raise NotDecodable(path, " ".join(str(error).replace(f" {str(path)!r}", "").split())) from error


def _upright(
    opened: Any,  # noqa: ANN401 - Pillow's
    image_ops: Any,  # noqa: ANN401
    path: Path,
    size: tuple[int, int] | None,
    alpha: bool,
) -> Any:  # noqa: ANN401
    """Return the image, Pillow's, as it is meant to be seen."""
    image = image_ops.exif_transpose(opened)
    if size is not None and (image.height, image.width) != size:
        raise OtherSize(path, (image.height, image.width), size)
    if image.mode not in _MODES:
        cure = "Convert it to RGB or 8-bit grey."
        raise InputRefused(f"has mode {image.mode}.", where=str(path), cure=cure)
    if alpha:
        return image.convert("RGBA")
    image.info.pop("transparency", None)  # a palette's alpha, of which Pillow warns
    return image.convert("RGB")


def _scaled(
    image: Any,  # noqa: ANN401 - Pillow's
    size: tuple[int, int],
    cover: tuple[int, int],
    interpolation: Literal["bilinear", "bicubic"],
) -> Any:  # noqa: ANN401
    """Scale an image until it just covers a rectangle, and cut the middle out.

    For squares that is what torchvision's Resize and CenterCrop do, to the pixel.
    """
    image_module, _ = _pillow()
    (height, width), (tall, wide) = size, cover
    if tall * image.width >= wide * image.height:
        scaled = (int(tall * image.width / image.height), tall)
    else:
        scaled = (wide, int(wide * image.height / image.width))
    image = image.resize(scaled, image_module.Resampling[interpolation.upper()])
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
