"""The tables of a report as text: one place for what Markdown, a page and a terminal show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from resedge.artifacts import Percentile
from resedge.benchmarks.comparing import Changes, EngineChange
from resedge.benchmarks.documents import (
    AccuracyReport,
    BenchDocument,
    Distribution,
    EagerReport,
    EngineReport,
    LatencyReport,
    WorstClass,
)
from resedge.benchmarks.evidence import Contest, Evidence, LayerCost
from resedge.benchmarks.formats import change, engine_name, interval, percent, short, signed_percent
from resedge.benchmarks.sentences import scenario_sentence

UNKNOWN = "-"
_PERCENTILES = (("p90_ms", "p90"), ("p95_ms", "p95"), ("p99_ms", "p99"), ("p999_ms", "p99.9"))
_QUANTILES = (("5 %", 0.05), ("25 %", 0.25), ("50 %", 0.5), ("75 %", 0.75), ("95 %", 0.95))


@dataclass(frozen=True)
class Column:
    """A heading, and whether figures stand below it."""

    heading: str
    figures: bool = True


@dataclass(frozen=True)
class Table:
    """A caption, columns, and rows of as many cells; the first cell of a row names it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    def without_empty(self) -> Table:
        """Return it without the columns in which nothing is known."""
        kept = [i for i in range(len(self.columns)) if any(row[i] != UNKNOWN for row in self.rows)]
        return Table(
            self.caption,
            tuple(self.columns[i] for i in kept),
            tuple(tuple(row[i] for i in kept) for row in self.rows),
        )


def engines(document: BenchDocument, evidence: Evidence) -> Table:
    """Return the main table: one row an engine."""
    confidence = f"{100 * document.confidence:.4g} %"
    headings = ("size, MB", "top-1, %", "drop, points (at most)", "agrees, %", "p50, ms")
    return Table(
        f"Engines against eager; bounds and intervals with {confidence} confidence",
        (
            Column("engine", figures=False),
            *map(Column, headings),
            Column("times eager's speed (interval)"),
            Column("verdict", figures=False),
        ),
        tuple(_engine_row(engine, evidence.sizes.get(engine.key)) for engine in document.engines),
    )


def accuracy_details(document: BenchDocument, class_names: Sequence[str]) -> Table:
    """Return what else is known of the engines' answers."""

    def row(engine: EngineReport, found: AccuracyReport) -> tuple[str, ...]:
        return (
            engine_name(*engine.key),
            _or_unknown(found.negative_flips, "{:,}".format),
            _or_unknown(found.positive_flips, "{:,}".format),
            _or_unknown(found.top5, percent),
            _or_unknown(found.top5_eager, percent),
            _or_unknown(found.kl, "{:.1e}".format),
            _or_unknown(found.worst_class, lambda worst: _worst(worst, class_names)),
            f"{found.max_abs_logit_error:.2g}",
            _or_unknown(found.images_needed, "{:,}".format),
        )

    headings = ("lost by it", "won by it", "top-5, %", "eager's top-5, %", "KL, nats")
    return Table(
        "Answers in detail: images that eager alone gets right, or the engine alone",
        (
            Column("engine", figures=False),
            *map(Column, headings),
            Column("class that loses most, points (at most)", figures=False),
            Column("largest logit error"),
            Column("images needed"),
        ),
        tuple(row(engine, engine.accuracy) for engine in document.engines if engine.accuracy),
    ).without_empty()


def latency_details(document: BenchDocument) -> Table:
    """Return where the calls of eager and of each engine lie, with tail percentiles where they are known."""
    return Table(
        "Latency of single calls, milliseconds: the time below which so many of them lie",
        (Column("engine", figures=False), *(Column(name) for name, _ in (*_QUANTILES, *_named_tails()))),
        tuple(_latency_row(name, found) for name, found in timed(document)),
    ).without_empty()


def timed(document: BenchDocument) -> list[tuple[str, EagerReport | LatencyReport]]:
    """Return eager, where its times are there, and every engine that was timed, by name."""
    eager = [("eager", document.eager)] if document.eager else []
    return [*eager, *((engine_name(*e.key), e.latency) for e in document.engines if e.latency)]


def scenarios(document: BenchDocument) -> Table:
    """Return what was measured of each engine besides its verdict."""
    return Table(
        "Each engine alone; none of this decides a verdict, but for a run of LoadGen that is not valid",
        (Column("engine", figures=False), Column("scenario", figures=False), Column("found", figures=False)),
        tuple(
            (engine_name(*engine.key), name, scenario_sentence(name, value))
            for engine in document.engines
            for name, value in (engine.scenarios or {}).items()
        ),
    )


