"""The torch module behind each node of an ONNX file, read without the onnx library.

A device that builds plans has TensorRT and numpy and no more. What is needed of the file is three fields of
each node, so it is walked as protobuf's wire format (protobuf.dev, "Encoding"): a key of field number and
type, then a varint, 8 bytes, 4 bytes, or a length and as many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

MODULE_KEY: Final = "resedge.module"

# Field numbers of onnx.proto.
_GRAPH, _NODE, _NODE_NAME, _NODE_METADATA, _ENTRY_KEY, _ENTRY_VALUE = 7, 1, 3, 9, 1, 2
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def modules_of(model: bytes) -> dict[str, str]:
    """Map a node's name to the torch module that it came from; nodes without one are left out.

    Raises:
        ValueError: This is no ONNX file.
    """
    modules: dict[str, str] = {}
    try:
        for graph in _fields(memoryview(model), _GRAPH):
            for node in _fields(graph, _NODE):
                name = _text(node, _NODE_NAME)
                entries = {
                    _text(e, _ENTRY_KEY): _text(e, _ENTRY_VALUE) for e in _fields(node, _NODE_METADATA)
                }
                if module := entries.get(MODULE_KEY):
                    modules[name] = module
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("this is no ONNX file") from error
    return modules


def _text(message: memoryview, number: int) -> str:
    return "".join(bytes(value).decode() for value in _fields(message, number))


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the content of each field of that number that has a length."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise IndexError("a field ends behind its message")
            if key >> 3 == number:
                yield message[at : at + length]
            at += length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise IndexError("a field of an unknown kind")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number that starts at `at`, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
