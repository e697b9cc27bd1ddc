"""How much memory a build may use, decided before it starts.

On a board with 4 or 8 GB the CPU and the GPU share it all, and a build that asks for more than is free ends
with the system killing processes, not with an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from resedge.errors import MachineFailure

_MIB: Final = 1 << 20
# What a build takes before it has tried a single kernel: CUDA's context and TensorRT's libraries.
_BASE_BYTES: Final = 768 * _MIB
# Of the graph's bytes: as it is parsed, optimised, tried out, and serialised.
_COPIES: Final = 4
_LEAST_WORKSPACE: Final = 64 * _MIB
_SMALL_BOARD_BYTES: Final = 8 << 30


@dataclass(frozen=True)
class MemoryPlan:
    """Limits of a build; `low` asks for the way of small boards: one kernel at a time, fewer candidates."""

    workspace_bytes: int
    low: bool


def plan_memory(free: int, total: int, graph: int, *, shared: bool) -> MemoryPlan:
    """Divide the memory that is free.

    Args:
        free: Bytes that a build can have.
        total: Bytes that the GPU has.
        graph: Bytes of the ONNX file.
        shared: Whether that memory is the CPU's too, as on a board.

    Raises:
        MachineFailure: There is too little for a build to end well.
    """
    spare = free - _BASE_BYTES - _COPIES * graph
    if spare < _LEAST_WORKSPACE:
        needed = free - spare + _LEAST_WORKSPACE
        raise MachineFailure(
            f"{free // _MIB} MiB of memory are free, and building this plan takes about "
            f"{needed // _MIB} MiB.",
            cure="Close other programs (on a Jetson the desktop too), or add swap, and build again.",
        )
    low = shared and total <= _SMALL_BOARD_BYTES
    return MemoryPlan(spare // 2 if low else spare, low)
