"""Holm's procedure against his definition by p-values."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from resedge.benchmarks.multiplicity import holm


def is_shown(p_value: float, confidence: float) -> bool:
    return p_value <= 1 - confidence


def shown_by_p_values(p_values: list[float], risk: float) -> set[int]:
    """Holm's definition: in the order of the p-values, up to the first above risk / (how many are left)."""
    shown: set[int] = set()
    for rank, claim in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[claim] > risk / (len(p_values) - rank):
            break
        shown.add(int(claim))
    return shown


@pytest.mark.parametrize("seed", range(40))
def test_what_is_shown_is_what_p_values_show(seed: int) -> None:
    p_values = list(np.random.default_rng(seed).uniform(0, 0.08, size=5))
    held_to = holm({i: partial(is_shown, p) for i, p in enumerate(p_values)}, 0.95)
    shown = {i for i, level in held_to.items() if p_values[i] <= 1 - level}
    assert shown == shown_by_p_values(p_values, 0.05)


def test_one_claim_is_held_to_the_confidence_itself() -> None:
    assert holm({"a": lambda level: False}, 0.95) == {"a": pytest.approx(0.95)}


def test_what_is_shown_leaves_the_rest_fewer() -> None:
    claims = {"sure": lambda level: True, "open": lambda level: False, "too": lambda level: False}
    assert holm(claims, 0.95) == {
        "sure": pytest.approx(1 - 0.05 / 3),
        "open": pytest.approx(0.975),
        "too": pytest.approx(0.975),
    }
