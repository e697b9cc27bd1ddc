from __future__ import annotations

import pytest

from resedge.pipeline.machine import Machine, describe, parse_cpuinfo

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
