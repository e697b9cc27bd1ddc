"""What torchvision and timm have on record of a model's images. Nothing is downloaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from resedge.export.architectures import library
from resedge.export.names import Named


@dataclass(frozen=True)
class ImageRecord:
    """How images become a model's input, and on whose word.

    `size` is (height, width) of what the model takes, `shorter` the side that an image is scaled to before
    the middle of it is cut out, pixels; mean and std are fractions of full scale, red first.
    """

    origin: str
    size: tuple[int, int]
    shorter: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"]


def library_record(named: Named) -> ImageRecord | None:
    """Return what the model's library says; None where it says nothing that is understood here.

    Raises:
        RuntimeUnavailable: The library is not installed.
    """
    if named.kind == "torchvision":
        return _torchvision(named.part)
    return _timm(named.part) if named.kind == "timm" else None


def _torchvision(name: str) -> ImageRecord | None:
    models = library("torchvision").models
    if name not in models.list_models(module=models):
        return None  # making the model says so, with the nearest names
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    side = int(preset.crop_size[0])
    return _record(
        f"torchvision's {weights}",
        (side, side),
        int(preset.resize_size[0]),
        preset.mean,
        preset.std,
        preset.interpolation.value,
    )


def _timm(name: str) -> ImageRecord | None:
    models = library("timm").models
    found = models.get_pretrained_cfg(name)
    if found is None:
        return None
    _, height, width = found.input_size
    return _record(
        f"timm's {found.architecture}" + (f".{found.tag}" if found.tag else ""),
        (height, width),
        math.floor(min(height, width) / found.crop_pct),
        found.mean,
        found.std,
        found.interpolation,
    )


def _record(
    origin: str,
    size: tuple[int, int],
    shorter: int,
    mean: Any,  # noqa: ANN401 - a sequence of a library's
    std: Any,  # noqa: ANN401
    interpolation: str,
) -> ImageRecord | None:
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    method: Literal["bilinear", "bicubic"] = "bilinear" if interpolation == "bilinear" else "bicubic"
    if len(mean) != 3 or len(std) != 3 or interpolation not in ("bilinear", "bicubic"):
        return None
    return ImageRecord(origin, size, max(shorter, *size), mean, std, method)
