"""`gpu_check.py` on doubles of TensorRT, CUDA and a GPU: that it runs, and that what it writes is whole.

The double computes a graph as it is written, so that all three computations of it must agree.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from resedge.pipeline import building

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scripts" / "gpu_check.py"


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ROUNDS": 6,
        "CALLS_PER_BLOCK": 1,
        "BLOCK_SECONDS": 1e-4,
        "WARM_SECONDS": 1e-3,
    }.items():
        monkeypatch.setattr(building, name, value)


@pytest.mark.usefixtures("empty_home")
@pytest.mark.parametrize("version", ["tensorrt-10.3.0", "tensorrt-11.4.0.106"])
def test_everything_is_compared_timed_and_written(
    version: str, job: Job, device: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device(version)
    out = tmp_path / "gpu.json"
    arguments = [str(SCRIPT), str(job.bundle), "--test-data", str(job.data), "--json", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    document = json.loads(out.read_text())
    assert document["eager"] == "compared with"
    assert document["backend"]["version"] in version
    assert document["int8_over_fp16"]["rounds"] == 6
    assert [row["precision"] for row in document["engines"]] == ["fp16", "int8"]
    for row in document["engines"]:
        assert row["against_graph_on_cpu"]["agreement"] == 1
        assert row["against_eager"] == row["graph_on_cpu_against_eager"]
        assert row["against_eager"]["images"] == document["images"]
        assert set(row["times_ms"]) == {"calls", "with_cuda_graph"}
        assert row["times_ms"]["calls"]["gpu_ms"] == pytest.approx(2.0)
        assert row["layers"]["convolutions"] == row["record"]["layers"]["convolutions"] > 0