def layers(costs: Sequence[LayerCost]) -> Table:
    """Return what each layer costs."""
    headings = ("of the work, %", "SQNR, dB", "KL gained, nats", "agreement gained, points")
    return Table(
        "Each layer of the INT8 graph, and what is gained if it alone stays float (on the tuning images)",
        (Column("layer", figures=False), *map(Column, headings), Column("computed in", figures=False)),
        tuple(
            (
                cost.name,
                f"{100 * cost.share:.1f}",
                _or_unknown(cost.sqnr, "{:.1f}".format),
                f"{cost.kl_gain:+.1e}",
                signed_percent(cost.agreement_gain),
                "float" if cost.kept else "INT8",
            )
            for cost in costs
        ),
    ).without_empty()


def contest(found: Contest) -> Table:
    """Return a bake-off: every candidate, the best first."""
    ordered = sorted(found.candidates, key=lambda entry: (entry.name != found.winner, entry.kl))
    return Table(
        f"{found.subject} of the graph for {found.scheme}, on {found.images:,} tuning images",
        (
            Column("candidate", figures=False),
            Column("differ from eager"),
            Column("KL, nats"),
            Column("chosen", figures=False),
        ),
        tuple(
            (entry.name, f"{entry.disagreements:,}", f"{entry.kl:.2e}", "yes" * (entry.name == found.winner))
            for entry in ordered
        ),
    )


def changes(found: Changes) -> Table:
    """Return what changed, one row an engine."""
    confidence = f"{100 * found.confidence:.4g} %"
    return Table(
        f"Change against eager since the older run (interval with {confidence} confidence for all at once)",
        (
            Column("engine", figures=False),
            Column("speed, %"),
            Column("is", figures=False),
            Column("loss, points"),
            Column("is", figures=False),
            Column("agrees, points"),
            Column("verdict", figures=False),
        ),
        tuple(map(_change_row, found.engines)),
    )


def _engine_row(engine: EngineReport, size: int | None) -> tuple[str, ...]:
    accuracy, latency = engine.accuracy, engine.latency
    drop = p50 = speed = agreement = top1 = UNKNOWN
    if accuracy:
        agreement, top1 = percent(accuracy.agreement), _or_unknown(accuracy.top1, percent)
        if accuracy.drop is not None and accuracy.drop_upper is not None:
            drop = f"{signed_percent(accuracy.drop)} ({percent(accuracy.drop_upper)})"
    if latency:
        p50 = short(latency.p50_ms)
        speed = f"{short(latency.speedup)} ({interval(latency.speedup_low, latency.speedup_high)})"
    megabytes = UNKNOWN if size is None else short(size / 1e6)
    return engine_name(*engine.key), megabytes, top1, drop, agreement, p50, speed, engine.outcome


def _change_row(found: EngineChange) -> tuple[str, ...]:
    speed = loss = agreement = UNKNOWN
    relation, direction = "not in both", UNKNOWN
    if latency := found.latency:
        speed = f"{change(latency.ratio)} ({change(latency.low)} to {change(latency.high)})"
        relation = latency.relation
    if accuracy := found.accuracy:
        ends = f"{signed_percent(accuracy.low)} to {signed_percent(accuracy.high)}"
        loss, direction = f"{signed_percent(accuracy.loss)} ({ends})", accuracy.direction
        agreement = signed_percent(accuracy.agreement)
    same = found.outcome_before == found.outcome_now
    outcome = found.outcome_now if same else f"{found.outcome_before} → {found.outcome_now}"
    name = engine_name(found.runtime, found.precision)
    return name, speed, relation, loss, direction, agreement, outcome


def _named_tails() -> Iterable[tuple[str, str]]:
    return ((f"{name} (bounds)", key) for key, name in _PERCENTILES)


def _latency_row(name: str, found: EagerReport | LatencyReport) -> tuple[str, ...]:
    tails = (found.p90_ms, found.p95_ms, found.p99_ms, found.p999_ms)
    return (
        name,
        *(_quantile(found.distribution, found.p50_ms, fraction) for _, fraction in _QUANTILES),
        *(_or_unknown(tail, _tail) for tail in tails),
    )


def _quantile(distribution: Distribution | None, p50_ms: float, fraction: float) -> str:
    if fraction == 0.5:
        return short(p50_ms)
    return UNKNOWN if distribution is None else short(distribution.quantile(fraction))


def _tail(tail: Percentile) -> str:
    return f"{short(tail.ms)} ({interval(tail.low, tail.high)})"


def _worst(found: WorstClass, class_names: Sequence[str]) -> str:
    known = 0 <= found.class_ < len(class_names)
    name = class_names[found.class_] if known else f"class {found.class_}"
    return f"{name}: {signed_percent(found.drop)} ({percent(found.drop_upper)}) of {found.images:,}"


def _or_unknown(value: object, write: Callable[..., str]) -> str:
    return UNKNOWN if value is None else write(value)
