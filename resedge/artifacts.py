"""The values that pass between the rooms: frozen, typed, and the same through JSON and back.

`encode` and `decode` are the only way in and out. `decode` is strict: an unknown key, a missing key or a
value of another type is an `InputRefused` that names the key, so nothing is guessed at a border.
Needs the standard library alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from resedge.errors import InputRefused, StaleArtifact

FORMAT_VERSION: Final = 1

JsonValue = Union[None, bool, int, float, str, Sequence["JsonValue"], Mapping[str, "JsonValue"]]  # noqa: UP007 - recursive
T = TypeVar("T")

Outcome = Literal["pass", "fail", "inconclusive", "unavailable"]
Relation = Literal["faster", "not slower", "equivalent", "slower", "inconclusive"]


# --- digests -------------------------------------------------------------------------------------


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the SHA-256 of bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_json(value: JsonValue) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return sha256_bytes(canonical_json(value).encode())


def canonical_json(value: JsonValue) -> str:
    """Return the one JSON text of a value: sorted keys, two spaces, no NaN, a newline at the end."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


# --- the values ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor at a model's border, such as "input" ("batch", 3, 28, 28) float32."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input: (value / 255 - mean) / std, per channel, NCHW.

    `mean` and `std` are fractions of full scale, in the order of `channels` ("RGB").
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: Literal["RGB"] = "RGB"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A file: where it is, its SHA-256, what it is, and the digests of what it was made from.

    `path` is relative (POSIX) in a manifest and absolute once `under` a root.
    """

    path: Path
    sha256: str
    kind: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parents: tuple[str, ...] = ()
    meta: Mapping[str, JsonValue] = dataclasses.field(default_factory=dict)

    def under(self, root: Path) -> Artifact:
        """Return this artifact with its path resolved below `root`."""
        return dataclasses.replace(self, path=root / self.path)

    def relative_to(self, root: Path) -> Artifact:
        """Return this artifact with its path relative to `root`, in POSIX form."""
        return dataclasses.replace(self, path=Path(PurePosixPath(*self.path.relative_to(root).parts)))

    def read(self) -> bytes:
        """Return the file's bytes, checked: what is returned is what the digest names.

        Raises:
            InputRefused: The file is missing or unreadable.
            StaleArtifact: The bytes are not those of the digest.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise InputRefused(
                f"cannot be read ({error.strerror}).",
                where=str(self.path),
                cure="Run `resedge export` again to write it anew.",
            ) from error
        if sha256_bytes(data) != self.sha256:
            raise StaleArtifact(
                f"has changed: SHA-256 {sha256_bytes(data)[:12]}, expected {self.sha256[:12]}.",
                where=str(self.path),
                cure="Run `resedge export` again, or restore the file.",
            )
        return data


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The calibrated range of every activation tensor of one graph.

    `table` maps a tensor's name in the fp32 graph to (low, high), low <= 0 <= high, float32 values.
    `graph_sha256` is the graph that was run, `dataset_sha256` the images, in no order.
    """

    table: Mapping[str, tuple[float, float]]
    method: str
    graph_sha256: str
    dataset_sha256: str
    images: int


@dataclasses.dataclass(frozen=True)
class Engine:
    """A built, runnable file; `companions` are files that it cannot be opened without."""

    artifact: Artifact
    runtime: str
    version: str
    device: str
    precision: str
    companions: tuple[Artifact, ...] = ()


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Engine against eager on the same test images. Fractions; None where there are no labels.

    `drop` is eager's top-1 minus the engine's, `drop_upper` its one-sided bound (Tango 1998; exact where
    nothing flips back).
    A negative flip: eager right, engine wrong.
    """

    images: int
    agreement: float
    max_abs_logit_error: float
    top1: float | None = None
    top1_eager: float | None = None
    drop: float | None = None
    drop_upper: float | None = None
    negative_flips: int | None = None
    positive_flips: int | None = None


@dataclasses.dataclass(frozen=True)
class Latency:
    """Array in to array out, synchronous, from interleaved blocks. Milliseconds and ratios.

    `speedup` is eager's time over the engine's, with its two-sided interval.
    """

    p50_ms: float
    p50_ms_eager: float
    speedup: float
    speedup_low: float
    speedup_high: float
    speedup_best_eager: float
    relation: Relation
    rounds: int
    calls_per_block: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found about one engine, and whether it is within the budget."""

    runtime: str
    precision: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    conditions: Mapping[str, JsonValue] = dataclasses.field(default_factory=dict)


# --- JSON ----------------------------------------------------------------------------------------


def encode(value: Any) -> JsonValue:  # noqa: ANN401 - any value of this module, or of its fields
    """Return the JSON form of a value: dataclasses as objects, tuples as arrays, paths as POSIX text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
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
    """Parse JSON, refusing what is not JSON, NaN, a key given twice, and an integer too long for Python.

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

    try:
        parsed: object = json.loads(text, object_pairs_hook=object_of, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:  # a ValueError: an integer of thousands of digits too
        raise InputRefused(f"is not JSON ({error}).", where=where) from error
    return parsed


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


def _is_json_value(origin: object, arguments: tuple[object, ...]) -> bool:
    """Whether a type is `JsonValue`; resolving its recursion makes a union that is equal in content only."""
    return origin is Union and {type(None), bool, int, float, str} <= set(arguments)


def _decode_dataclass(kind: Any, data: object, where: str) -> Any:  # noqa: ANN401
    if not isinstance(data, dict):
        raise _wrong_type("an object", data, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            raise InputRefused(f"unknown key {key!r} (known: {sorted(fields)}).", where=where)
    for name in fields:
        if name not in data:
            raise InputRefused(f"the key {name!r} is missing.", where=where)
    hints = get_type_hints(kind)
    return kind(**{name: _decode(hints[name], data[name], f"{where}: {name}") for name in fields})


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
    if path.is_absolute() or ".." in path.parts or "\\" in text or not path.parts:
        raise InputRefused(f"{text!r} is not a relative path inside the bundle.", where=where)
    return Path(path)


def _wrong_type(expected: str, data: object, where: str) -> InputRefused:
    return InputRefused(f"is {type(data).__name__} ({data!r:.60}), expected {expected}.", where=where)
