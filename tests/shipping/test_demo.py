"""The documented example, with a small network: a service answers while bundles come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("keygen")
def test_no_request_fails_while_bundles_are_shipped_refused_and_rolled_back(tmp_path: Path) -> None:
    for library in ("asyncssh", "onnx", "onnxruntime"):
        pytest.importorskip(library)
    script, out = ROOT / "benchmarks" / "scripts" / "ship_demo.py", tmp_path / "seen.json"
    command = [sys.executable, str(script), "--small", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(out.read_text())
    assert seen["failures"] == []
    assert seen["exit_codes"] == [0, 0, 1, 0]
    first, second, bad, back, _ = (step["serves"] for step in seen["steps"])
    assert first == back
    assert second == bad
    assert set(seen["answers"]) == {first, second}
