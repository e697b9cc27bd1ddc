"""How images become a model's input: from options, a TOML file beside the weights, or a library's record."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from resedge import images
from resedge.artifacts import Preprocessing, read_text
from resedge.errors import InputRefused, RuntimeUnavailable, UsageError
from resedge.export.names import Named
from resedge.export.records import library_record
from resedge.pipeline.options import ImageOptions

UNRECORDED: Final = (
    "nothing says how this model's images were normalised: values are scaled to 0..1, with no mean and std. "
    "--mean and --std, or a TOML file beside the weights, say it"
)
_KEYS: Final = ("size", "mean", "std", "resize", "interpolation")
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
    if shape is not None:
        _check_shape(shape)
    told = _read(file) if file else {}
    base, origin = _base(named)
    size = (shape[1], shape[2]) if shape else told.get("size") or (base and (base.height, base.width))
    size = size or _SIDES.get(named.kind)
    if size is None:
        raise UsageError(
            f"{named.label} does not say what size of image it takes.",
            where="--input-shape",
            cure="Give it, such as --input-shape 3,224,224.",
        )
    mean = options.mean or told.get("mean") or (base.mean if base else (0.0, 0.0, 0.0))
    std = options.std or told.get("std") or (base.std if base else (1.0, 1.0, 1.0))
    shorter = options.resize or told.get("resize")
    cover = base.resize if base and size == (base.height, base.width) else None
    if shorter:
        cover = _cover(shorter, size)
    method = told.get("interpolation") or (base.interpolation if base else "bilinear")
    found = Preprocessing(size[0], size[1], mean, std, resize=cover, interpolation=method)
    stated = base is not None or bool(options.mean or told.get("mean") or options.std or told.get("std"))
    return Recorded(found, _note(options, file, origin), "" if stated else UNRECORDED)


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


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or not all(1 <= side <= _LONGEST_SIDE for side in shape):
        raise UsageError(
            f"{','.join(map(str, shape))} is no shape of an image.",
            where="--input-shape",
            cure="Write channels, height and width, such as 3,224,224.",
        )
    if shape[0] != 3:
        raise InputRefused(
            f"the model takes {shape[0]} channels, and images are decoded to 3 (RGB) so far.",
            where="--input-shape",
            cure="Wrap the model so that it takes RGB: for grey, the mean of the three channels.",
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
        if key not in _KEYS:
            raise InputRefused(
                f"unknown key {key!r}.", where=str(file), cure=f"Known: {', '.join(_KEYS)}. Images are RGB."
            )
    readers = {"size": _size, "mean": _triple, "std": _triple, "resize": _side, "interpolation": _method}
    return {key: readers[key](value, f"{file}: {key}") for key, value in content.items()}


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


def _triple(value: object, where: str) -> tuple[float, float, float]:
    numbers = value if isinstance(value, list) else [value] * 3
    checked = tuple(
        float(number)
        for number in numbers
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    )
    if len(numbers) != 3 or len(checked) != 3:
        raise InputRefused(f"is {value!r:.60}, expected a number or three.", where=where)
    check_triple(checked, where)
    return checked[0], checked[1], checked[2]


def check_triple(values: tuple[float, ...], where: str) -> None:
    """Check the numbers of a mean or a std.

    Raises:
        InputRefused: Not finite, or a std that is not positive.
    """
    lowest = 1e-6 if where.endswith("std") else -1e3
    if not all(lowest <= value <= 1e3 for value in values):
        raise InputRefused(
            f"is {', '.join(f'{value:g}' for value in values)}, which is not possible.",
            where=where,
            cure="Fractions of full scale, such as 0.485; a std is above 0.",
        )


def _method(value: object, where: str) -> Literal["bilinear", "bicubic"]:
    if value == "bilinear" or value == "bicubic":
        return "bilinear" if value == "bilinear" else "bicubic"
    raise InputRefused(f"is {value!r:.60}, expected bilinear or bicubic.", where=where)
