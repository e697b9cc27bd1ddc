from __future__ import annotations

import pytest

from resedge.errors import MachineFailure
from resedge.runtimes.trt_memory import plan_memory

GIB, MIB = 1 << 30, 1 << 20


@pytest.mark.parametrize(
    ("free", "total", "shared", "low"),
    [
        (60 * GIB, 64 * GIB, True, False),
        (6 * GIB, 7620 * MIB, True, True),
        (2 * GIB, 4 * GIB, True, True),
        (8 * GIB, 16 * GIB, True, False),
        (6 * GIB, 8 * GIB, False, False),
    ],
)
def test_small_boards_take_the_low_memory_way(free: int, total: int, shared: bool, low: bool) -> None:
    plan = plan_memory(free, total, 50 * MIB, shared=shared)
    assert plan.low is low
    assert 0 < plan.workspace_bytes < free
    more = plan_memory(free + GIB, total, 50 * MIB, shared=shared)
    assert more.workspace_bytes == plan.workspace_bytes + (GIB // 2 if low else GIB)


def test_too_little_memory_is_said_before_the_build() -> None:
    enough = plan_memory(GIB, 4 * GIB, 40 * MIB, shared=True)
    assert enough.low
    with pytest.raises(MachineFailure) as caught:
        plan_memory(900 * MIB, 4 * GIB, 40 * MIB, shared=True)
    assert caught.value.what.startswith(
        "900 MiB of memory are free, and building this plan takes about 992 MiB"
    )
    assert "swap" in caught.value.cure
