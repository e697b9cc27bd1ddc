from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from resedge.errors import InputRefused
from resedge.shipping import moments


def test_a_time_comes_back_as_it_was() -> None:
    now = moments.now()
    assert moments.from_text(moments.to_text(now), "here") == now
    paris = datetime(2026, 3, 1, 13, tzinfo=timezone(timedelta(hours=1)))
    assert moments.to_text(paris) == "2026-03-01T12:00:00Z"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-03-01",
        "2026-03-01T12:00:00",
        "2026-03-01T12:00:00+00:00",
        "2026-3-1T12:00:00Z",
        "2026-02-30T12:00:00Z",
    ],
)
def test_other_forms_are_refused_by_name(text: str) -> None:
    with pytest.raises(InputRefused, match=r"here: is .*, not a time"):
        moments.from_text(text, "here")
