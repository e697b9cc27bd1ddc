"""The power that a Jetson takes, from its rails, and the energy of an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from resedge.jetson.tegrastats import Rail

# Rails that the others are behind: of the module (Nano, TX, NX, Orin Nano), of the board (Thor).
_INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")
# The rails of AGX Xavier and AGX Orin, which stand beside one another.
_XAVIER = frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"})
_ORIN = frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"})
_ADD_UP = (_XAVIER, _ORIN, _ORIN | {"VDDQ_VDD2_1V8AO"})
SUM_RULE = "sum of the rails, as jtop does"


def total_rule(rails: Mapping[str, Rail]) -> str | None:
    """Return how the total power follows from these rails: an input rail's name, `SUM_RULE`, or None.

    jtop's rule (jetson_stats, jtop/core/power.py): an input rail is the total; without one the rails of an
    AGX module add up. That sum is not confirmed by NVIDIA: one rail may feed another. Of rails that are
    not known no total is made.
    """
    for name in _INPUTS:
        if name in rails:
            return name
    return SUM_RULE if rails.keys() in _ADD_UP else None


def total_watts(rails: Mapping[str, Rail]) -> float | None:
    """Return the total power at this moment, watts; None where the rails allow none (`total_rule`)."""
    rule = total_rule(rails)
    if rule is None:
        return None
    parts = rails.values() if rule == SUM_RULE else (rails[rule],)
    return sum(rail.current for rail in parts) / 1e3


def energy(points: Sequence[tuple[float, float]]) -> float:
    """Return the energy between the first and the last of (seconds, watts), joules, by trapezoids."""
    return sum(
        (later - earlier) * (before + after) / 2 for (earlier, before), (later, after) in pairwise(points)
    )
