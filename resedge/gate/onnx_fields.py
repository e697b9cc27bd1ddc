"""The bytes of an ONNX file, before anything parses them: number of fields, texts, parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Union

from resedge.errors import GraphRefused
from resedge.gate.protobuf import fields

MAX_ONNX_BYTES: Final = 1_500_000_000
MAX_FIELDS: Final = 500_000


class _Text:
    """A field that is text."""


_Known = Mapping[int, Union["_Known", _Text, str]]  # by field number: its message, or why it is refused

_TEXT: Final = _Text()
_OTHER_TYPE = "a value that is no tensor"
_INNER_GRAPH = "a graph inside a node (control flow)"
_SPARSE = "a sparse tensor"
_DEVICES = "a split over devices"
_ENTRY: Final[_Known] = {1: _TEXT, 2: _TEXT}
_TENSOR: Final[_Known] = {3: "a tensor in segments", 8: _TEXT, 12: _TEXT, 13: _ENTRY, 16: _ENTRY}
_TYPE: Final[_Known] = {
    1: {2: {1: {2: _TEXT, 3: _TEXT}}},
    6: _TEXT,
    **dict.fromkeys((4, 5, 7, 8, 9), _OTHER_TYPE),
}
_VALUE: Final[_Known] = {1: _TEXT, 2: _TYPE, 3: _TEXT, 4: _ENTRY}
_ATTRIBUTE: Final[_Known] = {
    **dict.fromkeys((1, 13, 21), _TEXT),
    **dict.fromkeys((5, 10), _TENSOR),
    **dict.fromkeys((6, 11), _INNER_GRAPH),
    **dict.fromkeys((14, 15), _OTHER_TYPE),
    **dict.fromkeys((22, 23), _SPARSE),
}
_NODE: Final[_Known] = {
    **dict.fromkeys((1, 2, 3, 4, 6, 7, 8), _TEXT),
    5: _ATTRIBUTE,
    9: _ENTRY,
    10: _DEVICES,
}
_GRAPH: Final[_Known] = {
    1: _NODE,
    **dict.fromkeys((2, 10), _TEXT),
    5: _TENSOR,
    **dict.fromkeys((11, 12, 13), _VALUE),
    14: {1: _TEXT, 2: _ENTRY},
    15: _SPARSE,
    16: _ENTRY,
}
_MODEL: Final[_Known] = {
    **dict.fromkeys((2, 3, 4, 6), _TEXT),
    7: _GRAPH,
    8: {1: _TEXT},
    14: _ENTRY,
    20: "training information",
    25: "functions of its own",
    26: _DEVICES,
}


def check_fields(data: bytes, where: str) -> None:
    """Check a file's size and number of fields, its texts, and that it has no part that no ResNet has.

    It takes no library. An empty message is two bytes in a file and a hundred once it is parsed, so this
    comes before anything else.

    Raises:
        GraphRefused: As `parse_onnx`.
    """
    if len(data) > MAX_ONNX_BYTES:
        raise GraphRefused(f"has {len(data):,} bytes, more than {MAX_ONNX_BYTES:,}.", where=where)
    waiting: list[tuple[memoryview, _Known]] = [(memoryview(data), _MODEL)]
    count = 0
    try:
        while waiting:
            message, known = waiting.pop()
            for number, content in fields(message):
                count += 1
                if count > MAX_FIELDS:
                    raise GraphRefused(f"has more than {MAX_FIELDS:,} fields.", where=where)
                inner = known.get(number)
                if isinstance(inner, str):
                    raise GraphRefused(f"has {inner}, which no ResNet needs.", where=where)
                if content is None or inner is None:
                    continue
                if isinstance(inner, _Text):
                    str(content, "utf-8")
                else:
                    waiting.append((content, inner))
    except ValueError as error:  # text that is not UTF-8 is one, too
        raise GraphRefused("is no ONNX file, or a damaged one.", where=where) from error
