"""The gate of safetensors: the header is read here before the library sees the file.

A safetensors file cannot run code, but a crafted header can cost seconds and gigabytes before the library
refuses it (half a million empty tensors: 14 s, 1.3 GB). So the header is read here first, within limits
that every ResNet meets with room to spare (a ResNet-152 has about 1,000 tensors and a 100 kB header).
"""

from __future__ import annotations

import io
import os
import stat
import struct
from pathlib import Path
from typing import Any

from resedge.artifacts import parse_json
from resedge.errors import InputRefused

MAX_BYTES = 8 << 30
MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 4096
MAX_RANK = 8


def read_safetensors(path: Path) -> bytes:
    """Read a safetensors file whose header is within the limits, in one opening.

    Returns:
        The whole file: the very bytes that were checked, whatever becomes of the file afterwards. The
        data behind the header is left to the safetensors library.

    Raises:
        InputRefused: A folder, missing, unreadable, truncated, not safetensors, or a header beyond the
            limits.
    """
    where = str(path)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be searched
        raise InputRefused("is a folder, not a .safetensors file.", where=where)
    if path.suffix != ".safetensors":
        raise InputRefused(
            "weights are read from .safetensors files only.",
            where=where,
            cure="Save them with safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
        )
    try:
        with _open_file(path) as stream:
            length = _header_length(stream, where)
            data = stream.read()
    except OSError as error:
        raise InputRefused(f"cannot be read ({error.strerror}).", where=where) from error
    _check_header(data[8 : 8 + length], len(data) - 8 - length, where)
    return data


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file, whatever the file is called, within the limits.

    Returns:
        "dtype", "shape" and "data_offsets" by the tensor's name, and "__metadata__" where there is any.

    Raises:
        InputRefused: As `read_safetensors`.
    """
    where = str(path)
    try:
        with _open_file(path) as stream:
            length = _header_length(stream, where)
            header = stream.read(8 + length)[8:]
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise InputRefused(f"cannot be read ({error.strerror}).", where=where) from error
    return _check_header(header, size - 8 - length, where)


def check_safetensors(data: bytes, where: str) -> dict[str, Any]:
    """Check the header of a safetensors file that was read already, and return it.

    Args:
        data: The whole file.
        where: Named in errors, such as the file's path.

    Returns:
        As `read_safetensors_header`.

    Raises:
        InputRefused: As `read_safetensors`.
    """
    length = _length_of(data[:8], len(data), where)
    return _check_header(data[8 : 8 + length], len(data) - 8 - length, where)


def _open_file(path: Path) -> io.BufferedReader:
    """Open a regular file; a pipe would let whoever opens it wait."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputRefused("is not a regular file.", where=str(path))
    return path.open("rb")


def _header_length(stream: io.BufferedReader, where: str) -> int:
    """Return the header's length in bytes, within the limits; the stream is left at the file's start."""
    length = _length_of(stream.read(8), os.fstat(stream.fileno()).st_size, where)
    stream.seek(0)
    return length


def _length_of(prefix: bytes, size: int, where: str) -> int:
    """Return the header's length that a file's first 8 bytes claim, within the limits."""
    if size > MAX_BYTES:
        raise InputRefused(f"has {size:,} bytes, more than {MAX_BYTES:,}.", where=where)
    if len(prefix) < 8:
        raise InputRefused(f"is no safetensors file: only {size} bytes.", where=where)
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES or length > size - 8:
        raise InputRefused(
            f"is no safetensors file, or is truncated: its header claims {length} bytes, "
            f"the file has {size}.",
            where=where,
        )
    return int(length)


def _check_header(header: bytes, data_bytes: int, where: str) -> dict[str, Any]:
    """Check the header's JSON, and that its tensors lie within the `data_bytes` bytes behind it."""
    try:
        tensors = parse_json(header.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise InputRefused("is no safetensors file: its header is not UTF-8.", where=where) from error
    if not isinstance(tensors, dict):
        raise InputRefused("its header is not a JSON object.", where=where)
    names = [name for name in tensors if name != "__metadata__"]
    if not names:
        raise InputRefused("holds no tensor.", where=where)
    if len(names) > MAX_TENSORS:
        raise InputRefused(f"has {len(names)} tensors, more than {MAX_TENSORS}.", where=where)
    for name in names:
        _check_entry(name, tensors[name], data_bytes, where)
    return tensors


def _check_entry(name: str, entry: object, data_bytes: int, where: str) -> None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputRefused(f"the header's entry {name!r} is malformed.", where=where)
    shape, offsets = entry["shape"], entry["data_offsets"]
    sizes_are_whole = isinstance(shape, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape
    )
    if not sizes_are_whole or len(shape) > MAX_RANK:
        raise InputRefused(f"the shape of {name!r} is {shape!r:.60}.", where=where)
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(isinstance(offset, int) for offset in offsets)
        or not 0 <= offsets[0] <= offsets[1]
    ):
        raise InputRefused(f"the data offsets of {name!r} are malformed.", where=where)
    if offsets[1] > data_bytes:
        raise InputRefused(
            f"is truncated: {name!r} ends at byte {offsets[1]} of the data, the file has {data_bytes}.",
            where=where,
        )
