"""How images become a model's input: from options, a TOML file beside the weights, or a library's record."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from resedge import images
from resedge.artifacts import Channels, Preprocessing, read_text
from resedge.errors import InputRefused, RuntimeUnavailable, UsageError
from resedge.export.names import Named
from resedge.export.records import library_record
from resedge.pipeline.options import ImageOptions

UNRECORDED: Final = (
    "nothing says how this model's images were normalised: values are scaled to 0..1, with no mean and std. "
    "--mean and --std, or a TOML file beside the weights, say it"
)
_CHANNELS: Final[Mapping[int, Channels]] = {1: "L", 3: "RGB", 4: "RGBA"}  # where only their number is known
_IDENTITY: Final[Mapping[Literal["mean", "std"], float]] = {"mean": 0.0, "std": 1.0}
_SIDES: Final = {"notebook": (28, 28), "cifar": (28, 28)}  # of the images that are built in
_LONGEST_SIDE: Final = 8192


@dataclass(frozen=True)
class Recorded:
    """The preprocessing, and in sentences where it is from; `warning` is "" where something says it."""

    preprocessing: Preprocessing
    note: str
    warning: str


def record_file(weights: Path | None, named: Named) -> Path | None:
    """Return the TOML file that lies beside the weights, or beside a model's own file, or None."""
    beside = weights or named.path
    file = beside.with_suffix(".toml") if beside else None
    return file if file is not None and file.is_file() else None


def recorded(
    named: Named, options: ImageOptions, file: Path | None, own_shape: tuple[int, ...] | None = None
) -> Recorded:
    """Return how images become a model's input: each fact from the first that states it.

    Options come first, then the file, then the library; the notebook's own are built in.

    Args:
        named: The model.
        options: What the user says.
        file: As `record_file` finds it.
        own_shape: What a program was exported for, where it is one.

    Raises:
        UsageError: Nothing says the size.
        InputRefused: The file is not what it must be, or images of this model are none here.
    """
    shape = options.input_shape or own_shape
    told = _read(file) if file else {}
    base, origin = _base(named)
    channels = options.channels or told.get("channels") or (base.channels if base and not shape else None)
    if shape is not None:
        _check_shape(shape, channels)
    channels = channels or (_CHANNELS[shape[0]] if shape else "RGB")
    size = (shape[1], shape[2]) if shape else told.get("size") or (base and (base.height, base.width))
    size = size or _SIDES.get(named.kind)
    if size is None:
        raise UsageError(
            f"{named.label} does not say what size of image it takes.",
            where="--input-shape",
            cure="Give it, such as --input-shape 3,224,224.",
        )
    full_scale = options.value_range or told.get("value_range") or 1
    mean, std = (
        _normalisation(
            name,
            getattr(options, name) or told.get(name),
            full_scale,
            base,
            channels,
            f"--{name}" if getattr(options, name) else f"{file}: {name}" if name in told else name,
        )
        for name in _IDENTITY
    )
    shorter = options.resize or told.get("resize")
    cover = base.resize if base and size == (base.height, base.width) else None
    if shorter:
        cover = _cover(shorter, size)
    method = told.get("interpolation") or (base.interpolation if base else "bilinear")
    found = Preprocessing(size[0], size[1], mean, std, channels, cover, method)
    stated = base is not None or any(
        getattr(options, name) or told.get(name) for name in ("mean", "std", "value_range")
    )
    return Recorded(found, _note(options, file, origin), "" if stated else UNRECORDED)


def _normalisation(
    name: Literal["mean", "std"],
    numbers: tuple[float, ...] | None,
    full_scale: int,
    base: Preprocessing | None,
    channels: Channels,
    where: str,
) -> tuple[float, ...]:
    """Return a mean or a std, fractions of full scale, one a channel.

    Numbers of values 0 to 255 are divided by 255. Where the range is that and nothing says the number, it is
    the 0 or 1 of those values: what a library has on record is of values 0 to 1.

    Raises:
        UsageError: The record is of other channels.
        InputRefused: Neither one number nor one a channel, or not possible.
    """
    if numbers is None and base is not None and full_scale == 1:
        if base.channels != channels:
            raise UsageError(
                f"the {name} on record is for {base.channels}, and the model takes {channels}.",
                where=where,
                cure="Give --mean and --std.",
            )
        return base.mean if name == "mean" else base.std
    numbers = numbers or (_IDENTITY[name],)
    numbers = numbers * len(channels) if len(numbers) == 1 else numbers
    if len(numbers) != len(channels):
        raise InputRefused(
            f"has {len(numbers)} numbers, and the model takes {channels}.",
            where=where,
            cure=f"Give one, or {len(channels)}." if len(channels) > 1 else "Give one.",
        )
    fractions = tuple(number / full_scale for number in numbers)
    _check_possible(name, fractions, where)
    return fractions


