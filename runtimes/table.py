"""The runtimes by name. A new one is a file in this folder and a line here.

`eager` is not in the table: it needs a loader from the export room, so the pipeline makes it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from resedge.errors import UsageError
from resedge.protocols import Runtime

RUNTIMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "onnxruntime": "resedge.runtimes.onnxruntime:OnnxRuntime",
        "openvino": "resedge.runtimes.openvino:OpenVino",
        "tensorrt": "resedge.runtimes.tensorrt:TensorRT",
        "tensorrt_rtx": "resedge.runtimes.tensorrt_rtx:TensorRTForRTX",
    }
)


def runtime(name: str) -> Runtime:
    """Return a runtime by its name; its library is imported once it is used, not here.

    Raises:
        UsageError: There is no such runtime; the nearest name is offered.
    """
    if name not in RUNTIMES:
        near = difflib.get_close_matches(name, RUNTIMES, n=1)
        raise UsageError(
            f"unknown backend '{name}' (known: {', '.join(RUNTIMES)}).",
            cure=f"Did you mean '{near[0]}'?" if near else "",
        )
    module, _, kind = RUNTIMES[name].partition(":")
    made: Runtime = getattr(importlib.import_module(module), kind)()
    return made
