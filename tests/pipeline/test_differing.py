from __future__ import annotations

import numpy as np

from resedge.pipeline.differing import SHOWN, Differing, differences


def logits(classes: list[int]) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[classes]


def test_what_the_engine_loses_comes_first_then_what_it_wins() -> None:
    labels = np.array([0, 1, 2, 3, 0])
    eager, engine = logits([0, 0, 2, 1, 0]), logits([0, 1, 3, 2, 3])
    found = differences(eager, engine, labels)
    assert found.total == 4
    assert found.first == (Differing(2, 2, 3), Differing(4, 0, 3), Differing(1, 0, 1), Differing(3, 1, 2))


def test_without_labels_they_are_in_order() -> None:
    found = differences(logits([0, 0, 2]), logits([1, 0, 3]), None)
    assert found.first == (Differing(0, 0, 1), Differing(2, 2, 3))


def test_some_dozens_are_kept_and_all_are_counted() -> None:
    found = differences(logits([0] * 100), logits([1] * 100), None)
    assert (found.total, len(found.first)) == (100, SHOWN)


def test_equal_answers_differ_nowhere() -> None:
    assert differences(logits([1, 2]), logits([1, 2]), np.array([1, 2])).first == ()
