from __future__ import annotations

import pytest

from resedge.artifacts import (
    Accuracy,
    BestEager,
    Distribution,
    EagerLatency,
    Latency,
    Outcome,
    SelfCheck,
    Stability,
    Verdict,
)
from resedge.errors import BuildFailed, NotFinite, RuntimeUnavailable
from resedge.pipeline.judging import Findings, document_of, exit_code, judge_all
from resedge.pipeline.measuring import EngineLatency, Latencies
from resedge.pipeline.options import Measuring

NAME = ("openvino", "int8")
FAST = Latency(1.0, 5.0, 5.0, 4.8, 5.2, 4.0, "faster", 20, 50)
COUNTED, BEST = Distribution((4.0, 6.0), (9,)), BestEager("contiguous", 5.0)
EAGER = EagerLatency(5.0, None, None, None, None, COUNTED, BEST)
ALARM = SelfCheck("faster", 1.1, 1.05, 1.15, alarm=True)


def latencies(*, stable: bool = True, check: SelfCheck | None = None, partial: bool = False) -> Latencies:
    stability = Stability(stable, () if stable else ("a neighbour",))
    return Latencies((EngineLatency(*NAME, FAST),), EAGER, stability, {"threads": 2}, check, partial)


def _raises(error: Exception) -> int:
    raise error


def test_what_can_be_compared_is_returned_and_nothing_noted() -> None:
    findings = Findings()
    assert findings.compared(NAME, lambda: 7) == 7
    assert findings == Findings()


def test_an_engine_that_is_not_there_is_missing_and_one_that_fails_counts_as_failed() -> None:
    findings = Findings()
    assert findings.compared(NAME, lambda: _raises(RuntimeUnavailable("absent."))) is None
    assert findings == Findings(missing={NAME: "absent."})
    assert findings.compared(NAME, lambda: _raises(BuildFailed("refused."))) is None
    assert findings == Findings(missing={NAME: "refused."}, failed={"openvino"})


def test_an_engine_without_usable_answers_is_broken() -> None:
    findings = Findings()
    assert findings.compared(NAME, lambda: _raises(NotFinite("NaN."))) is None
    assert findings == Findings(broken={NAME: "NaN."})


@pytest.mark.parametrize(
    ("precision", "outcome", "budget_met", "code"),
    [
        ("int8", "inconclusive", True, 3),
        ("int8", "inconclusive", False, 1),  # neither the tuning nor the test images speak for it
        ("int8", "pass", False, 0),  # the test images decide
        ("int8", "fail", False, 1),
        ("fp16", "inconclusive", False, 3),  # the budget that is not met is that of INT8
    ],
)
def test_a_budget_that_was_not_met_fails_what_stays_inconclusive(
    precision: str, outcome: Outcome, budget_met: bool, code: int
) -> None:
    verdicts = (Verdict("openvino", precision, outcome),)
    assert exit_code(verdicts, frozenset(), Findings(), budget_met=budget_met) == code


@pytest.mark.parametrize(
    ("stable", "demand_stable", "outcome"),
    [(True, True, "pass"), (False, True, "inconclusive"), (False, False, "pass")],
)
def test_only_where_it_is_demanded_does_an_unstable_run_settle_nothing(
    stable: bool, demand_stable: bool, outcome: Outcome
) -> None:
    findings = Findings({NAME: Accuracy(1000, 1.0, 0.0, 0.9, 0.9, 0.0, 0.003, 0, 0)})
    how = Measuring(threads=1)
    (found,) = judge_all((NAME,), findings, latencies(stable=stable), how, demand_stable=demand_stable)
    assert found.outcome == outcome


@pytest.mark.parametrize(
    ("measured", "code"),
    [
        (latencies(), 0),
        (latencies(stable=False), 0),  # which the verdicts know already
        (latencies(check=SelfCheck("equivalent", 1.0, 0.99, 1.01, alarm=False)), 0),
        (latencies(check=ALARM), 1),
        (latencies(partial=True), 130),
        (latencies(check=ALARM, partial=True), 130),
    ],
)
def test_an_alarm_and_an_interrupt_have_their_exit_codes(measured: Latencies, code: int) -> None:
    assert exit_code((Verdict(*NAME, "pass"),), frozenset(), Findings(), latencies=measured) == code


def test_the_document_says_what_the_run_was() -> None:
    found = document_of((Verdict(*NAME, "pass"),), "m", "eager", latencies(stable=False, check=ALARM))
    assert found["stability"] == {"stable": False, "reasons": ["a neighbour"]}
    assert found["self_check"] == {
        "relation": "faster",
        "ratio": 1.1,
        "low": 1.05,
        "high": 1.15,
        "alarm": True,
    }
    assert found["partial"] is False
    assert found["eager"] == {
        "p50_ms": 5.0,
        "p90_ms": None,
        "p95_ms": None,
        "p99_ms": None,
        "p999_ms": None,
        "distribution": {"edges_ms": [4.0, 6.0], "counts": [9]},
        "best": {"memory_format": "contiguous", "p50_ms": 5.0},
    }
