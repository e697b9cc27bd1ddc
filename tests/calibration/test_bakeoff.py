from __future__ import annotations

import math

import numpy as np
import pytest

from resedge.calibration.bakeoff import BakeOff, Entry, Score, choose, run_off, score_logits
from resedge.errors import InputRefused
from resedge.protocols import Float32Array


def _score(agreement: float, kl: float, images: int = 1000) -> Score:
    return Score(agreement, kl, drop=0.0, images=images)


@pytest.mark.parametrize(
    ("scores", "winner"),
    [
        ({"a": (0.90, 0.1), "b": (0.95, 0.7)}, "b"),  # 100 images differ against 50: no chance
        ({"a": (0.90, 0.3), "b": (0.90, 0.1), "c": (0.8, 0.0)}, "b"),
        ({"a": (0.90, 0.1), "b": (0.90, 0.1)}, "a"),
        ({"a": (0.991, 0.3), "b": (0.989, 0.1)}, "b"),  # 9 against 11: within the square root of 9
        ({"a": (0.991, 0.3), "b": (0.987, 0.1)}, "a"),  # 9 against 13: not
        ({"a": (1.0, 0.3), "b": (0.999, 0.1)}, "b"),  # none against one
    ],
)
def test_fewest_disagreements_up_to_chance_then_divergence_then_order(
    scores: dict[str, tuple[float, float]], winner: str
) -> None:
    result = choose({name: _score(*score) for name, score in scores.items()})
    assert result == BakeOff(winner, tuple(Entry(n, _score(*s)) for n, s in scores.items()))
    assert result.best == _score(*scores[winner])


def test_the_best_two_of_a_screening_are_told_apart_on_more_images() -> None:
    few = {name: _score(1.0, kl, images=32) for name, kl in {"a": 0.3, "b": 0.1, "c": 0.9, "d": 0.2}.items()}
    many = {"b": _score(0.9, 0.4), "d": _score(0.95, 0.1)}
    asked: list[str] = []

    def score(name: str) -> Score:
        asked.append(name)
        return many[name]

    result = run_off(choose(few), score)
    assert asked == ["b", "d"]
    assert result == BakeOff("d", tuple(Entry(name, (few | many)[name]) for name in few))


def test_one_candidate_is_its_own_run_off() -> None:
    result = run_off(choose({"a": _score(1.0, 0.1, images=32)}), lambda _: _score(0.9, 0.2))
    assert result == BakeOff("a", (Entry("a", _score(0.9, 0.2)),))


def test_a_bake_off_needs_candidates() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        choose({})


def test_scores_are_those_of_the_definition() -> None:
    eager = np.array([[0, math.log(3)], [1000, 0]], np.float32)  # softmax (1/4, 3/4) and (1, 0)
    quantised = np.array([[0, 0], [999, 0]], np.float32)
    score = score_logits(eager, quantised)
    first = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert score.kl == pytest.approx(first / 2, rel=1e-6)
    assert score.agreement == 0.5
    assert score_logits(eager, eager) == Score(1.0, 0.0, 0.0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    good = np.ones((2, 3), np.float32)
    with pytest.raises(InputRefused, match="the quantised model"):
        score_logits(good, good * np.float32(bad))


@pytest.mark.parametrize("other", [np.ones((2, 4)), np.ones((0, 3)), np.ones(3)])
def test_logits_of_another_shape_are_refused(other: Float32Array) -> None:
    with pytest.raises(ValueError, match="logits are"):
        score_logits(other, np.ones((2, 3), np.float32))
