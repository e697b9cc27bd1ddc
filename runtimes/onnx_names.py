"""The torch module behind each node of an ONNX file, read without the onnx library.

A device that builds plans has TensorRT and numpy and no more. What is needed of the file is three fields of
each node, so the file is walked as what it is on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from resedge.gate.protobuf import fields

MODULE_KEY: Final = "resedge.module"

# Field numbers of onnx.proto.
_GRAPH, _NODE, _NODE_NAME, _NODE_METADATA, _ENTRY_KEY, _ENTRY_VALUE = 7, 1, 3, 9, 1, 2


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
    except ValueError as error:  # text that is not UTF-8 is one too
        raise ValueError("this is no ONNX file") from error
    return modules


def _text(message: memoryview, number: int) -> str:
    return "".join(bytes(value).decode() for value in _fields(message, number))


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the content of each field of that number that has a length."""
    for found, content in fields(message):
        if found == number and content is not None:
            yield content
