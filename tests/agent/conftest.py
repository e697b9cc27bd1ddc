from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from resedge.agent import children
from resedge.shipping import moments

FAULTS = Path(__file__).parents[1] / "shipping" / "faults.py"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - World
    """What stands in for the agent's children, in this process, does as this says; the clock does, too."""
    defined = runpy.run_path(str(FAULTS))
    made = defined["World"]()
    monkeypatch.setattr(children, "ask", defined["Bench"](made).ask)
    monkeypatch.setattr(moments, "now", lambda: made.clock())
    return made


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test where a child is started, and with it a runtime."""

    def refuse(kind: object, request: object, seconds: float | None = None) -> None:
        raise AssertionError(f"{request} was asked for")

    monkeypatch.setattr(children, "ask", refuse)
