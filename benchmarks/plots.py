"""Figures of a report as inline SVG, each with a title, a description, and a table of the same beside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from resedge.benchmarks.documents import BenchDocument, Distribution, EngineReport
from resedge.benchmarks.evidence import LayerCost
from resedge.benchmarks.formats import engine_name, short
from resedge.benchmarks.markup import Markup, element
from resedge.benchmarks.tables import timed

_WIDTH: Final = 680
_COLOURS: Final = 8
_LINE: Final = 18  # pixels from one label to the next
_BARS: Final = 20
_FEWEST_TICKS: Final = 4
_LOGARITHMIC_TICKS: Final = (
    (1,),
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 7),
    tuple(i / 10 for i in range(10, 100, 2)),
)

Scale = Callable[[float], float]


@dataclass(frozen=True)
class _Point:
    """An engine in the plane: its speed-up with its interval, and its y with the bound below it."""

    name: str
    colour: int
    x: float
    low: float
    high: float
    y: float
    bound: float


def accuracy_against_speed(document: BenchDocument) -> Markup:
    """Return the engines as points with their intervals; further up and to the right is better."""
    labelled = all(e.accuracy and e.accuracy.drop_upper is not None for e in document.measured)
    points = [_point(engine, i, labelled=labelled) for i, engine in enumerate(document.measured)]
    left, right, top, bottom = 62.0, 500.0, 16.0, 300.0
    budget = document.budget
    floor = -100 * budget.max_drop if budget and labelled else None
    xs = [1.0, *(end for p in points for end in (p.low, p.high)), *([budget.min_speedup] if budget else [])]
    ys = [0.0 if labelled else 100.0, *(end for p in points for end in (p.y, p.bound))]
    extent = max(ys) - min(ys)
    if floor is not None and -floor <= 8 * extent:
        ys.append(floor)
    x, x_ticks = _linear(xs, left, right)
    y, y_ticks = _linear(ys, bottom, top)
    marks = [
        *(_vertical(x(tick), top, bottom, "grid") for tick in x_ticks),
        *(_horizontal(y(tick), left, right, "grid") for tick in y_ticks),
        *(_text(x(tick), bottom + 20, f"{tick:g}", "middle") for tick in x_ticks),
        *(_text(left - 8, y(tick) + 4, _tick(tick, y_ticks), "end") for tick in y_ticks),
    ]
    if budget:
        marks.append(_vertical(x(budget.min_speedup), top, bottom, "limit"))
    if floor is not None and floor in ys:
        marks.append(_horizontal(y(floor), left, right, "limit"))
        marks.append(_text(right - 6, y(floor) - 6, "allowed drop", "end", "note"))
    eager = (x(1.0), y(ys[0]))
    labels = [(p.name, x(p.x), y(p.y), f"s{p.colour}") for p in points]
    marks += [mark for point in points for mark in _marks(point, x, y)]
    marks.append(element("rect", x=eager[0] - 4, y=eager[1] - 4, width=8, height=8, class_="eager"))
    marks.append(_text(eager[0] + 8, eager[1] + 18, "eager", "start"))
    marks += _leaders(labels, right + 24, top, bottom)
    vertical = "top-1 against eager, points" if labelled else "agrees with eager, %"
    marks += [
        _text((left + right) / 2, bottom + 44, "times eager's speed", "middle"),
        _text(16, (top + bottom) / 2, vertical, "middle", turned=True),
    ]
    said = "; ".join(f"{p.name} {short(p.x)} times, {p.y:+.2f}" for p in points)
    described = f"Each engine's speed against eager to the right, {vertical} upwards. {said}."
    return _figure("speed", "Accuracy against speed", described, bottom + 54, marks)


def latency_distributions(document: BenchDocument) -> Markup | None:
    """Return a histogram a row of eager's calls and of each engine's; None where no calls are known."""
    rows = [(name, d, found.p50_ms) for name, found in timed(document) if (d := found.distribution)]
    if not rows:
        return None
    left, right, height = 170.0, 660.0, 46.0
    bottom = 10 + height * len(rows)
    spans = [_span(distribution) for _, distribution, _ in rows]
    x, ticks = _logarithmic(min(s[0] for s in spans), max(s[1] for s in spans), left, right)
    marks = [_vertical(x(tick), 10, bottom, "grid") for tick in ticks]
    colours = {engine_name(*engine.key): f"s{i % _COLOURS}" for i, engine in enumerate(document.measured)}
    for number, (name, distribution, p50) in enumerate(rows):
        base = 10 + height * (number + 1)
        colour = colours.get(name, "eager")
        outline = _outline(distribution, x, base, height - 8)
        marks += [
            element("path", d=outline, class_=f"area {colour}"),
            _horizontal(base, left, right, "grid"),
            _vertical(x(p50), base - height + 8, base, "median"),
            _text(left - 10, base - 12, name, "end"),
        ]
    marks += [_text(x(tick), bottom + 20, f"{tick:g}", "middle") for tick in ticks]
    marks.append(_text((left + right) / 2, bottom + 42, "milliseconds a call", "middle"))
    medians = ", ".join(f"{name} {short(p50)} ms" for name, _, p50 in rows)
    described = f"How the times of single calls are spread, one row each; the line is the median: {medians}."
    return _figure("spread", "Latency of single calls", described, bottom + 52, marks)


def layer_bars(costs: Sequence[LayerCost]) -> Markup:
    """Return the layers that cost most, in the order of the network, as bars of the KL that each gains."""
    most = sorted(costs, key=lambda cost: -cost.kl_gain)[:_BARS]
    shown = [cost for cost in costs if cost in most]
    left, right, height = 210.0, 640.0, 22.0
    bottom = 10 + height * len(shown)
    x, ticks = _linear([0.0, *(cost.kl_gain for cost in shown)], left, right)
    marks = [_vertical(x(tick), 10, bottom, "grid") for tick in ticks]
    for number, cost in enumerate(shown):
        y = 10 + height * number
        ends = sorted((x(0.0), x(cost.kl_gain)))
        bar = {"x": ends[0], "y": y + 4, "width": max(ends[1] - ends[0], 1.0), "height": height - 8}
        marks.append(element("rect", **bar, class_="area eager" if cost.kept else "area s0"))
        marks.append(_text(left - 10, y + 16, _cut(cost.name), "end"))
    marks += [_text(x(tick), bottom + 20, f"{tick:g}", "middle") for tick in ticks]
    marks.append(_text((left + right) / 2, bottom + 42, "KL gained if the layer stays float, nats", "middle"))
    worst = ", ".join(f"{cost.name} {cost.kl_gain:+.1e}" for cost in most[:3])
    described = f"The {len(shown)} layers that cost most, in the network's order. The most: {worst}."
    return _figure("layers", "What INT8 costs, layer by layer", described, bottom + 52, marks)


def _point(engine: EngineReport, number: int, *, labelled: bool) -> _Point:
    accuracy, latency = engine.accuracy, engine.latency
    if accuracy is None or latency is None:
        raise ValueError(f"{engine.key} was not measured")
    y = bound = 100 * accuracy.agreement
    if labelled and accuracy.drop is not None and accuracy.drop_upper is not None:
        y, bound = -100 * accuracy.drop, -100 * accuracy.drop_upper
    ends = (latency.speedup, latency.speedup_low, latency.speedup_high)
    return _Point(engine_name(*engine.key), number % _COLOURS, *ends, y, bound)


def _marks(point: _Point, x: Scale, y: Scale) -> list[Markup]:
    colour = f"s{point.colour}"
    return [
        _horizontal(y(point.y), x(point.low), x(point.high), f"whisker {colour}"),
        _vertical(x(point.x), y(point.y), y(point.bound), f"whisker {colour}"),
        _horizontal(y(point.bound), x(point.x) - 5, x(point.x) + 5, f"whisker {colour}"),
        element("circle", cx=x(point.x), cy=y(point.y), r=5, class_=f"dot {colour}"),
    ]


def _leaders(
    labels: Sequence[tuple[str, float, float, str]], column: float, top: float, bottom: float
) -> list[Markup]:
    """Write labels (name, x, y, class) one below the other in a column, each with a line to its point."""
    ordered = sorted(labels, key=lambda label: (label[2], -label[1]))
    height = _LINE * (len(ordered) - 1)
    at = max(min(sum(label[2] for label in ordered) / len(ordered) - height / 2, bottom - height), top)
    marks: list[Markup] = []
    for number, (name, x, y, colour) in enumerate(ordered):
        line = at + number * _LINE
        marks.append(element("path", d=f"M{x:.1f} {y:.1f}L{column - 6:.1f} {line:.1f}", class_="leader"))
        marks.append(element("circle", cx=column, cy=line, r=4, class_=f"dot {colour}"))
        marks.append(_text(column + 10, line + 4, name, "start"))
    return marks


def _outline(distribution: Distribution, x: Scale, base: float, height: float) -> str:
    """The steps of a histogram over a logarithmic axis as a path, the tallest of them `height`."""
    low, high = _span(distribution)
    bins = zip(distribution.bins, distribution.counts, strict=True)
    inside = [(a, b, count / math.log(b / a)) for (a, b), count in bins if low <= a and b <= high]
    tallest = max(density for _, _, density in inside)
    tops = [(a, b, base - height * density / tallest) for a, b, density in inside]
    steps = [f"L{x(a):.1f} {top:.1f}L{x(b):.1f} {top:.1f}" for a, b, top in tops]
    return f"M{x(low):.1f} {base:.1f}{''.join(steps)}L{x(high):.1f} {base:.1f}Z"


def _span(distribution: Distribution) -> tuple[float, float]:
    """The first and the last edge between which there are calls."""
    filled = [i for i, count in enumerate(distribution.counts) if count]
    return distribution.edges_ms[filled[0]], distribution.edges_ms[filled[-1] + 1]


def _linear(values: Sequence[float], start: float, end: float) -> tuple[Scale, list[float]]:
    """Return a scale from values with some room around them to pixels, and its round ticks."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5
    low, high = low - room, high + room
    rough = (high - low) / 5
    step = 10 ** math.floor(math.log10(rough))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= rough * 0.999)
    ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return lambda value: start + (value - low) / (high - low) * (end - start), [round(t, 12) for t in ticks]


