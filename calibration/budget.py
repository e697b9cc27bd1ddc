"""Which layers cost accuracy in INT8, and the fewest that must stay float for a budget to hold.

Everything here is judged on the tuning images, by what they estimate: a search that looked at test images
would wear their certificate out. What it finds is certified afterwards, once, on images that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from resedge.calibration.bakeoff import Score
from resedge.calibration.layers import Layer

MOST_KEPT: Final = 0.5  # of the multiply-accumulates; beyond that INT8 is not worth its trouble

Scorer = Callable[[frozenset[str]], Score]
"""Scores the quantised graph in which the layers of these names stay float."""

Goal = Callable[[Score], bool]
"""Says whether a score is good enough."""


@dataclass(frozen=True)
class Sensitivity:
    """What one layer costs.

    `share` is its fraction of the network's multiply-accumulates. `kl_gain` (nats) and
    `agreement_gain` are what the scores gain when this layer alone stays float; both can be
    negative. `sqnr` is its output's signal to quantisation noise ratio in dB, None where it was not
    measured.
    """

    name: str
    module: str
    share: float
    kl_gain: float
    agreement_gain: float
    sqnr: float | None


@dataclass(frozen=True)
class Trial:
    """A set of layers that stay float, their fraction of the multiply-accumulates, and the score."""

    kept: tuple[str, ...]
    share: float
    score: Score


@dataclass(frozen=True)
class Search:
    """How a budget was met, or not: the layers kept, and every trial on the way, the first keeping none."""

    kept: tuple[str, ...]
    met: bool
    trials: tuple[Trial, ...]


def sensitivities(
    layers: Sequence[Layer], base: Score, score: Scorer, sqnr: dict[str, float]
) -> tuple[Sensitivity, ...]:
    """Return what each layer costs, in the graph's order.

    Args:
        layers: All that are quantised.
        base: The score with all of them quantised, on the images that `score` uses.
        score: Called once a layer.
        sqnr: In dB, by the layer's name.
    """
    total = sum(layer.macs for layer in layers)

    def of(layer: Layer) -> Sensitivity:
        alone = score(frozenset({layer.name}))
        return Sensitivity(
            layer.name,
            layer.module,
            layer.macs / total,
            base.kl - alone.kl,
            alone.agreement - base.agreement,
            sqnr.get(layer.name),
        )

    return tuple(of(layer) for layer in layers)


def search(
    found: Sequence[Sensitivity], base: Score, score: Scorer, goal: Goal, always: frozenset[str]
) -> Search:
    """Keep the fewest layers float, by gain for their cost, with which the goal is met; take idle ones back.

    The gain is in KL, the cost in multiply-accumulates: both are the same on every machine, so that a
    bundle does not depend on how busy the one was that made it. The number of layers is doubled until the
    goal is met and then halved in between. A last pass takes each kept layer back, the costliest first, where
    the goal is met without it.

    Args:
        found: The layers' sensitivities.
        base: The score with only `always` kept.
        score: Called for each trial, on all tuning images.
        goal: What a score must meet.
        always: Kept whatever the budget.

    Returns:
        `met` is false where the layers that help, up to half of the multiply-accumulates, do not help
        enough; then only `always` is kept.
    """
    shares = {layer.name: layer.share for layer in found}
    scores = {always: base}

    def is_met(kept: frozenset[str]) -> bool:
        if kept not in scores:
            scores[kept] = score(kept)
        return goal(scores[kept])

    kept = _fewest(_by_worth(found, always), always, is_met)
    if kept is not None:
        for name in sorted(kept - always, key=lambda name: (-shares[name], name)):
            if is_met(kept - {name}):
                kept -= {name}
    trials = tuple(
        Trial(tuple(sorted(tried)), sum(shares.get(name, 0.0) for name in sorted(tried)), seen)
        for tried, seen in scores.items()
    )
    return Search(tuple(sorted(always if kept is None else kept)), kept is not None, trials)


def _by_worth(found: Sequence[Sensitivity], always: frozenset[str]) -> list[str]:
    """Return the layers that help, the most for its cost first, as many as half of the work allows."""
    helpful = (layer for layer in found if layer.kl_gain > 0 and layer.name not in always)
    taken = sum(layer.share for layer in found if layer.name in always)
    names = []
    for layer in sorted(helpful, key=lambda layer: -layer.kl_gain / layer.share):
        if taken + layer.share <= MOST_KEPT:
            names.append(layer.name)
            taken += layer.share
    return names


def _fewest(
    names: Sequence[str], always: frozenset[str], is_met: Callable[[frozenset[str]], bool]
) -> frozenset[str] | None:
    """Return `always` with the fewest of the first names that meet the goal; None if not even all do."""

    def first(count: int) -> frozenset[str]:
        return always.union(names[:count])

    if is_met(always):
        return always
    too_few, count = 0, 1
    while too_few < len(names) and not is_met(first(count)):
        too_few, count = min(count, len(names)), min(2 * count, len(names))
    if too_few == len(names):
        return None
    while count - too_few > 1:
        middle = (too_few + count) // 2
        too_few, count = (too_few, middle) if is_met(first(middle)) else (middle, count)
    return first(count)


def frontier(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the trials that no other beats in drop without leaving more work float, the cheapest first."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.share, trial.score.drop, trial.kept)):
        if not found or trial.score.drop < found[-1].score.drop:
            found.append(trial)
    return tuple(found)
