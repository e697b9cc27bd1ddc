"""Which layers cost accuracy in INT8, and the fewest that must stay float for a budget to hold.

Everything here is judged on the tuning images, by point estimates: a search that looked at a bound, or at
test images, would wear it out. What the search finds is certified afterwards, once, on images that it has
not seen.
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
    found: Sequence[Sensitivity], base: Score, score: Scorer, max_drop: float, always: frozenset[str]
) -> Search:
    """Keep layers float, by gain for their cost, until the drop is within the budget; take idle ones back.

    The gain is in KL, the cost in multiply-accumulates: both are the same on every machine, so that a
    bundle does not depend on how busy the one was that made it. A second pass takes each kept layer back,
    the costliest first, where the budget holds without it.

    Args:
        found: The layers' sensitivities.
        base: The score with only `always` kept.
        score: Called for each trial, on all tuning images.
        max_drop: A fraction.
        always: Kept whatever the budget.

    Returns:
        `met` is false where the layers that help, up to half of the multiply-accumulates, do not help
        enough; then only `always` is kept.
    """
    shares = {layer.name: layer.share for layer in found}

    def trial(kept: frozenset[str], known: Score | None = None) -> Trial:
        share = sum(shares.get(name, 0.0) for name in sorted(kept))
        return Trial(tuple(sorted(kept)), share, known or score(kept))

    trials = [trial(always, base)]
    by_worth = sorted(
        (layer for layer in found if layer.kl_gain > 0 and layer.name not in always),
        key=lambda layer: -layer.kl_gain / layer.share,
    )
    kept = always
    for layer in by_worth:
        if trials[-1].score.drop <= max_drop:
            break
        if sum(shares.get(name, 0.0) for name in sorted(kept | {layer.name})) > MOST_KEPT:
            continue
        kept |= {layer.name}
        trials.append(trial(kept))
    if trials[-1].score.drop > max_drop:
        return Search(tuple(sorted(always)), False, tuple(trials))
    for name in sorted(kept - always, key=lambda name: (-shares[name], name)):
        without = trial(kept - {name})
        trials.append(without)
        if without.score.drop <= max_drop:
            kept -= {name}
    return Search(tuple(sorted(kept)), True, tuple(trials))


def frontier(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the trials that no other beats in drop without leaving more work float, the cheapest first."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.share, trial.score.drop, trial.kept)):
        if not found or trial.score.drop < found[-1].score.drop:
            found.append(trial)
    return tuple(found)
