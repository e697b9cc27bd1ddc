"""The rooms joined: what the command line calls, and an application may.

Names are loaded when they are first asked for, so that `resedge --help` costs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resedge.pipeline.benching import bench
    from resedge.pipeline.exporting import export
    from resedge.pipeline.options import BenchOptions, ExportOptions
    from resedge.pipeline.session import Predictions, Session, open_session

__all__ = [
    "BenchOptions",
    "ExportOptions",
    "Predictions",
    "Session",
    "bench",
    "export",
    "open_session",
]

_HOMES = {
    "BenchOptions": "options",
    "ExportOptions": "options",
    "Predictions": "session",
    "Session": "session",
    "bench": "benching",
    "export": "exporting",
    "open_session": "session",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"resedge.pipeline.{_HOMES[name]}"), name)
