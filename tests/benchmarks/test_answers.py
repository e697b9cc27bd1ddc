"""Top-5, divergence and the worst class against counting by hand."""

import math

import numpy as np
import pytest

from resedge.benchmarks.answers import mean_divergence, top5, worst_class
from resedge.benchmarks.bounds import drop_upper


def test_top5_counts_labels_among_the_five_largest() -> None:
    logits = np.tile(np.arange(10, dtype=np.float32), (10, 1))
    assert top5(logits, np.arange(10)) == 0.5


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    logits = np.zeros((10, 12), np.float32)
    assert top5(logits, np.arange(10)) == 0.5
    assert int(logits.argmax(axis=1)[0]) == 0  # as the best class is chosen


def test_top5_of_nine_classes_is_not_asked_for() -> None:
    assert top5(np.zeros((3, 9), np.float32), np.zeros(3, np.int64)) is None


def test_divergence_by_hand() -> None:
    eager = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
    engine = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32))
    expected = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    assert mean_divergence(eager, engine + 7) == pytest.approx(expected, abs=1e-7)
    assert mean_divergence(eager, eager) == 0.0


def test_divergence_of_logits_too_large_for_exp() -> None:
    assert mean_divergence(np.array([[1e4, 0]], np.float32), np.array([[0, 0]], np.float32)) == pytest.approx(
        math.log(2)
    )


def test_the_worst_class_is_that_with_the_largest_drop() -> None:
    labels = np.repeat([2, 5, 7], [100, 50, 200])
    eager, engine = np.ones(350, bool), np.ones(350, bool)
    engine[:3] = False  # 3 of 100
    engine[100:104] = False  # 4 of 50
    eager[150:160] = False  # 10 of 200 won
    found = worst_class(eager, engine, labels, 0.95)
    assert (found.number, found.images, found.drop) == (5, 50, 0.08)
    bounds = (
        drop_upper(0, 10, 200, 1 - 0.05 / 3),
        drop_upper(3, 0, 100, 1 - 0.05 / 2),
        drop_upper(4, 0, 50, 0.95),
    )
    assert found.drop_upper == max(bounds)


def test_the_bound_of_one_class_alone_is_not_corrected() -> None:
    labels = np.zeros(100, np.int64)
    engine = np.arange(100) >= 4
    assert worst_class(np.ones(100, bool), engine, labels, 0.95).drop_upper == drop_upper(4, 0, 100, 0.95)


def test_the_bound_covers_the_worst_of_many_classes() -> None:
    """Ten classes with one drop: in 300 tests the bound is below it in no more than 5 %, and chance."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 200)
    covered = 0
    for _ in range(300):
        kinds = generator.choice(3, size=2000, p=[0.04, 0.02, 0.94])
        covered += worst_class(kinds != 1, kinds != 0, labels, 0.95).drop_upper >= 0.02
    assert covered >= 285 - 8
