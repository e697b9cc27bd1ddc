"""Whatever the user names as images, told by what it is called."""

from __future__ import annotations

from pathlib import Path

from resedge.errors import InputRefused
from resedge.images.arrays import read_idx, read_npz
from resedge.images.decoding import AS_IT_IS, Decoding
from resedge.images.listing import LIST_SUFFIXES, read_folder, read_list
from resedge.images.sets import ImageSet

KNOWN = (
    "a folder with one subfolder of images a class, a list (.txt, .csv), numpy's .npz, "
    "an idx file (…-images-idx3-ubyte, packed as .gz or not)"
)


def read(place: Path, size: tuple[int, int], decoding: Decoding = AS_IT_IS) -> ImageSet:
    """Read a folder, a list, an .npz or an idx file.

    Args:
        place: Where the images are.
        size: Height and width that every image must have, pixels, once it is scaled.
        decoding: How a file becomes a frame; arrays are never scaled.

    Raises:
        InputRefused: None of these, or not what it must be.
        RuntimeUnavailable: Pillow is needed and not installed.
    """
    if not place.is_file():
        return read_folder(place, size, decoding)
    suffix = place.suffix.lower()
    if suffix in LIST_SUFFIXES:
        return read_list(place, size, decoding)
    if suffix == ".npz":
        return read_npz(place, size, decoding)
    if "-idx" in place.name or ".idx" in place.name:
        return read_idx(place, size, decoding)
    raise InputRefused("holds no images in a known form.", where=str(place), cure=f"Known: {KNOWN}.")