def _logarithmic(low: float, high: float, start: float, end: float) -> tuple[Scale, list[float]]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    whole = math.log(high / low)
    inside: list[float] = []
    for factors in _LOGARITHMIC_TICKS:
        ticks = [float(f"{factor * 10.0**decade:.6g}") for decade in decades for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= _FEWEST_TICKS:
            break
    return lambda value: start + math.log(value / low) / whole * (end - start), inside


def _tick(value: float, ticks: Sequence[float]) -> str:
    """A tick with as many decimals as its neighbours need."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _cut(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"


def _figure(name: str, title: str, described: str, height: float, marks: Sequence[Markup]) -> Markup:
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", described, id=f"{name}-desc"),
        *marks,
        viewBox=f"0 0 {_WIDTH} {height:.0f}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def _horizontal(y: float, start: float, end: float, class_: str) -> Markup:
    return element("path", d=f"M{start:.1f} {y:.1f}H{end:.1f}", class_=class_)


def _vertical(x: float, start: float, end: float, class_: str) -> Markup:
    return element("path", d=f"M{x:.1f} {start:.1f}V{end:.1f}", class_=class_)


def _text(
    x: float, y: float, text: str, anchor: str, class_: str | None = None, *, turned: bool = False
) -> Markup:
    turn = f"rotate(-90 {x:g} {y:g})" if turned else None
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=class_, transform=turn)
