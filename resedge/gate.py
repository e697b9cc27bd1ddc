"""What looks at a file from a stranger before anything else does.

A safetensors file cannot run code, but a crafted header can cost seconds and gigabytes before the library
refuses it (half a million empty tensors: 14 s, 1.3 GB). So the header is read here first, within limits
that every ResNet meets with room to spare (a ResNet-152 has about 1,000 tensors and a 100 kB header).
"""

from __future__ import annotations

import struct
from pathlib import Path

from resedge.artifacts import parse_json
from resedge.errors import InputRefused

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 4096
MAX_RANK = 8


def check_safetensors(path: Path) -> None:
    """Check the header of a safetensors file; the data behind it is left to the safetensors library.

    Raises:
        InputRefused: Missing, unreadable, truncated, not safetensors, or a header beyond the limits.
    """
    where = str(path)
    if path.suffix != ".safetensors":
        raise InputRefused(
            "weights are read from .safetensors files only.",
            where=where,
            cure="Save them with safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
        )
    header, data_bytes = _read_header(path, where)
    tensors = parse_json(header, where)
    if not isinstance(tensors, dict):
        raise InputRefused("its header is not a JSON object.", where=where)
    names = [name for name in tensors if name != "__metadata__"]
    if not names:
        raise InputRefused("holds no tensor.", where=where)
    if len(names) > MAX_TENSORS:
        raise InputRefused(f"has {len(names)} tensors, more than {MAX_TENSORS}.", where=where)
    for name in names:
        _check_entry(name, tensors[name], data_bytes, where)


def _read_header(path: Path, where: str) -> tuple[str, int]:
    """Return the header's text and the number of bytes behind it."""
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
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
            return stream.read(length).decode("utf-8"), size - 8 - length
    except OSError as error:
        raise InputRefused(f"cannot be read ({error.strerror}).", where=where) from error
    except UnicodeDecodeError as error:
        raise InputRefused("is no safetensors file: its header is not UTF-8.", where=where) from error


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
