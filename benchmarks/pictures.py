"""Small pictures for a page: frames as PNG, by the standard library alone."""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt

THUMBNAIL: Final = 64  # pixels of the longer side, at most

Frame = npt.NDArray[np.uint8]  # (H, W, 3), RGB, or (H, W, 4), RGBA

_COLOUR_TYPES: Final = {3: 2, 4: 6}  # of PNG, by the number of channels


def thumbnail(frame: Frame) -> Frame:
    """Return a frame with its longer side at most `THUMBNAIL`: each pixel the mean of a block of them."""
    height, width, channels = frame.shape
    block = -(-max(height, width) // THUMBNAIL)
    if block == 1:
        return frame
    rows, columns = max(height // block, 1), max(width // block, 1)
    cropped = frame[: rows * block, : columns * block]
    blocks = cropped.reshape(rows, min(block, height), columns, min(block, width), channels)
    return np.ascontiguousarray(blocks.mean(axis=(1, 3)).round().astype(np.uint8))


def png(frame: Frame) -> bytes:
    """Return a frame as PNG, each row as its differences from the row above (RFC 2083, filter 2)."""
    height, width, channels = frame.shape
    above = np.vstack([np.zeros_like(frame[:1]), frame[:-1]])
    rows = (frame - above).reshape(height, width * channels)  # bytes, modulo 256
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows])
    header = struct.pack(">2I5B", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
