"""What this machine is, where results depend on it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from resedge.artifacts import sha256_json
from resedge.jetson import device
from resedge.jetson.device import Jetson

# Features that change which kernels run, and so the last bits of a result or its speed.
_FEATURES = frozenset(
    {
        "amx_bf16",
        "amx_int8",
        "avx2",
        "avx512_bf16",
        "avx512_fp16",
        "avx512_vnni",
        "avx512f",
        "avx_vnni",
        "fma",
    }
    | {"asimddp", "bf16", "i8mm", "sve"}
)
# Instructions that add 8-bit products in 32 bits; without them pairs saturate at 16.
_EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})


@dataclass(frozen=True)
class Machine:
    """A processor: its name, the features that matter, sorted, and the cores that may be used.

    `board` is empty but on a Jetson: its module and its L4T, for modules with one CPU have several GPUs.
    """

    processor: str
    features: tuple[str, ...]
    cores: int = 1
    board: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What keys a result that depends on the machine."""
        return sha256_json([self.processor, list(self.features), self.cores, *self.board])[:16]

    @property
    def saturates_pairs(self) -> bool:
        """Whether the CPU adds pairs of 8-bit products in 16 bits, where they can saturate."""
        return not _EXACT_INT8 & set(self.features)


def describe() -> Machine:
    """Return this machine."""
    found = parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return replace(found, cores=len(os.sched_getaffinity(0)), board=board_of(device.read()))


def board_of(jetson: Jetson | None) -> tuple[str, ...]:
    """Return what of a Jetson results depend on; its power mode changes times alone."""
    if jetson is None:
        return ()
    return (jetson.part or jetson.model or "unknown module", jetson.l4t or "unknown L4T")


def parse_cpuinfo(text: str) -> Machine:
    """Return the machine that a /proc/cpuinfo describes (x86 and Arm)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    names = ("model name", "cpu family", "model", "CPU implementer", "CPU part")
    identity = " ".join(fields[name] for name in names if fields.get(name))
    return Machine(identity or platform.machine(), tuple(sorted(_FEATURES & set(flags))))
