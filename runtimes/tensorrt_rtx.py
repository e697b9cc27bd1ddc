"""TensorRT for RTX: TensorRT's interface for the RTX GPUs of desktops, and a builder that needs no GPU.

It serves like TensorRT. What it builds for a GPU that is not here is read and thrown away
(`rtx_preflight.py`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final

from resedge.artifacts import Artifact, Engine
from resedge.errors import RuntimeUnavailable, UsageError
from resedge.protocols import BuildOptions, Probe
from resedge.runtimes.border import imported
from resedge.runtimes.tensorrt import TensorRT
from resedge.runtimes.trt_build import THIS_GPU

NAME: Final = "tensorrt_rtx"
CURE: Final = "Try: pip install 'resedge[tensorrt-rtx]'"
# One package for each CUDA; their modules have the same name.
DISTRIBUTIONS: Final = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
_OLDEST: Final = (1, 7, 1)  # those before it refuse INT8 convolutions where there is no GPU
_LOSES_INT8: Final = "7.5"


class TensorRTForRTX(TensorRT):
    """NVIDIA's TensorRT for RTX on the first GPU; it measures no tactics, so it keeps no timing cache."""

    name = NAME
    library: ClassVar[str] = NAME
    cure: ClassVar[str] = CURE
    target: ClassVar[str | None] = THIS_GPU

    def probe(self) -> Probe:
        """Say which TensorRT for RTX is here and which GPU.

        Raises:
            RuntimeUnavailable: As for TensorRT; where it is installed and cannot serve, that it looks at
                the graphs of an export is said too.
        """
        try:
            return super().probe()
        except RuntimeUnavailable as error:
            version = installed_version()
            if version is None:
                raise
            also = f"{error.what} Version {version} is here to look at the graphs of an export."
            raise RuntimeUnavailable(also, cure=error.cure) from error

    def build(self, model: Artifact, out: Path, options: BuildOptions) -> Engine:
        """Write a plan for this GPU, as TensorRT does.

        Raises:
            UsageError: INT8 for a GPU on which it would be lost.
            ResedgeError: As `TensorRT.build`.
        """
        if options.precision == "int8":
            _, _, device = self._here()
            refuse_lost_int8(device.compute_capability)
        return super().build(model, out, replace(options, timing_caches=None))

    def _module(self) -> Any:  # noqa: ANN401 - a module
        return load_library()


def installed_version() -> str | None:
    """Return the version that is installed, without importing it; None where there is none."""
    if find_spec(NAME) is None:
        return None
    for distribution in DISTRIBUTIONS:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def load_library() -> Any:  # noqa: ANN401 - a module
    """Import TensorRT for RTX.

    Raises:
        RuntimeUnavailable: It is not installed, cannot be loaded, or is too old.
    """
    library = imported(NAME, NAME, CURE)
    version = str(library.__version__)
    if _numbers(version) < _OLDEST:
        raise RuntimeUnavailable(
            f"runtime '{NAME}' is of version {version}, {'.'.join(map(str, _OLDEST))} is needed.", cure=CURE
        )
    return library


def refuse_lost_int8(compute_capability: str) -> None:
    """Refuse INT8 where the builder says nothing and computes every convolution in FP16.

    Raises:
        UsageError: This is such a GPU.
    """
    if compute_capability == _LOSES_INT8:
        raise UsageError(
            f"for compute capability {_LOSES_INT8} TensorRT for RTX builds INT8 convolutions in FP16.",
            cure="Build FP16 there.",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
