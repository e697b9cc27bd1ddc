"""Several claims in one run: what each has to be shown with, so that all of them together are trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

K = TypeVar("K")


def holm(claims: Mapping[K, Callable[[float], bool]], confidence: float) -> dict[K, float]:
    """Return the confidence that each claim has to be shown with, by Holm's step-down procedure.

    Of m claims one is shown at 1 - (1 - c) / m; what is shown leaves the rest, which is fewer, and so on. A
    wrong claim among those that are shown then happens with probability 1 - c at most, however they depend on
    one another. One claim alone is held to c itself.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65-70.

    Args:
        claims: Whether a claim is shown at a confidence; what is shown at one is shown at every lower one.
        confidence: c, in (0, 1).
    """
    left, held = dict(claims), {}
    while left:
        level = 1 - (1 - confidence) / len(left)
        shown = [name for name, is_shown in left.items() if is_shown(level)] or list(left)
        for name in shown:
            held[name] = level
            del left[name]
    return held
