"""Image files by name: a folder with a subfolder a class, or a list with labels.

Every file is decoded once, one at a time, for its digest; `decode` of the set checks it again. Files that
cannot be decoded are left out, and the set names them.
"""

from __future__ import annotations

import csv
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from resedge.artifacts import read_text
from resedge.errors import InputRefused, StaleArtifact
from resedge.images.decoding import AS_IT_IS, IMAGE_SUFFIXES, Decoding, NotDecodable, OtherSize, decode_file
from resedge.images.preparing import Frames
from resedge.images.sets import ImageSet, Undecodable, content_digest
from resedge.protocols import Int64Array

LIST_SUFFIXES: Final = frozenset({".csv", ".txt"})
_LARGEST_LIST: Final = 1 << 28  # bytes
_NAMED_AT_MOST = 3


def read_folder(folder: Path, size: tuple[int, int], decoding: Decoding = AS_IT_IS) -> ImageSet:
    """Read a tree of images: one subfolder a class (in sorted order), or images alone, unlabelled.

    Args:
        folder: Where the images are.
        size: Height and width that every image must have, pixels, once it is scaled.
        decoding: How a file becomes a frame.

    Raises:
        InputRefused: Missing, unreadable, not a folder, without images, classes and loose images mixed, an
            image of another size or mode, or none that can be decoded.
        RuntimeUnavailable: Pillow is not installed.
    """
    with _readable(folder):
        loose, classes = _listed(folder)
    if loose:
        return _set_of(folder, loose, None, (), size, decoding)
    paths = [path for files in classes.values() for path in files]
    counts = [len(files) for files in classes.values()]
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return _set_of(folder, paths, labels, tuple(classes), size, decoding)


def read_list(file: Path, size: tuple[int, int], decoding: Decoding = AS_IT_IS) -> ImageSet:
    """Read the images that a list names, in its order.

    A line of a .txt is a path, a space and a label; a row of a .csv a path, or a path and a label, below a
    row "path,label" or not. Paths are relative to the list's folder. Labels that are all whole numbers are
    the model's classes, counted from 0; otherwise they are names of classes.

    Args:
        file: The list, UTF-8.
        size: Height and width that every image must have, pixels, once it is scaled.
        decoding: How a file becomes a frame.

    Raises:
        InputRefused: The list is unreadable, empty or malformed (the line is named), a file is not there, or
            as `read_folder`.
        RuntimeUnavailable: Pillow is not installed.
    """
    rows = _rows(file)
    paths = [_named_file(file, number, row[0]) for number, row in rows]
    written = [row[1].strip() for _, row in rows if len(row) > 1]
    if len(written) not in (0, len(rows)):
        raise InputRefused("has labels for some images and not for others.", where=str(file))
    if not written:
        return _set_of(file, paths, None, (), size, decoding)
    if all(label.isascii() and label.isdigit() and len(label) < 10 for label in written):
        return _set_of(file, paths, np.array([int(label) for label in written], np.int64), (), size, decoding)
    names = sorted(set(written))
    position = {name: index for index, name in enumerate(names)}
    labels = np.array([position[label] for label in written], np.int64)
    return _set_of(file, paths, labels, tuple(names), size, decoding)


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """Return the lines of a list that say something, split, with their numbers."""
    with _readable(file):
        if file.stat().st_size > _LARGEST_LIST:
            raise InputRefused(f"is larger than {_LARGEST_LIST:,} bytes.", where=str(file))
    lines = read_text(file).splitlines()
    try:
        split = (
            csv.reader(lines, strict=True) if file.suffix.lower() == ".csv" else map(_path_and_label, lines)
        )
        rows = [(number, row) for number, row in enumerate(split, 1) if row and row[0].strip()]
    except csv.Error as error:
        raise InputRefused(f"is no CSV ({error}).", where=str(file)) from error
    if rows and [cell.strip().lower() for cell in rows[0][1]] in (["path"], ["path", "label"]):
        del rows[0]
    if not rows:
        raise InputRefused("names no images.", where=str(file))
    for number, row in rows:
        if len(row) > 2 or (file.suffix.lower() == ".txt" and len(row) != 2):
            raise InputRefused("is not a path and a label.", where=f"{file}: line {number}")
    return rows


def _path_and_label(line: str) -> list[str]:
    return line.strip().rsplit(maxsplit=1)


def _named_file(file: Path, number: int, name: str) -> Path:
    path = file.parent / name.strip()
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # a ValueError: a name with a null byte
        is_file = False
    if not is_file:
        raise InputRefused(
            f"names {name.strip()!r:.200}, which is no file.",
            where=f"{file}: line {number}",
            cure="Paths are relative to the list's folder.",
        )
    return path


def _set_of(
    place: Path,
    paths: Sequence[Path],
    labels: Int64Array | None,
    class_names: tuple[str, ...],
    size: tuple[int, int],
    decoding: Decoding,
) -> ImageSet:
    found, undecodable = _digests(paths, size, decoding)
    if not found:
        first = undecodable[0]
        raise InputRefused(
            f"none of the {len(paths)} images can be decoded; the first is {first.path} ({first.reason}).",
            where=str(place),
        )
    kept, digests = [paths[i] for i in found], tuple(found.values())
    with _readable(place):
        origin = place.resolve().name or str(place)
    return ImageSet(
        origin=origin,
        digests=digests,
        labels=None if labels is None else labels[list(found)],
        decode=lambda indices: np.stack(
            [_decode_unchanged(kept[i], digests[i], size, decoding) for i in indices]
        ),
        class_names=class_names,
        place=str(place),
        undecodable=tuple(undecodable),
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


def _digests(
    paths: Sequence[Path], size: tuple[int, int], decoding: Decoding
) -> tuple[dict[int, str], list[Undecodable]]:
    """Decode every file in turn: digests by position, and those that cannot be decoded.

    Raises:
        InputRefused: Images of another size, all of them together.
    """
    digests: dict[int, str] = {}
    others: list[OtherSize] = []
    undecodable: list[Undecodable] = []
    for position, path in enumerate(paths):
        try:
            digests[position] = content_digest(decode_file(path, size, decoding))
        except OtherSize as error:
            others.append(error)
        except NotDecodable as error:
            undecodable.append(Undecodable(str(path), error.reason))
    if others:
        raise _together(others, len(paths))
    return digests, undecodable


def _together(others: Sequence[OtherSize], images: int) -> InputRefused:
    """Return one refusal of all images of another size."""
    first, rest = others[0], others[1:]
    what = first.what
    if rest:
        named = [f"{error.where} ({error.found[0]}x{error.found[1]})" for error in rest[:_NAMED_AT_MOST]]
        end = ", ..." if len(rest) > _NAMED_AT_MOST else "."
        what += f" {len(rest)} more of the {images} images have another size: {', '.join(named)}{end}"
    return InputRefused(what, where=first.where, cure=first.cure)


def _decode_unchanged(path: Path, digest: str, size: tuple[int, int], decoding: Decoding) -> Frames:
    # Unscaled, a file that has another size by now is told by its digest, as any other that has changed.
    frame = decode_file(path, None if decoding.cover is None else size, decoding)
    if content_digest(frame) != digest:
        raise StaleArtifact(
            "has changed since it was listed.", where=str(path), cure="Leave the images alone and run again."
        )
    return frame
