"""Trained PyTorch ResNets into verified INT8 and FP16 engines for the edge.

with resedge.open("notebook.resedge", "openvino:int8") as session:
    session.predict(frames).labels
"""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from resedge.version import __version__

if TYPE_CHECKING:
    from resedge.pipeline.session import Session

__all__ = ["__version__", "open"]

# ONNX Runtime reads this when it is imported, wherever that happens: nothing here reports to anybody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def open(bundle: str | PathLike[str], engine: str, *, threads: int | None = None) -> Session:
    """Open an engine of a bundle, such as "openvino:int8", for `predict(frames)`; needs no torch.

    Raises:
        resedge.errors.ResedgeError: No such bundle or engine, a changed file, a missing runtime.
    """
    from resedge.pipeline.session import open_session

    return open_session(Path(bundle), engine, threads=threads)
