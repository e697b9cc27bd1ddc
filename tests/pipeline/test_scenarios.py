"""`resedge bench --scenario`: what is measured besides, what it says, and when it fails the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from resedge.artifacts import JsonValue
from resedge.benchmarks.sentences import scenario_sentence
from resedge.cli import main
from resedge.errors import UsageError
from resedge.pipeline import scenarios
from resedge.pipeline.options import SCENARIOS, Scenarios

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job


def test_every_scenario_stands_beside_the_verdict(job: Job, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="extra loadgen")
    out = tmp_path / "bench.json"
    arguments = ["bench", str(job.bundle), "--test-data", str(job.data), "--backend", "onnxruntime:int8"]
    arguments += ["--rounds", "2", "--processes", "1", "--max-drop", "0.5", "--min-speedup", "0.001"]
    arguments += ["--threads", "1", "--seconds", "0.3", "--camera-rate", "50", "--json", str(out)]
    for name in SCENARIOS:
        arguments += ["--scenario", name]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (0, 3), result.output
    (engine,) = json.loads(out.read_text())["engines"]
    found = engine["scenarios"]
    assert sorted(found) == sorted(SCENARIOS)
    assert 0 < found["end-to-end"]["prepare_ms"] < found["end-to-end"]["p50_ms"]
    assert found["single-stream"]["valid"]
    assert found["offline"]["valid"]
    assert found["camera"]["frames"] == 15
    assert found["cold-start"]["file_mb"] > 0
    said = " ".join(result.output.split())
    assert "LoadGen single stream, 0.3 s" in said
    assert "from the start of a process to the first answer" in said


INVALID: JsonValue = {
    "name": "offline, 1 s",
    "valid": False,
    "faults": ["it was shorter than asked for"],
    "samples_per_second": 10.0,
    "p50_ms": None,
}


@pytest.mark.parametrize(("code", "joined"), [(0, 1), (3, 1), (1, 1), (4, 4), (130, 130)])
def test_a_run_that_loadgen_does_not_call_valid_fails(code: int, joined: int) -> None:
    found = {("openvino", "int8"): {"offline": INVALID}}
    assert scenarios.joined(code, found) == joined
    assert scenarios.joined(code, {("openvino", "int8"): {"camera": {"late": 3}}}) == code
    assert "NOT VALID: it was shorter than asked for" in scenario_sentence("offline", INVALID)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: Scenarios(("cold-strat",)), "Did you mean cold-start"),
        (lambda: Scenarios(seconds=0), "--seconds"),
        (lambda: Scenarios(rate=-1), "--camera-rate"),
    ],
)
def test_what_cannot_be_measured_is_refused(given: object, words: str) -> None:
    assert callable(given)
    with pytest.raises(UsageError, match=words):
        given()
