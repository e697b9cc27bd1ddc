"""The golden images of a bundle: which they are, and what an engine must reach on them.

They are read with numpy alone, on workstations and devices, from a file that a stranger may have written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from resedge.artifacts import Artifact, decode, parse_json
from resedge.errors import InputRefused
from resedge.gate import check_safetensors
from resedge.protocols import Array, Float32Array, Int64Array

THRESHOLDS_VERSION: Final = 1


@dataclass(frozen=True)
class Thresholds:
    """What a device's trial demands: on how many images, and what share of them must be eager's class."""

    format_version: int
    images: int
    min_agreement: float


def surest(logits: Float32Array, count: int) -> Int64Array:
    """Return which images are golden, about `count` of them: of each class that eager finds, the surest.

    An engine that is the same model, at whatever precision, agrees with eager on all of them; the export
    checks it of every engine that it builds.

    Args:
        logits: Eager's, (N, classes) float32.
        count: Classes have the same number each, rounded up; where there are more classes, some have none.
    """
    best = np.sort(logits, axis=1)
    margin, found = best[:, -1] - best[:, -2], logits.argmax(axis=1)
    classes = logits.shape[1]
    each = -(-count // classes)
    by_margin = np.argsort(-margin, kind="stable")
    chosen = np.concatenate([by_margin[found[by_margin] == label][:each] for label in range(classes)])
    if classes > count:
        chosen = chosen[np.argsort(-margin[chosen], kind="stable")][:count]
    return np.sort(chosen)


def read_golden(golden: Artifact) -> tuple[Array, Float32Array]:
    """Return the images as engines take them, and eager's logits, (N, classes) float32.

    Images are (N, C, H, W) float32 or frames, (N, H, W, 3 or 4) uint8.

    Raises:
        InputRefused: It is no sound safetensors file, or holds something else.
        StaleArtifact: The file has changed.
    """
    data, where = golden.read(), str(golden.path)
    header = check_safetensors(data, where)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    start = _start_of_data(data, tensors, where)
    if not {"input", "logits"} <= set(tensors):
        raise InputRefused("does not hold the input and the logits of as many images.", where=where)
    images = _tensor(data, start, tensors["input"], where)
    logits = _floats(data, start, tensors["logits"], where)
    if (images.ndim, logits.ndim) != (4, 2) or len(images) != len(logits):
        raise InputRefused("does not hold the input and the logits of as many images.", where=where)
    if not len(images):
        raise InputRefused("does not hold float32 numbers, or frames, of at least one image.", where=where)
    return images, logits


def read_thresholds(thresholds: Artifact) -> Thresholds:
    """Return what a trial demands.

    Raises:
        InputRefused: It is of another version or form, or demands what no engine could reach.
        StaleArtifact: The file has changed.
    """
    where = str(thresholds.path)
    try:
        document = parse_json(thresholds.read().decode(), where)
    except UnicodeDecodeError as error:
        raise InputRefused("is not UTF-8 text.", where=where) from error
    found = decode(Thresholds, document, where)
    if found.format_version != THRESHOLDS_VERSION:
        raise InputRefused(
            f"has format version {found.format_version}, this resedge reads {THRESHOLDS_VERSION}.",
            where=where,
        )
    if found.images < 1 or not 0 < found.min_agreement <= 1:
        raise InputRefused("demands no images, or no agreement that there can be.", where=where)
    return found


def agreement(logits: Float32Array, expected: Float32Array) -> float:
    """Return the share of images, the rows, for which both choose the same class."""
    return float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean())


def _start_of_data(data: bytes, tensors: Mapping[str, Any], where: str) -> int:
    """Return where the data begins, which the tensors must fill, one behind the other, to the file's end."""
    (header,) = struct.unpack("<Q", data[:8])
    start = end = 8 + int(header)
    for begin, next_end in sorted(tuple(entry["data_offsets"]) for entry in tensors.values()):
        if start + begin != end:
            raise InputRefused("is not a sound safetensors file: its tensors do not adjoin.", where=where)
        end = start + next_end
    if end != len(data):
        raise InputRefused("is not a sound safetensors file: it ends in bytes of no tensor.", where=where)
    return start


def _tensor(data: bytes, start: int, entry: Mapping[str, Any], where: str) -> Array:
    """Return a tensor of floats or of bytes; the data of all tensors begins at `start`."""
    if entry["dtype"] != "U8":
        return _floats(data, start, entry, where)
    shape: tuple[int, ...] = tuple(entry["shape"])
    return np.frombuffer(_part(data, start, entry, 1, where), np.uint8).reshape(shape)


def _floats(data: bytes, start: int, entry: Mapping[str, Any], where: str) -> Float32Array:
    """Return a tensor of floats as an array of its own."""
    if entry["dtype"] != "F32":
        raise InputRefused(
            "does not hold float32 numbers, or frames, of at least one image.",
            where=where,
        )
    shape: tuple[int, ...] = tuple(entry["shape"])
    return np.frombuffer(_part(data, start, entry, 4, where), "<f4").reshape(shape).astype(np.float32)


def _part(data: bytes, start: int, entry: Mapping[str, Any], size: int, where: str) -> bytes:
    """Return a tensor's bytes, `size` of them a number."""
    begin, end = entry["data_offsets"]
    if end - begin != size * math.prod(entry["shape"]):
        raise InputRefused("is not a sound safetensors file: a shape is not its size.", where=where)
    return data[start + begin : start + end]
