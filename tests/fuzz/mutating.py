"""Bytes near to those of a sound file: flips, cuts, splices, lengths and numbers that lie. Seeded."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

LENGTHS = (0, 1, 7, 127, 128, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1)
TEXTS = (
    b"0",
    b"-1",
    b"1e999",
    b"-0.0",
    b"9" * 5000,
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b"NaN",
    b"[" * 3000,
)
STRINGS = (b"", b"../../x", b"/etc/passwd", b"\\u0000", b"\\ud800", b"a" * 300, b"I64", b"openvino", b".")
NUMBER, STRING = re.compile(rb"-?\d+(?:\.\d+)?"), re.compile(rb'"[^"\\]*"')

Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def _place(data: bytearray, chance: random.Random) -> tuple[int, int]:
    """Choose a short stretch of the data, which may be empty."""
    start = chance.randrange(len(data) + 1)
    return start, min(len(data), start + int(chance.expovariate(1 / 12)))


def _flip(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    for _bit in range(chance.randint(1, 6)):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))


def _cut_end(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _cut_out(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    start, end = _place(data, chance)
    del data[start:end]


def _repeat(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    start, end = _place(data, chance)
    data[end:end] = data[start:end] * chance.choice((1, 2, 40))


def _splice(data: bytearray, chance: random.Random, others: Sequence[bytes]) -> None:
    other = bytearray(chance.choice(others))
    start, end = _place(data, chance)
    from_, to = _place(other, chance)
    data[start:end] = other[from_:to]


def _length(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    """Put a length where one may stand: as a varint of Protocol Buffers, or in 4 or 8 bytes."""
    value = chance.choice(LENGTHS)
    width = chance.choice((0, 4, 8))
    lie = value.to_bytes(8, "little")[:width] if width else _varint(value)
    start = 0 if chance.random() < 0.2 else chance.randrange(len(data) + 1)
    data[start : start + len(lie)] = lie


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _number(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    _put(data, chance, NUMBER, (*TEXTS, *(b"%d" % value for value in LENGTHS)))


def _string(data: bytearray, chance: random.Random, _: Sequence[bytes]) -> None:
    _put(data, chance, STRING, (*TEXTS, *(b'"%s"' % value for value in STRINGS)))


def _put(data: bytearray, chance: random.Random, what: re.Pattern[bytes], by: Sequence[bytes]) -> None:
    found = list(what.finditer(data))
    if found:
        start, end = chance.choice(found).span()
        data[start:end] = chance.choice(by)


MUTATIONS: tuple[Mutation, ...] = (
    _flip, _set, _cut_end, _cut_out, _repeat, _splice, _length, _number, _string,
)  # fmt: skip


def mutant(seeds: Sequence[bytes], number: int) -> bytes:
    """Return mutant `number` of some sound files: one to four mutations of one of them."""
    chance = random.Random(number)
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(MUTATIONS)(data, chance, seeds)
    return bytes(data)
