"""Bounds of the drop against independent computations, and how many images a margin takes."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from resedge.benchmarks.bounds import drop_lower, drop_upper, images_needed, tango_upper

Z95 = 1.6448536269514722


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
