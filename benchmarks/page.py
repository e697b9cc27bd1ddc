"""A report as one page of HTML: no script, nothing fetched, everything that is not its own text escaped.

The same values give the same bytes; no time, host or path comes in here.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from resedge.artifacts import JsonValue
from resedge.benchmarks import plots, sentences, tables
from resedge.benchmarks.comparing import Changes
from resedge.benchmarks.documents import BenchDocument
from resedge.benchmarks.evidence import Evidence, Flip, Flips
from resedge.benchmarks.formats import engine_name
from resedge.benchmarks.markup import Markup, element, joined
from resedge.benchmarks.stylesheet import CSS
from resedge.benchmarks.tables import Table

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class _Section:
    """A part of the page, with what its heading and the link to it say."""

    name: str
    heading: str
    content: tuple[Markup, ...]


def page(document: BenchDocument, evidence: Evidence, changes: Changes | None = None) -> str:
    """Return the report as HTML, one file that needs no other.

    Args:
        document: What was measured.
        evidence: What is known beside it; parts that are empty have no section.
        changes: What changed since an older document, if it was compared with one.
    """
    sections = [section for section in _sections(document, evidence, changes) if section.content]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{document.model}: engines against eager"),
        element("style", Markup(CSS)),
    )
    body = element(
        "body",
        element("a", "Skip to the summary", href="#summary", class_="skip"),
        element(
            "header",
            element("h1", f"{document.model}: are the engines still the model?"),
            element("p", sentences.baseline(document), class_="faint"),
        ),
        _navigation(sections),
        element("main", *map(_section, sections)),
        element("footer", "Written by resedge. Fractions of top-1 are in percentage points."),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en-GB')}"


def _sections(document: BenchDocument, evidence: Evidence, changes: Changes | None) -> Iterator[_Section]:
    yield _Section("summary", "Summary", tuple(_summary(document)))
    yield _Section("engines", "Engines", tuple(_engines(document, evidence)))
    if changes:
        yield _Section("changes", "What changed", tuple(_changes(changes)))
    if document.measured:
        yield _Section("accuracy", "Accuracy against speed", tuple(_accuracy(document, evidence)))
        yield _Section("latency", "Latency", tuple(_latency(document)))
    besides = tables.scenarios(document)
    yield _Section("scenarios", "Measured besides", (_table(besides),) if besides.rows else ())
    if evidence.layers:
        drawn = _scrolled(plots.layer_bars(evidence.layers), "Sensitivity by layer, figure")
        content = (element("figure", drawn), _table(tables.layers(evidence.layers)))
        yield _Section("sensitivity", "Sensitivity by layer", content)
    contests = [_table(tables.contest(contest)) for contest in evidence.contests]
    side_by_side = (element("div", *contests, class_="pairs"),) if contests else ()
    yield _Section("calibration", "How calibration was chosen", side_by_side)
    yield _Section("flipped", "Images that flipped", tuple(_flips(evidence.flips)))
    conditions = _conditions(document.conditions)
    yield _Section("conditions", "Conditions", (conditions,) if document.conditions else ())
    if evidence.command:
        again = "The same measurement again, on this or another machine:"
        shown = element("pre", element("code", evidence.command), tabindex="0")
        yield _Section("reproduce", "How to reproduce", (element("p", again), shown))


def _navigation(sections: Sequence[_Section]) -> Markup:
    links = (element("li", element("a", section.heading, href=f"#{section.name}")) for section in sections)
    return element("nav", element("ul", *links), aria_label="Sections")


def _section(section: _Section) -> Markup:
    heading = element("h2", section.heading)
    return element("section", heading, *section.content, id=section.name)


def _summary(document: BenchDocument) -> Iterator[Markup]:
    yield element("p", sentences.headline(document), class_="headline")
    for caution in sentences.cautions(document):
        yield element("p", caution, class_="caution", role="note")
    items = (
        element(
            "li",
            _outcome(engine.outcome),
            element("span", sentences.engine_sentence(engine, document.confidence)),
        )
        for engine in document.engines
    )
    yield element("ul", *items, class_="sentences")


def _outcome(outcome: str) -> Markup:
    return element("span", outcome, class_=f"outcome {outcome}")


def _engines(document: BenchDocument, evidence: Evidence) -> Iterator[Markup]:
    yield _table(tables.engines(document, evidence), marked=True)
    reasons = [
        element("li", element("strong", engine_name(*engine.key)), f": {reason}")
        for engine in document.engines
        for reason in engine.reasons
    ]
    if reasons:
        yield element("h3", "Reasons")
        yield element("ul", *reasons)


def _changes(changes: Changes) -> Iterator[Markup]:
    if changes.engines:
        yield _table(tables.changes(changes))
    yield element("p", sentences.images_compared(changes))
    notes = [element("li", warning) for warning in sentences.differences(changes)]
    if notes:
        yield element("h3", "What else differs")
        yield element("ul", *notes)


def _accuracy(document: BenchDocument, evidence: Evidence) -> Iterator[Markup]:
    note = (
        "Up and to the right is better. Lines are the intervals of the speed and, downwards, the bound of "
        "the loss; dashed lines are the budget. The figures are in the table of engines."
    )
    drawn = _scrolled(plots.accuracy_against_speed(document), "Accuracy against speed, figure")
    yield element("figure", drawn, element("figcaption", note))
    yield _table(tables.accuracy_details(document, evidence.class_names))


def _latency(document: BenchDocument) -> Iterator[Markup]:
    drawn = plots.latency_distributions(document)
    if drawn is not None:
        note = (
            "Each row has its own height; the time axis is logarithmic. The figures are in the table below."
        )
        shown = _scrolled(drawn, "Latency of single calls, figure")
        yield element("figure", shown, element("figcaption", note))
    details = tables.latency_details(document)
    if len(details.columns) > 2:  # more than the medians, which the table of engines has
        yield _table(details)


def _flips(all_flips: Sequence[Flips]) -> Iterator[Markup]:
    for flips in all_flips:
        if not flips.total:
            continue
        left_out = flips.total - len(flips.shown)
        more = f", of which {left_out:,} are not shown" if left_out else ""
        images = "image" if flips.total == 1 else "images"
        yield element("h3", engine_name(flips.runtime, flips.precision))
        yield element("p", f"It chooses another class than eager on {flips.total:,} {images}{more}.")
        yield element("ul", *map(_flip, flips.shown), class_="flips")


def _flip(flip: Flip) -> Markup:
    named = {"label": flip.label, "eager": flip.eager, "engine": flip.engine}
    pairs = (
        joined((element("dt", name), element("dd", text))) for name, text in named.items() if text is not None
    )
    source = f"data:image/png;base64,{base64.b64encode(flip.png).decode()}"
    described = f"Test image {flip.image:,}"
    return element("li", element("img", src=source, alt=described), element("dl", *pairs))


def _conditions(conditions: Mapping[str, JsonValue]) -> Markup:
    rows = (
        element("tr", element("th", name, scope="row"), element("td", text))
        for name, text in _flattened(conditions, "")
    )
    caption = element("caption", element("span", "What everything was measured under"))
    header = element("th", "condition", scope="col"), element("th", "value", scope="col")
    head = element("thead", element("tr", *header))
    whole = element("table", caption, head, element("tbody", *rows), class_="conditions")
    return _scrolled(whole, "Conditions")


def _flattened(value: JsonValue, name: str) -> Iterator[tuple[str, str]]:
    """Name and text of everything in a JSON value, "libraries: torch" for what is inside of something."""
    if isinstance(value, Mapping) and value:
        for key in sorted(value):
            yield from _flattened(value[key], f"{name}: {key}" if name else key.replace("_", " "))
    elif isinstance(value, (list, tuple)):
        yield name, ", ".join(text for item in value for _, text in _flattened(item, "")) or "none"
    elif isinstance(value, bool):
        yield name, "yes" if value else "no"
    else:
        yield name, "unknown" if value is None else str(value)


def _table(table: Table, *, marked: bool = False) -> Markup:
    """A table with its caption; `marked`: its last cells are outcomes, which have a colour each."""
    header = (element("th", c.heading, scope="col", class_=_side(c.figures)) for c in table.columns)

    def cell(text: str, number: int) -> Markup:
        if number == 0:
            return element("th", text, scope="row")
        last = marked and number == len(table.columns) - 1
        return element("td", _outcome(text) if last else text, class_=_side(table.columns[number].figures))

    rows = (element("tr", *(cell(text, number) for number, text in enumerate(row))) for row in table.rows)
    caption = element("caption", element("span", table.caption))
    body = element("tbody", *rows)
    return _scrolled(element("table", caption, element("thead", element("tr", *header)), body), table.caption)


def _side(figures: bool) -> str | None:
    return "figures" if figures else None


def _scrolled(content: Markup, label: str) -> Markup:
    """What may be wider than a phone: a group that scrolls, by keyboard too."""
    return element("div", content, class_="wide", role="group", aria_label=label, tabindex="0")
