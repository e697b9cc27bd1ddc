"""Bounds of the drop in top-1 from paired counts, and how many images a margin takes.

Of n images, b are right in eager and wrong in the engine (negative flips), c the other way round
(positive flips); the drop is D = (b - c) / n. That a test finds no difference proves nothing, so what
an engine is certified by is the upper bound of D. The number of images is fixed before the first is looked
at: looking again and again until the bound fits certifies wrongly far more often than stated.
"""

from __future__ import annotations

import math

from resedge.benchmarks.distributions import binomial_upper, normal_quantile, root


def tango_upper(b: int, c: int, n: int, confidence: float) -> float:
    """Return the one-sided upper score bound of the drop D = (b - c) / n.

    It is the largest d that the score test does not reject; zero counts need no special case.
    Source: Tango 1998, Statistics in Medicine 17:891-908.

    Args:
        b: Negative flips.
        c: Positive flips.
        n: Images.
        confidence: In (0.5, 1).

    Raises:
        ValueError: The counts or the confidence are impossible.
    """
    if b < 0 or c < 0 or n < 1 or b + c > n:
        raise ValueError(f"{b} and {c} flips of {n} images are impossible")
    if not 0.5 < confidence < 1:
        raise ValueError(f"the confidence is {confidence}, expected one in (0.5, 1)")
    if b == n:
        return 1.0
    z = normal_quantile(confidence)

    def slack(d: float) -> float:
        """How far the score test at drop `d` is from rejecting; falls through 0 at the bound."""
        linear = -b - c + (2 * n - b + c) * d
        constant = -c * d * (1 - d)
        # The constrained maximum-likelihood estimate of the rate of positive flips.
        q = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
        return b - c - n * d + z * math.sqrt(max(n * (2 * q + d * (1 - d)), 0.0))

    # At the estimate itself the slack is positive, or a trivial zero where every image or none flipped.
    return root(slack, (b - c) / n + 1e-9, 1.0)


def drop_upper(b: int, c: int, n: int, confidence: float) -> float:
    """Return the upper bound of the drop by which an engine is certified.

    Tango's bound. With no positive flips it is Wilson's, which certifies wrongly up to 6.7 % of the
    time at a nominal 5 %, so there it is not let below the exact bound of the rate of negative flips
    (which bounds the drop): no flips at all certify 0.5 points from 598 images on, not from 539.
    """
    upper = tango_upper(b, c, n, confidence)
    return upper if c else max(upper, binomial_upper(b, n, confidence))


def drop_lower(b: int, c: int, n: int, confidence: float) -> float:
    """Return the one-sided lower bound of the drop: by symmetry the upper bound with b and c swapped."""
    return -drop_upper(c, b, n, confidence)


def images_needed(b: int, c: int, n: int, margin: float, confidence: float, power: float = 0.8) -> int | None:
    """Return how many images, in all, would settle whether the drop is within `margin`.

    (z_confidence + z_power)^2 (psi - D^2) / (margin - D)^2 with the rates that were seen, psi of flips
    and D of the drop, to which one flip each way is added (Bonett and Price 2012, J. Educ. Behav. Stat.
    37:479-488) because few flips tell little; and not fewer than certify with no flips at all. If the
    drop is beyond the margin, the same number shows that instead.

    Args:
        b: Negative flips.
        c: Positive flips.
        n: Images that they were seen in.
        margin: The drop that is allowed, in [0, 1).
        confidence: One-sided, in (0.5, 1).
        power: The probability of settling it.

    Returns:
        None if the drop equals the margin: no number settles that.
    """
    drop, flips = (b - c) / (n + 2), (b + c + 2) / (n + 2)
    if drop == margin:
        return None
    quantiles = normal_quantile(confidence) + normal_quantile(power)
    by_rates = quantiles**2 * (flips - drop**2) / (margin - drop) ** 2
    without_flips = math.log(1 - confidence) / math.log1p(-margin) if margin else 0.0
    return math.ceil(max(by_rates, without_flips))
