from __future__ import annotations

import pytest

from resedge.artifacts import Outcome, Verdict
from resedge.errors import BuildFailed, NotFinite, RuntimeUnavailable
from resedge.pipeline.judging import Findings, exit_code

NAME = ("openvino", "int8")


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
