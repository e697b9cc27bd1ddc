"""The wire format of Protocol Buffers (protobuf.dev, "Encoding"), walked without a library.

A message is a row of fields: a key of number and type, then a varint, 8 bytes, 4 bytes, or a length and as
many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_LONGEST_VARINT = 70  # bits, seven a byte


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Yield the number of each field in order, and its content where it has a length.

    Raises:
        ValueError: This is no message.
    """
    at = 0
    try:
        while at < len(message):
            key, at = _varint(message, at)
            content, at = _content(message, at, key & 7)
            yield key >> 3, content
    except IndexError as error:
        raise ValueError("a field ends behind its message") from error


def _content(message: memoryview, at: int, kind: int) -> tuple[memoryview | None, int]:
    """Return the content of the field that starts at `at`, and where it ends."""
    if kind == _VARINT:
        _, end = _varint(message, at)
        return None, end
    if kind == _BYTES:
        length, at = _varint(message, at)
        if at + length > len(message):
            raise IndexError(at + length)
        return message[at : at + length], at + length
    if kind in (_EIGHT_BYTES, _FOUR_BYTES):
        return None, at + (8 if kind == _EIGHT_BYTES else 4)
    raise ValueError("a field is of an unknown kind")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number that starts at `at`, and where it ends."""
    value = shift = 0
    while shift < _LONGEST_VARINT:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    raise ValueError("a number has no end")
