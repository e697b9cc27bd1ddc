"""LoadGen itself, driven for a second: what it asks, what it finds valid, and what an engine raises in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from resedge.benchmarks import loadgen
from resedge.benchmarks.loadgen import Scenario, drive, read_log, result_of
from resedge.errors import MachineFailure
from resedge.protocols import Array, Float32Array

pytest.importorskip("mlperf_loadgen", reason="extra loadgen")

IMAGES = np.random.default_rng(0).random((8, 1, 4, 4), np.float32)


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadgen, "_PROBING_SECONDS", 0.05)


class Engine:
    """Gives the logits of any images, and remembers how many came at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, images: Array) -> Float32Array:
        self.sizes.append(len(images))
        assert images.flags.c_contiguous
        logits: Float32Array = images.astype(np.float32).reshape(len(images), -1)[:, :10]
        return logits


@pytest.mark.parametrize(("scenario", "batch"), [("single stream", 1), ("offline", 3)])
def test_a_short_run_is_valid_and_bears_a_name_of_its_own(scenario: Scenario, batch: int) -> None:
    engine = Engine()
    result = drive(engine, IMAGES, scenario, 0.5, batch=3)
    assert result.valid, result
    assert result.faults == ()
    assert result.name == f"{scenario}, 0.5 s"
    assert result.samples_per_second > 0
    assert max(engine.sizes) == batch
    assert (result.p50_ms is None) == (scenario == "offline")
    if result.p50_ms is not None and result.p99_ms is not None:
        assert result.queries >= 64
        assert result.p50_ms <= result.p99_ms
        assert result.early_p90_ms is not None


def test_what_the_engine_raises_comes_out() -> None:
    calls = 0

    def breaks(images: Array) -> Float32Array:
        nonlocal calls
        calls += 1
        if calls > 200:
            raise ArithmeticError("broken")
        return images.astype(np.float32).reshape(len(images), -1)

    with pytest.raises(ArithmeticError, match="broken"):
        drive(breaks, IMAGES, "offline", 0.3, batch=2)


TOLD = {
    "result_validity": "INVALID",
    "result_min_duration_met": False,
    "result_min_queries_met": True,
    "result_query_count": 70,
    "result_qps_without_loadgen_overhead": 100.0,
    "result_50.00_percentile_latency_ns": 2_000_000,
    "loadgen_version": "6.0.17 @ d6147c7eb7",
}


def test_rules_that_were_not_met_are_named() -> None:
    result = result_of(TOLD, "single stream", 600)
    assert not result.valid
    assert result.faults == ("it was shorter than asked for",)
    assert result.name == "SingleStream"
    assert (result.p50_ms, result.p90_ms, result.version) == (2.0, None, "6.0.17")


@pytest.mark.parametrize("content", ["", ":::MLLOG {", ':::MLLOG {"key": "other", "value": 1}'])
def test_a_log_without_a_result_is_a_failure(content: str, tmp_path: Path) -> None:
    path = tmp_path / "detail.txt"
    path.write_text(content)
    with pytest.raises(MachineFailure, match="LoadGen"):
        read_log(path)


def test_the_last_value_of_a_key_counts(tmp_path: Path) -> None:
    lines = [json.dumps({"key": "result_validity", "value": value}) for value in ("INVALID", "VALID")]
    path = tmp_path / "detail.txt"
    path.write_text("".join(f":::MLLOG {line}\n" for line in lines) + "something else\n")
    assert read_log(path) == {"result_validity": "VALID"}
