"""The short form of benchmarks/scripts/kill_export.py: one export, killed again and again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from resedge.artifacts import sha256_file

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job


def test_an_export_that_is_killed_at_every_stage_ends_with_the_same_bytes(job: Job, tmp_path: Path) -> None:
    """Kill as soon as a further stage is stored, so that each restart goes on from where it stopped."""
    out, home = tmp_path / "model.resedge", tmp_path / "home"
    stages = home / "cache" / "stages"
    command = [
        *(sys.executable, "-m", "resedge", "export", "--data", str(job.data), "--batchnorm", "split"),
        *("--threads", "1", "--max-drop", "0.5", "--out", str(out), "--quiet"),
    ]
    environment = {**os.environ, "RESEDGE_HOME": str(home)}
    kills = 0
    for target in (1, 2, 4):
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while child.poll() is None and not (stages.exists() and len(list(stages.iterdir())) >= target):
            time.sleep(0.02)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills == 3
    assert not out.exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 3), done.stderr
    assert [path.name for path in tmp_path.iterdir() if path != home] == ["model.resedge"]
    for part in ("reference", "onnx", "calibration", "golden", "engines"):
        for path in (job.bundle / part).iterdir():
            assert sha256_file(path) == sha256_file(out / part / path.name), f"{part}/{path.name}"


def test_two_exports_at_once_make_one_whole_bundle(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "model.resedge"
    command = [
        *(sys.executable, "-m", "resedge", "export", "--data", str(job.data), "--batchnorm", "split"),
        *("--threads", "1", "--max-drop", "0.5", "--out", str(out), "--quiet"),
    ]
    environment = {**os.environ, "RESEDGE_HOME": str(job.home)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait() in (0, 1, 3) for child in both] == [True, True]
    assert sha256_file(out / "manifest.json") == sha256_file(job.bundle / "manifest.json")
