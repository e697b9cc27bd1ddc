"""What `compare` counts and refuses."""

import numpy as np
import pytest

from resedge.artifacts import WorstClass
from resedge.benchmarks.accuracy import PairedCounts, compare, count_pairs
from resedge.benchmarks.bounds import drop_upper, tango_upper
from resedge.errors import InputRefused
from resedge.protocols import Float32Array, Int64Array


def one_hot(classes: list[int], of: int = 3) -> Float32Array:
    return np.eye(of, dtype=np.float32)[classes]


EAGER = one_hot([0, 1, 2, 0, 1, 2])
ENGINE = one_hot([0, 1, 1, 1, 2, 2])
LABELS: Int64Array = np.array([0, 2, 2, 0, 2, 2])  # right, wrong, lost, lost, won, right


# --- compare -------------------------------------------------------------------------------------


def test_pairs_are_counted() -> None:
    assert count_pairs(EAGER, ENGINE, LABELS) == PairedCounts(
        images=6, eager_right=4, engine_right=3, negative_flips=2, positive_flips=1
    )


def test_compare_with_labels() -> None:
    found = compare(EAGER, 3 * ENGINE, LABELS, 0.95)
    assert (found.images, found.negative_flips, found.positive_flips) == (6, 2, 1)
    assert (found.top1_eager, found.top1) == (4 / 6, 3 / 6)
    assert found.drop == 1 / 6
    assert found.agreement == 3 / 6
    assert found.max_abs_logit_error == 3.0
    assert found.drop_upper == tango_upper(2, 1, 6, 0.95)
    assert found.worst_class == WorstClass(
        0, 2, 0.5, max(drop_upper(1, 0, 2, 0.95), drop_upper(1, 1, 4, 0.975))
    )
    assert (found.top5, found.top5_eager, found.images_needed) == (None, None, None)


def test_compare_without_labels_knows_agreement_only() -> None:
    found = compare(EAGER, ENGINE, None, 0.95)
    assert (found.images, found.agreement, found.max_abs_logit_error) == (6, 0.5, 1.0)
    labelled = (found.top1, found.top1_eager, found.drop, found.drop_upper, found.worst_class)
    assert labelled == (None,) * 5
    assert found.kl is not None
    assert (found.negative_flips, found.positive_flips) == (None, None)


def test_the_largest_logit_error_does_not_overflow() -> None:
    huge = np.finfo(np.float32).max
    found = compare(np.array([[huge]]), np.array([[-huge]]), None, 0.95)
    assert found.max_abs_logit_error == 2 * float(huge)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whose", ["eager", "engine"])
def test_logits_that_are_no_numbers_are_refused(whose: str, value: float) -> None:
    logits = {"eager": EAGER.copy(), "engine": ENGINE.copy()}
    logits[whose][4, 1] = value
    with pytest.raises(InputRefused, match=rf"image 4: the logits of {whose} are NaN or infinite \(1 of 6"):
        compare(logits["eager"], logits["engine"], LABELS, 0.95)


@pytest.mark.parametrize(
    ("eager", "engine", "labels", "message"),
    [
        (EAGER, ENGINE[:5], LABELS, r"\(6, 3\) and the engine's \(5, 3\)"),
        (EAGER, one_hot([0] * 6, of=4), LABELS, r"\(6, 3\) and the engine's \(6, 4\)"),
        (EAGER[:0], ENGINE[:0], LABELS[:0], "not empty"),
        (EAGER[0], ENGINE[0], None, r"\(3,\)"),
        (EAGER, ENGINE, LABELS[:5], r"labels \(5,\) for 6 images"),
        (EAGER, ENGINE, np.array([0, 1, 2, 3, 0, 0]), "image 3: the label is 3, and the model has 3"),
        (EAGER, ENGINE, np.array([0, -1, 2, 0, 0, 0]), "image 1: the label is -1"),
    ],
)
def test_what_does_not_fit_is_refused(
    eager: Float32Array, engine: Float32Array, labels: Int64Array | None, message: str
) -> None:
    with pytest.raises(InputRefused, match=message):
        compare(eager, engine, labels, 0.95)
