from __future__ import annotations

from resedge.errors import BuildFailed, NotFinite, RuntimeUnavailable
from resedge.pipeline.judging import Findings

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