def _check_possible(name: Literal["mean", "std"], fractions: tuple[float, ...], where: str) -> None:
    lowest = 1e-6 if name == "std" else -1e3
    if not all(lowest <= value <= 1e3 for value in fractions):
        raise InputRefused(
            f"is {', '.join(f'{value:g}' for value in fractions)}, which is not possible.",
            where=where,
            cure="Fractions of full scale, such as 0.485; a std is above 0.",
        )


def _base(named: Named) -> tuple[Preprocessing | None, str]:
    """Return what is on record of a model by its name, and who has it."""
    if named.kind == "notebook":
        return images.NOTEBOOK_PREPROCESSING, "resedge's own record"
    record = library_record(named)
    if record is None:
        return None, ""
    found = Preprocessing(
        record.size[0],
        record.size[1],
        record.mean,
        record.std,
        resize=_cover(record.shorter, record.size),
        interpolation=record.interpolation,
    )
    return found, f"the record of {record.origin}"


def _note(options: ImageOptions, file: Path | None, origin: str) -> str:
    given = replace(options, input_shape=None) != ImageOptions()
    sources = (["options"] if given else []) + ([file.name] if file else []) + ([origin] if origin else [])
    return f"images as {', then '.join(sources)} has it" if sources else ""


def _cover(shorter: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the rectangle of the model's proportions whose shorter side has so many pixels.

    Raises:
        UsageError: It is smaller than what the model takes.
    """
    least = min(size)
    if shorter < least:
        raise UsageError(
            f"{shorter} is less than the model takes ({size[0]}x{size[1]}).",
            where="--resize",
            cure=f"From {least} up.",
        )
    return -(-size[0] * shorter // least), -(-size[1] * shorter // least)


def _check_shape(shape: tuple[int, ...], channels: Channels | None) -> None:
    if len(shape) != 3 or not all(1 <= side <= _LONGEST_SIDE for side in shape):
        raise UsageError(
            f"{','.join(map(str, shape))} is no shape of an image.",
            where="--input-shape",
            cure="Write channels, height and width, such as 3,224,224.",
        )
    if channels is not None and shape[0] != len(channels):
        raise UsageError(
            f"the model takes {shape[0]} channels, and {channels} are {len(channels)}.",
            where="--input-shape",
            cure=f"Write {len(channels)},{shape[1]},{shape[2]}, or say other channels.",
        )
    if shape[0] not in _CHANNELS:
        raise InputRefused(
            f"the model takes {shape[0]} channels, and an image file has no such number.",
            where="--input-shape",
            cure="Known are 1 (grey), 3 (RGB or BGR) and 4 (RGBA).",
        )


# --- the file ------------------------------------------------------------------------------------


def _read(file: Path) -> dict[str, Any]:
    """Read a record, strictly: a key that is not known is refused, not ignored."""
    toml = _parser()
    try:
        content: Mapping[str, Any] = toml.loads(read_text(file))
    except toml.TOMLDecodeError as error:
        raise InputRefused(f"is no TOML ({error}).", where=str(file)) from error
    for key in content:
        if key not in _READERS:
            raise InputRefused(
                f"unknown key {key!r}.", where=str(file), cure=f"Known: {', '.join(_READERS)}."
            )
    found = {key: _READERS[key](value, f"{file}: {key}") for key, value in content.items()}
    return {"value_range" if key == "range" else key: value for key, value in found.items()}


def _parser() -> Any:  # noqa: ANN401 - the module tomllib, or tomli before Python 3.11
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeUnavailable(
            "reading a TOML file needs tomli on Python 3.10.", cure="Try: pip install tomli"
        ) from error


def _size(value: object, where: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise InputRefused(f"is {value!r:.60}, expected [height, width].", where=where)
    return _side(value[0], where), _side(value[1], where)


def _side(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LONGEST_SIDE:
        raise InputRefused(f"is {value!r:.60}, expected pixels up to {_LONGEST_SIDE}.", where=where)
    return value


def _numbers(value: object, where: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    checked = tuple(
        float(number)
        for number in numbers
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    )
    if not numbers or len(checked) != len(numbers):
        raise InputRefused(f"is {value!r:.60}, expected a number or one a channel.", where=where)
    return checked


def _channels(value: object, where: str) -> Channels:
    for known in get_args(Channels):
        if value == known:
            return cast(Channels, known)
    raise InputRefused(f"is {value!r:.60}, expected {', '.join(get_args(Channels))}.", where=where)


def _range(value: object, where: str) -> Literal[1, 255]:
    if value not in (1, 255) or isinstance(value, bool):
        raise InputRefused(f"is {value!r:.60}, expected 1 or 255.", where=where)
    return 1 if value == 1 else 255


def _method(value: object, where: str) -> Literal["bilinear", "bicubic"]:
    if value == "bilinear" or value == "bicubic":
        return "bilinear" if value == "bilinear" else "bicubic"
    raise InputRefused(f"is {value!r:.60}, expected bilinear or bicubic.", where=where)


_READERS: Final[Mapping[str, Callable[[object, str], Any]]] = {
    "size": _size,
    "channels": _channels,
    "mean": _numbers,
    "std": _numbers,
    "range": _range,
    "resize": _side,
    "interpolation": _method,
}
