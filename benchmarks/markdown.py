"""A report as Markdown, for a pull request or the summary of a job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from resedge.benchmarks import sentences, tables
from resedge.benchmarks.comparing import Changes
from resedge.benchmarks.documents import BenchDocument
from resedge.benchmarks.evidence import Evidence
from resedge.benchmarks.formats import engine_name
from resedge.benchmarks.tables import Table

_SPECIAL: Final = re.compile(r"[\\`*_{}\[\]<>#|~!@&$]")
_SPACES: Final = re.compile(r"\s+")
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def markdown(document: BenchDocument, evidence: Evidence, changes: Changes | None = None) -> str:
    """Return the table of engines, the reasons, and what changed, as GitHub renders it.

    Args:
        document: What was measured.
        evidence: Its sizes and its command are written.
        changes: What changed since an older document, if it was compared with one.
    """
    return "\n\n".join(_blocks(document, evidence, changes)) + "\n"


def _blocks(document: BenchDocument, evidence: Evidence, changes: Changes | None) -> Iterator[str]:
    yield f"### {_plain(document.model)}: engines against eager"
    yield f"**{_plain(sentences.headline(document))}** {_plain(sentences.baseline(document))}".strip()
    yield from (f"> {_plain(caution)}" for caution in sentences.cautions(document))
    yield from _table(tables.engines(document, evidence))
    reasons = [
        f"- **{_plain(engine_name(*engine.key))}**: {_plain(reason)}"
        for engine in document.engines
        for reason in engine.reasons
    ]
    if reasons:
        yield "\n".join(reasons)
    besides = tables.scenarios(document)
    if besides.rows:
        yield "#### Measured besides"
        yield from _table(besides)
    if changes:
        yield "#### What changed"
        if changes.engines:
            yield from _table(tables.changes(changes))
        notes = (sentences.images_compared(changes), *sentences.differences(changes))
        yield "\n".join(f"- {_plain(note)}" for note in notes)
    if evidence.command:
        yield f"Reproduce:\n\n```sh\n{_fenced(evidence.command)}\n```"


def _table(table: Table) -> Iterator[str]:
    sides = ("---:" if column.figures else ":---" for column in table.columns)
    lines = (
        [_plain(column.heading) for column in table.columns],
        list(sides),
        *([_plain(cell) for cell in row] for row in table.rows),
    )
    yield _plain(table.caption) + ":"
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text on one line that Markdown shows as it is: no markup, no mention, no link of it."""
    one_line = _SPACES.sub(" ", _CONTROL.sub("\ufffd", text)).strip()
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", one_line)


def _fenced(text: str) -> str:
    """Text within a fence, which none of its lines may close."""
    return _SPACES.sub(" ", _CONTROL.sub("\ufffd", text)).replace("```", "'''")
