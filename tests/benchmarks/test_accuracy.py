"""Bounds of the drop against independent computations, and what `compare` counts and refuses."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial

from resedge.benchmarks.accuracy import (
    PairedCounts,
    compare,
    count_pairs,
    drop_lower,
    drop_upper,
    images_needed,
    tango_upper,
)
from resedge.errors import InputRefused
from resedge.protocols import Float32Array, Int64Array

Z95 = 1.6448536269514722


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


def test_compare_without_labels_knows_agreement_only() -> None:
    found = compare(EAGER, ENGINE, None, 0.95)
    assert (found.images, found.agreement, found.max_abs_logit_error) == (6, 0.5, 1.0)
    labelled = (found.top1, found.top1_eager, found.drop, found.drop_upper)
    assert labelled == (None,) * 4
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


# --- Tango's bound -------------------------------------------------------------------------------


def score_test_is_passed(b: int, c: int, n: int, d: float) -> bool:
    """The score test of drop `d`, its nuisance rate by maximising the likelihood numerically."""

    def log_likelihood(q: float) -> float:
        cells = ((b, q + d), (c, q), (n - b - c, 1 - 2 * q - d))
        return sum(count * math.log(max(rate, 1e-300)) for count, rate in cells if count)

    low, high = max(0.0, -d), (1 - d) / 2
    best = minimize_scalar(
        lambda q: -log_likelihood(q), bounds=(low, high), method="bounded", options={"xatol": 1e-13}
    )
    q = max((low, float(best.x), high), key=log_likelihood)
    return (b - c - n * d) >= -Z95 * math.sqrt(n * (2 * q + d * (1 - d)))


@pytest.mark.parametrize(
    ("b", "c", "n"),
    [(11, 9, 10_000), (0, 5, 300), (5, 0, 300), (30, 2, 500), (2, 30, 500), (1, 0, 8), (4, 4, 8), (0, 9, 9)],
)
def test_tango_inverts_the_score_test(b: int, c: int, n: int) -> None:
    upper = tango_upper(b, c, n, 0.95)
    step = 1e-4 * (1 - upper) + 1e-6
    assert score_test_is_passed(b, c, n, upper - step)
    beyond = np.linspace(upper + step, 1 - 1e-9, 200)
    assert not any(score_test_is_passed(b, c, n, float(d)) for d in beyond)


@pytest.mark.parametrize(("b", "n"), [(0, 539), (3, 100), (50, 400)])
def test_tango_without_positive_flips_is_wilson(b: int, n: int) -> None:
    rate, z2 = b / n, Z95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    assert tango_upper(b, 0, n, 0.95) == pytest.approx(centre + half, abs=1e-9)


def test_tango_where_every_image_flipped() -> None:
    assert tango_upper(9, 0, 9, 0.95) == 1.0
    assert -1 < tango_upper(0, 9, 9, 0.95) < 0


@pytest.mark.parametrize(
    ("b", "c", "n", "confidence"), [(-1, 0, 5, 0.95), (3, 3, 5, 0.95), (0, 0, 0, 0.95), (1, 1, 5, 0.5)]
)
def test_tango_refuses_the_impossible(b: int, c: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"impossible|confidence"):
        tango_upper(b, c, n, confidence)


# --- the certificate -----------------------------------------------------------------------------


def test_no_flips_certify_half_a_point_from_598_images_on() -> None:
    assert drop_upper(0, 0, 597, 0.95) > 0.005 > drop_upper(0, 0, 598, 0.95)
    assert drop_upper(0, 0, 298, 0.95) > 0.010 > drop_upper(0, 0, 299, 0.95)


def test_with_positive_flips_the_certificate_is_tangos() -> None:
    assert drop_upper(11, 9, 10_000, 0.95) == tango_upper(11, 9, 10_000, 0.95)


def test_the_lower_bound_mirrors_the_upper() -> None:
    assert drop_lower(30, 10, 1000, 0.95) == -drop_upper(10, 30, 1000, 0.95)
    assert drop_lower(30, 10, 1000, 0.95) < 0.02 < drop_upper(30, 10, 1000, 0.95)


@pytest.mark.parametrize(
    ("images", "flip_rate", "margin"),
    [(1000, 0.02, 0.01), (500, 0.03, 0.01), (2000, 0.006, 0.005), (539, 0.005, 0.005), (598, 0.005, 0.005)],
)
def test_false_certificates_by_exact_enumeration(images: int, flip_rate: float, margin: float) -> None:
    """An engine whose true drop is the margin itself is certified in at most 5.5 % of all tests."""
    negative, positive = (flip_rate + margin) / 2, (flip_rate - margin) / 2
    most = round(images * flip_rate + 6 * math.sqrt(images * flip_rate) + 6)
    grid = [(b, c, images - b - c) for b in range(most) for c in range(most)]
    chances = multinomial.pmf(grid, images, [negative, positive, 1 - flip_rate])
    assert chances.sum() > 0.999999
    certified = [
        chance
        for (b, c, _), chance in zip(grid, chances, strict=True)
        if chance > 1e-9 and drop_upper(b, c, images, 0.95) <= margin
    ]
    assert sum(certified) < 0.055
    if (images, flip_rate) == (1000, 0.02):  # and not by certifying nothing
        assert sum(certified) > 0.04


# --- images needed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flip_rate", "drop", "margin", "power", "expected"),
    [
        (0.01, 0.0, 0.005, 0.8, 2_474),
        (0.03, 0.001, 0.005, 0.8, 11_592),
        (0.05, 0.003, 0.010, 0.8, 6_308),
        (0.005, 0.0, 0.005, 0.9, 1_713),
        (0.0, 0.0, 0.005, 0.8, 598),
    ],
)
def test_images_needed_at_known_rates(
    flip_rate: float, drop: float, margin: float, power: float, expected: int
) -> None:
    n = 10_000_000
    b, c = round(n * (flip_rate + drop) / 2), round(n * (flip_rate - drop) / 2)
    assert images_needed(b, c, n, margin, 0.95, power) == pytest.approx(expected, abs=1.5)


def test_an_undecided_test_needs_more_images_than_it_had() -> None:
    seen = [(0, 0), (1, 0), (2, 1), (0, 2), (5, 1), (30, 25)]
    undecided = [
        (b, c, n)
        for n in (60, 100, 500, 590, 1000, 5000)
        for b, c in seen
        if drop_lower(b, c, n, 0.95) <= 0.005 < drop_upper(b, c, n, 0.95)
    ]
    assert len(undecided) > 20
    for b, c, n in undecided:
        needed = images_needed(b, c, n, 0.005, 0.95)
        assert needed is not None, (b, c, n)
        assert needed > n, (b, c, n)


def test_no_number_of_images_settles_a_drop_on_the_margin() -> None:
    assert images_needed(0, 0, 10, 0.0, 0.95) is None
    assert images_needed(6, 2, 998, 0.004, 0.95) is None
