"""Frozen dataclasses into JSON and back.

`encode` and `decode` are the only way in and out. `decode` is strict: an unknown key, a missing key or a
value of another type is an `InputRefused` that names the key, so nothing is guessed at a border.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from resedge.errors import InputRefused

JsonValue = Union[None, bool, int, float, str, Sequence["JsonValue"], Mapping[str, "JsonValue"]]  # noqa: UP007 - recursive
T = TypeVar("T")


def canonical_json(value: JsonValue) -> str:
    """Return the one JSON text of a value: sorted keys, two spaces, no NaN, a newline at the end."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def encode(value: Any) -> JsonValue:  # noqa: ANN401 - any value of this module, or of its fields
    """Return the JSON form of a value: dataclasses as objects, tuples as arrays, paths as POSIX text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_key(f): encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def decode(kind: type[T], data: object, where: str) -> T:
    """Build a `kind` from parsed JSON, or refuse it.

    Args:
        kind: A dataclass of this package.
        data: What `json.loads` returned.
        where: Named in the error, such as the file's path.

    Raises:
        InputRefused: A key is unknown or missing, or a value has another type; the key is named.
    """
    result: T = _decode(kind, data, where)
    return result


def load(kind: type[T], path: Path) -> T:
    """Read and `decode` a JSON file.

    Raises:
        InputRefused: The file is missing, unreadable, no JSON, or not a `kind`.
    """
    return decode(kind, parse_json(read_text(path), str(path)), str(path))


def read_text(path: Path) -> str:
    """Read a UTF-8 file, or refuse it.

    Raises:
        InputRefused: The file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputRefused(f"cannot be read ({reason}).", where=str(path)) from error


def parse_json(text: str, where: str) -> object:
    """Parse JSON, refusing what is not JSON or not text, a key given twice, and numbers beyond Python's.

    Raises:
        InputRefused: As above; `where` is named.
    """

    def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputRefused(f"the key {twice!r} is given twice.", where=where)
        return dict(pairs)

    def refuse_constant(name: str) -> None:
        raise InputRefused(f"{name} is not a JSON number.", where=where)

    def finite(digits: str) -> float:
        if math.isinf(value := float(digits)):
            raise InputRefused(f"{digits:.20} is beyond what a number can be.", where=where)
        return value

    try:
        parsed: object = json.loads(
            text, object_pairs_hook=object_of, parse_float=finite, parse_constant=refuse_constant
        )
    except (ValueError, RecursionError) as error:  # a ValueError: an integer of thousands of digits too
        raise InputRefused(f"is not JSON ({error}).", where=where) from error
    if "\\ud" in text.lower():
        _demand_text(parsed, where)
    return parsed


def _demand_text(value: object, where: str) -> None:
    """Refuse half of a surrogate pair: JSON can escape one, and it is no text that could be written."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputRefused("has half of a surrogate pair in a text.", where=where) from error


def _decode(kind: Any, data: object, where: str) -> Any:  # noqa: ANN401 - typed by `decode`
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if _is_json_value(origin, arguments):
        return data
    if origin is Literal:
        if data in arguments:
            return data
        raise InputRefused(f"is {data!r}, expected one of {list(arguments)}.", where=where)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, data, where)
    if origin is tuple:
        return _decode_tuple(arguments, data, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise _wrong_type("an object", data, where)
        return {key: _decode(arguments[1], item, f"{where}: {key}") for key, item in data.items()}
    if kind is Path:
        if not isinstance(data, str):
            raise _wrong_type("a path", data, where)
        return _relative_path(data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(data, kind) and not (kind is int and isinstance(data, bool)):
        return data
    raise _wrong_type(kind.__name__, data, where)


def _key(field: dataclasses.Field[Any]) -> str:
    """The key of a field in JSON: its name, unless that is a word of Python's."""
    return str(field.metadata.get("key", field.name))


def _is_json_value(origin: object, arguments: tuple[object, ...]) -> bool:
    """Whether a type is `JsonValue`; resolving its recursion makes a union that is equal in content only."""
    return origin is Union and {type(None), bool, int, float, str} <= set(arguments)


def _decode_dataclass(kind: Any, data: object, where: str) -> Any:  # noqa: ANN401
    if not isinstance(data, dict):
        raise _wrong_type("an object", data, where)
    fields = {_key(field): field for field in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            raise InputRefused(f"unknown key {key!r} (known: {sorted(fields)}).", where=where)
    for name in fields:
        if name not in data:
            raise InputRefused(f"the key {name!r} is missing.", where=where)
    hints = _hints(kind)
    return kind(**{f.name: _decode(hints[f.name], data[key], f"{where}: {key}") for key, f in fields.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields; to resolve them takes longer than to decode a value."""
    return get_type_hints(kind)


def _decode_union(arguments: tuple[Any, ...], data: object, where: str) -> Any:  # noqa: ANN401
    if data is None and type(None) in arguments:
        return None
    failures = []
    for option in arguments:
        if option is type(None):
            continue
        try:
            return _decode(option, data, where)
        except InputRefused as error:
            failures.append(error)
    raise failures[0]


def _decode_tuple(arguments: tuple[Any, ...], data: object, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _wrong_type("an array", data, where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds = (arguments[0],) * len(data)
    elif len(arguments) == len(data):
        kinds = arguments
    else:
        raise InputRefused(f"has {len(data)} items, expected {len(arguments)}.", where=where)
    pairs = enumerate(zip(kinds, data, strict=True))
    return tuple(_decode(item_kind, item, f"{where}[{i}]") for i, (item_kind, item) in pairs)


def _relative_path(text: str, where: str) -> Path:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text or not path.parts:
        raise InputRefused(f"{text!r} is not a relative path inside the bundle.", where=where)
    return Path(path)


def _wrong_type(expected: str, data: object, where: str) -> InputRefused:
    return InputRefused(f"is {type(data).__name__} ({data!r:.60}), expected {expected}.", where=where)
