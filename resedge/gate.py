"""What looks at a file from a stranger before anything else does.

A safetensors file cannot run code, but a crafted header can cost seconds and gigabytes before the library
refuses it (half a million empty tensors: 14 s, 1.3 GB). So the header is read here first, within limits
that every ResNet meets with room to spare (a ResNet-152 has about 1,000 tensors and a 100 kB header).

A checkpoint of torch is a ZIP archive with a pickle in it. What the pickle may do is torch's to limit; that
the archive is what torch writes, and does not unfold to more than it is, is looked at here.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

from resedge.artifacts import parse_json
from resedge.errors import InputRefused

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 4096
MAX_RANK = 8
MAX_CHECKPOINT_BYTES = 8 << 30  # weights, their averages and an optimiser's state of 600 million parameters
MAX_CHECKPOINT_ENTRIES = 20_000
MAX_PICKLE_BYTES = 16 << 20


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
        with path.open("rb") as stream:
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
        with path.open("rb") as stream:
            length = _header_length(stream, where)
            header = stream.read(8 + length)[8:]
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise InputRefused(f"cannot be read ({error.strerror}).", where=where) from error
    return _check_header(header, size - 8 - length, where)


def check_checkpoint(path: Path) -> None:
    """Check that a file is an archive as torch.save writes it, within the limits; nothing is unpacked.

    Raises:
        InputRefused: A folder, missing, unreadable, of torch's old format, compressed, or beyond the limits.
    """
    where = str(path)
    if os.path.isdir(path):  # noqa: PTH112 - as above
        raise InputRefused("is a folder, not a checkpoint.", where=where)
    try:
        with path.open("rb") as stream:
            size, head = os.fstat(stream.fileno()).st_size, stream.read(4)
            if head != b"PK\x03\x04":
                raise InputRefused(
                    "is no checkpoint as torch writes it since version 1.6, or is damaged.",
                    where=where,
                    cure="Load it where it was made, and save its state_dict: safetensors.torch.save_file.",
                )
            if size > MAX_CHECKPOINT_BYTES:
                raise InputRefused(f"has {size:,} bytes, more than {MAX_CHECKPOINT_BYTES:,}.", where=where)
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
    except OSError as error:
        raise InputRefused(f"cannot be read ({error.strerror}).", where=where) from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputRefused(f"is a damaged archive ({error}).", where=where) from error
    _check_entries(entries, where)


def _check_entries(entries: list[zipfile.ZipInfo], where: str) -> None:
    """Check what an archive's directory says of its entries."""
    if len(entries) > MAX_CHECKPOINT_ENTRIES:
        raise InputRefused(
            f"has {len(entries):,} entries, more than {MAX_CHECKPOINT_ENTRIES:,}.", where=where
        )
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise InputRefused("is compressed or encrypted, which torch.save never does.", where=where)
    inside = {entry.filename.split("/", 1)[-1]: entry.file_size for entry in entries}
    if any(name.startswith("code/") for name in inside):
        raise InputRefused(
            "is a TorchScript program, which is code.",
            where=where,
            cure="Save the state_dict of the model that it was made from.",
        )
    if "data.pkl" not in inside:
        raise InputRefused("is an archive, and no checkpoint of torch.", where=where)
    if inside["data.pkl"] > MAX_PICKLE_BYTES:
        raise InputRefused(
            f"has a pickle of {inside['data.pkl']:,} bytes, more than {MAX_PICKLE_BYTES:,}.", where=where
        )


def _header_length(stream: io.BufferedReader, where: str) -> int:
    """Return the header's length in bytes, within the limits; the stream is left at the file's start."""
    size = os.fstat(stream.fileno()).st_size
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise InputRefused(f"is no safetensors file: only {size} bytes.", where=where)
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES or length > size - 8:
        raise InputRefused(
            f"is no safetensors file, or is truncated: its header claims {length} bytes, "
            f"the file has {size}.",
            where=where,
        )
    stream.seek(0)
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
