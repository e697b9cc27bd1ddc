"""Times as a manifest has them: UTC, ISO 8601, to the second, such as "2026-03-01T12:00:00Z"."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final

from resedge.errors import InputRefused

_FORM: Final = "%Y-%m-%dT%H:%M:%SZ"


def now() -> datetime:
    """Return the time by this machine's clock, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def to_text(moment: datetime) -> str:
    """Return the text of an aware time."""
    return moment.astimezone(timezone.utc).strftime(_FORM)


def from_text(text: str, where: str) -> datetime:
    """Return the time that a text of this one form is.

    Raises:
        InputRefused: It has another form; `where` is named.
    """
    try:
        moment = datetime.strptime(text, _FORM).replace(tzinfo=timezone.utc)
    except ValueError as error:
        raise InputRefused(
            f"is {text!r:.60}, not a time such as 2026-03-01T12:00:00Z.", where=where
        ) from error
    if to_text(moment) != text:
        raise InputRefused(f"is {text!r:.60}, not a time such as 2026-03-01T12:00:00Z.", where=where)
    return moment
