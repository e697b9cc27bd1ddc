from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resedge.artifacts import Artifact

Layers = list[tuple[str, list[str]]]


@pytest.fixture(scope="session")
def rtx_layers() -> Callable[[Artifact], Layers]:
    """Build a graph with TensorRT for RTX in a child process: each layer's kind and its inputs' types."""
    pytest.importorskip("tensorrt_rtx", minversion="1.7.1")
    script = Path(__file__).parent / "calibration" / "rtx_layers.py"

    def build(model: Artifact) -> Layers:
        command = [sys.executable, str(script), str(model.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return [(kind, inputs) for kind, inputs in json.loads(done.stdout)]

    return build
