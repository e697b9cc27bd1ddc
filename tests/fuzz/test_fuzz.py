"""Files that are nearly sound: none crashes a process, hangs, runs code, or ends in an undocumented way.

Mutants are numbered, and a number gives the same bytes again; a failure names it. Each batch runs in a
process of its own (`worker.py`), which ends where one mutant takes longer than the limit that stands there.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from resedge.pipeline import recognising

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KINDS = ("safetensors", "onnx", "manifest")
BATCH = 500
DOCUMENTED = frozenset({0, 2, 4, 5, 6})
REFUSED = "5"


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=900
    )


def _fuzz(kind: str, mutants: int, folder: Path) -> Counter[str]:
    """Put that many mutants through, and return how many were accepted, and refused by which code."""
    came: Counter[str] = Counter()
    for first in range(0, mutants, BATCH):
        place = folder / f"from {first}"
        place.mkdir()
        count = min(BATCH, mutants - first)
        done = _run(str(HERE / "worker.py"), kind, str(first), str(count), str(place))
        assert done.returncode == 0, f"mutants from {first} ended a process: {done.stderr[-3000:]}"
        found = json.loads(done.stdout)
        assert found["failures"] == []
        came.update(found["came"])
    assert came.total() == mutants
    return came


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    came = _fuzz(kind, 150, tmp_path)
    assert set(came) <= {"accepted", REFUSED}
    assert came[REFUSED] > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_five_thousand_mutants_are_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    came = _fuzz(kind, 5000, tmp_path)
    assert set(came) <= {"accepted", REFUSED}
    assert came[REFUSED] > 1500


def _inspect_mutants(kind: str, numbers: range, folder: Path) -> None:
    """Have the command look at mutants, as its user would."""
    sys_path = [str(HERE), *sys.path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys_path)
        names = vars(recognising)
        patch.setitem(names, "refusal_of_graph", names["refusal_of_graph"])  # what the worker puts there goes
        worker = runpy.run_path(str(HERE / "worker.py"))
        made = worker["KINDS"][kind](folder)
    places = {"safetensors": "w.safetensors", "onnx": "net.onnx", "manifest": "model.resedge/manifest.json"}
    path = folder / places[kind]
    for number in numbers:
        path.write_bytes(worker["mutant"](made.seeds, number))
        done = _run("-m", "resedge", "inspect", str(path.parent if kind == "manifest" else path))
        assert done.returncode in DOCUMENTED, f"mutant {number}: {done.returncode} {done.stderr}"
        assert "Traceback" not in done.stderr
        assert done.returncode == 0 or done.stderr.strip(), "a refusal says what was wrong"


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_ends_with_a_documented_code(kind: str, tmp_path: Path) -> None:
    _inspect_mutants(kind, range(3), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_ends_with_a_documented_code_for_many(kind: str, tmp_path: Path) -> None:
    _inspect_mutants(kind, range(60), tmp_path)
