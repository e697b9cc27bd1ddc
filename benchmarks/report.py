"""Verdicts as a table for a terminal and as the JSON document that `--json` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resedge.artifacts import Accuracy, JsonValue, Latency, Verdict, encode
from resedge.benchmarks.formats import percent, short

SCHEMA = 1

_Side = Literal["left", "right"]

# Heading, side, and whether a cell may take two lines: only those columns do, so that at 80 characters the
# bound and the interval stand below their estimates and nothing is cut.
_COLUMNS: tuple[tuple[str, _Side, bool], ...] = (
    ("backend", "left", False),
    ("precision", "left", False),
    ("size\nMB", "right", False),
    ("top-1\n%", "right", False),
    ("drop,\npoints", "right", True),
    ("agrees\n%", "right", False),
    ("p50\nms", "right", False),
    ("ratio to\neager", "right", True),
    ("verdict", "left", False),
)
_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "unavailable": "dim"}
_UNKNOWN = "-"


def table(verdicts: Sequence[Verdict], sizes: Mapping[tuple[str, str], int]) -> Table:
    """Return the verdicts as a table, one row each, with their reasons below it.

    Args:
        verdicts: In the order of the rows.
        sizes: Bytes of each engine's files by (runtime, precision); one that is not there has no size.
    """
    lines = Table(
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        caption=_notes(verdicts),
        caption_justify="left",
        caption_style="none",
    )
    for heading, side, may_wrap in _COLUMNS:
        lines.add_column(heading, justify=side, no_wrap=not may_wrap, vertical="top")
    for verdict in verdicts:
        lines.add_row(
            Text(verdict.runtime),
            Text(verdict.precision),
            _size(sizes.get((verdict.runtime, verdict.precision))),
            *_accuracy_cells(verdict.accuracy),
            *_latency_cells(verdict.latency),
            Text(verdict.outcome, style=_STYLES[verdict.outcome]),
        )
    return lines


def baseline(reference: str, verdicts: Sequence[Verdict]) -> str:
    """Return one line on eager, which every row is against; "" where no engine could be measured.

    Args:
        reference: What the engines were compared with, such as "eager, batchnorm split".
        verdicts: Of one run, so that they name one eager.
    """
    measured = [(v.accuracy, v.latency) for v in verdicts if v.accuracy and v.latency]
    if not measured:
        return ""
    accuracy, latency = measured[0]
    top1 = "" if accuracy.top1_eager is None else f"top-1 {accuracy.top1_eager:.2%}, "
    return f"{reference}: {top1}p50 {latency.p50_ms_eager:.2f} ms at batch 1, {accuracy.images:,} test images"


def circumstances(conditions: JsonValue) -> str:
    """Return one line on what was measured under: threads, processor, versions, what computes in what.

    Where sides are handed different things it says what.
    """
    if not isinstance(conditions, Mapping):
        return ""
    libraries, computed, given = (conditions.get(key) for key in ("libraries", "computed", "given"))
    parts = [f"{conditions.get('threads')} threads, {conditions.get('cpu')}"]
    if isinstance(libraries, Mapping):
        parts.append(", ".join(f"{name} {version}" for name, version in libraries.items()))
    if isinstance(computed, Mapping):
        parts += [f"{engine}: {words}" for engine, words in computed.items()]
    if isinstance(given, Mapping) and len(set(map(str, given.values()))) > 1:
        parts += [f"{side} is given {words}" for side, words in given.items()]
    return "; ".join(parts)


def run_notes(document: Mapping[str, JsonValue]) -> list[str]:
    """Return lines on a run that was interrupted, disturbed, or found eager different from itself."""
    stability, check = document.get("stability"), document.get("self_check")
    notes = ["interrupted: of the rounds until then"] if document.get("partial") else []
    if isinstance(stability, Mapping) and not stability["stable"]:
        reasons = stability["reasons"]
        assert isinstance(reasons, (list, tuple))
        notes.append(f"unstable: {'; '.join(map(str, reasons))}")
    if isinstance(check, Mapping) and check["alarm"]:
        notes.append(
            f"alarm: eager is {check['relation']} than itself, so no ratio of this run can be trusted"
        )
    return notes


def document(
    model: str, reference: str, conditions: Mapping[str, JsonValue], verdicts: Sequence[Verdict]
) -> dict[str, JsonValue]:
    """Return the document of `--json`; fractions, milliseconds and ratios as they were measured.

    Args:
        model: The model's name.
        reference: What the engines were compared with, such as "eager, batchnorm split".
        conditions: What everything was measured under.
        verdicts: One entry each, in this order.
    """
    return {
        "schema": SCHEMA,
        "model": model,
        "reference": reference,
        "conditions": dict(conditions),
        "engines": [_entry(verdict) for verdict in verdicts],
    }


def _entry(verdict: Verdict) -> dict[str, JsonValue]:
    return {
        "runtime": verdict.runtime,
        "precision": verdict.precision,
        "outcome": verdict.outcome,
        "reasons": list(verdict.reasons),
        "accuracy": encode(verdict.accuracy),
        "latency": encode(verdict.latency),
    }


def _notes(verdicts: Sequence[Verdict]) -> Text | None:
    """The reasons, one a line; as Text, because one may hold [brackets] that markup would swallow."""
    notes = [
        f"{verdict.runtime} {verdict.precision}: {reason}"
        for verdict in verdicts
        for reason in verdict.reasons
    ]
    return Text("\n".join(["", *notes])) if notes else None


def _accuracy_cells(accuracy: Accuracy | None) -> tuple[str, str, str]:
    """The cells of top-1, drop and agreement."""
    if accuracy is None:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    agreement = percent(accuracy.agreement)
    if accuracy.top1 is None or accuracy.drop is None or accuracy.drop_upper is None:
        return _UNKNOWN, _UNKNOWN, agreement
    bound = f"(<={percent(accuracy.drop_upper)})"
    return percent(accuracy.top1), f"{100 * accuracy.drop:+.2f} {bound}", agreement


def _latency_cells(latency: Latency | None) -> tuple[str, str]:
    """The cells of p50 and of the ratio."""
    if latency is None:
        return _UNKNOWN, _UNKNOWN
    interval = f"{short(latency.speedup_low)}..{short(latency.speedup_high)}"
    return short(latency.p50_ms), f"{short(latency.speedup)}x  {interval}"


def _size(size: int | None) -> str:
    return _UNKNOWN if size is None else short(size / 1e6)
