from __future__ import annotations

from dataclasses import replace

import pytest

from resedge.jetson.device import Jetson, PowerMode
from resedge.machine import Machine, board_of, describe, parse_cpuinfo

X86 = """processor\t: 0
model name\t: AMD EPYC
cpu family\t: 26
model\t\t: 2
flags\t\t: fpu sse2 fma avx2 avx512f avx512_vnni avx512_bf16

processor\t: 1
model name\t: another
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""


def test_an_x86_processor() -> None:
    expected = ("avx2", "avx512_bf16", "avx512_vnni", "avx512f", "fma")
    assert parse_cpuinfo(X86) == Machine("AMD EPYC 26 2", expected)


def test_an_arm_processor() -> None:
    assert parse_cpuinfo(ARM) == Machine("0x41 0xd42", ("asimddp", "bf16", "i8mm"))


@pytest.mark.parametrize(
    ("feature", "saturates"),
    [("avx512_vnni", False), ("avx_vnni", False), ("amx_int8", False), ("asimddp", False), ("avx2", True)],
)
def test_who_adds_pairs_of_products_in_16_bits(feature: str, saturates: bool) -> None:
    assert parse_cpuinfo(f"flags : fma {feature}").saturates_pairs is saturates


def test_the_digest_follows_processor_and_features() -> None:
    digests = {parse_cpuinfo(text).digest for text in (X86, ARM, X86.replace("avx512_vnni", ""))}
    assert len(digests) == 3


def test_this_machine_is_described() -> None:
    assert describe().processor


def jetson(part: str | None, l4t: str | None, mode: int = 0) -> Jetson:
    power_mode = PowerMode(mode, None)
    return Jetson("NVIDIA Jetson", part, "tegra234", l4t, None, None, power_mode, (), None)


def test_the_digest_tells_modules_and_their_software_apart_but_no_power_modes() -> None:
    devices = [
        None,
        jetson("p3767-0000", "36.4.3"),
        jetson("p3767-0001", "36.4.3"),
        jetson("p3767-0000", "39.2.0"),
        jetson("p3767-0000", "36.4.3", mode=2),
        jetson(None, None),
    ]
    digests = [replace(parse_cpuinfo(ARM), board=board_of(device)).digest for device in devices]
    assert digests[0] == parse_cpuinfo(ARM).digest
    assert digests[1] == digests[4]
    assert len(set(digests)) == 5
