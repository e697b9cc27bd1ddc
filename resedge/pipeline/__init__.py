"""The rooms joined: what the command line calls, and an application may.

Names are loaded when they are first asked for, so that `resedge --help` costs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resedge.pipeline.benching import bench
    from resedge.pipeline.exporting import export
    from resedge.pipeline.options import BenchOptions, ExportOptions, Measuring, Selection, select
    from resedge.pipeline.session import Predictions, Session, open_session

__all__ = [
    "BenchOptions",
    "ExportOptions",
    "Measuring",
    "Predictions",
    "Selection",
    "Session",
    "bench",
    "export",
    "open_session",
    "select",
]

_HOMES = {
    "BenchOptions": "options",
    "ExportOptions": "options",
    "Measuring": "options",
    "Predictions": "session",
    "Selection": "options",
    "Session": "session",
    "bench": "benching",
    "export": "exporting",
    "open_session": "session",
    "select": "options",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"resedge.pipeline.{_HOMES[name]}"), name)
