"""Lines as they were published from devices, and any other text."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resedge.errors import InputRefused
from resedge.jetson.power import SUM_RULE, energy, total_rule, total_watts
from resedge.jetson.tegrastats import Load, Rail, TegraSample, Usage, parse

AGX_ORIN_JP5 = (
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) "
    "CPU [0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C "
    "SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C tj@42.593C SOC1@40.468C CV2@-256C "
    "VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
AGX_ORIN_JP6 = (
    "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) "
    "CPU [14%@2188,5%@2112,8%@2035,14%@2201,46%@1267,47%@1267,2%@1267,10%@1267,"
    "4%@1036,5%@1036,6%@1036,10%@1036] EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] "
    "NVENC 79%@166 NVDEC off NVJPG off NVJPG1 off VIC 36%@115 OFA off "
    "NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.562C soc2@48.437C soc0@49.093C tj@52.562C "
    "soc1@49.656C VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV 1607mW/1607mW VIN_SYS_5V0 4707mW/4707mW"
)
ORIN_NANO_JP6 = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) "
    "CPU [15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off "
    "NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C gpu@53.343C "
    "tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
AGX_ORIN_JP7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) "
    "CPU [23%@2201,10%@2201,4%@2201,14%@2201,30%@2201,18%@2201,10%@2201,10%@2201,"
    "33%@2201,7%@2201,5%@2201,27%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] "
    "NVENC0 off NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off "
    "NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.968C/52.968C soc2@48.406C/48.406C "
    "soc0@49.531C/49.531C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW "
    "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
# The next two were published with gaps, and are read with them.
AGX_XAVIER_JP4 = (
    "… EMC_FREQ 0% GR3D_FREQ 12% AO@26.5C GPU@28C … thermal@27.45C Tboard@27C GPU 1155/1155 CPU 385/385 "
    "SOC 2504/2503 CV 0/0 VDDRQ 192/192 SYS5V 2692/2692"
)
NANO_JP4 = (
    "RAM 330/3964MB (lfb 758x4MB) SWAP 0/1982MB (cached 0MB) CPU [..%@102,…] EMC_FREQ 0% GR3D_FREQ 5% "
    "PLL@20.5C CPU@23C PMIC@100C GPU@22.5C AO@27C thermal@22.5C POM_5V_IN 933/933 POM_5V_GPU 0/0 "
    "POM_5V_CPU 84/84"
)
LINES = {
    "agx-orin-jp5": AGX_ORIN_JP5,
    "agx-orin-jp6": AGX_ORIN_JP6,
    "orin-nano-jp6": ORIN_NANO_JP6,
    "agx-orin-jp7": AGX_ORIN_JP7,
    "agx-xavier-jp4": AGX_XAVIER_JP4,
    "nano-jp4": NANO_JP4,
}


def test_agx_orin_with_jetpack_5_whose_gpu_is_off() -> None:
    assert parse(AGX_ORIN_JP5) == TegraSample(
        time=datetime(2023, 4, 24, 0, 1, 24),
        ram=Usage(1282, 62795),
        swap=Usage(0, 31398),
        cores=(Load(0, (729,)),) * 12,
        gpu=Load(0, (0, 0)),
        emc=Load(0, (2133,)),
        temperatures={
            "CPU": 42.593,
            "Tboard": 32.0,
            "SOC2": 39.343,
            "Tdiode": 33.25,
            "SOC0": 39.375,
            "tj": 42.593,
            "SOC1": 40.468,
        },
        rails={
            "VDD_GPU_SOC": Rail(2399, 2399),
            "VDD_CPU_CV": Rail(400, 400),
            "VIN_SYS_5V0": Rail(4032, 4032),
            "VDDQ_VDD2_1V8AO": Rail(301, 301),
        },
    )


def test_agx_orin_with_jetpack_6() -> None:
    sample = parse(AGX_ORIN_JP6)
    assert sample.time == datetime(2026, 5, 9, 18, 42, 6)
    assert (sample.ram, sample.swap) == (Usage(18207, 62841), Usage(86, 31420))
    assert sample.cores[:2] == (Load(14, (2188,)), Load(5, (2112,)))
    assert (sample.gpu, sample.emc) == (Load(0, (0, 0)), Load(3, (2133,)))
    assert list(sample.temperatures) == ["cpu", "soc2", "soc0", "tj", "soc1"]
    assert sample.rails["VIN_SYS_5V0"] == Rail(4707, 4707)


def test_orin_nano_with_jetpack_6() -> None:
    sample = parse(ORIN_NANO_JP6)
    assert (sample.ram, len(sample.cores), sample.gpu) == (Usage(6185, 7620), 6, Load(63, (621,)))
    assert sample.temperatures["gpu"] == 53.343
    assert list(sample.rails) == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]


def test_agx_orin_with_jetpack_7_gives_each_rail_three_times() -> None:
    sample = parse(AGX_ORIN_JP7)
    assert (sample.swap, sample.gpu) == (None, Load(12, (1300, 1300)))
    assert sample.temperatures == {"cpu": 52.968, "soc2": 48.406, "soc0": 49.531, "gpu": 47.625}
    assert sample.rails["VDD_GPU_SOC"] == Rail(5139, 5139)


def test_agx_xavier_gives_no_units_and_names_rails_like_sensors() -> None:
    sample = parse(AGX_XAVIER_JP4)
    assert (sample.time, sample.ram, sample.cores) == (None, None, ())
    assert (sample.gpu, sample.emc) == (Load(12), Load(0))
    assert sample.temperatures == {"AO": 26.5, "GPU": 28.0, "thermal": 27.45, "Tboard": 27.0}
    assert sample.rails["SOC"] == Rail(2504, 2503)
    assert len(sample.rails) == 6


def test_nano_with_jetpack_4() -> None:
    sample = parse(NANO_JP4)
    assert (sample.ram, sample.cores, sample.gpu) == (Usage(330, 3964), (Load(None),) * 2, Load(5))
    assert sample.rails["POM_5V_IN"] == Rail(933, 933)


@pytest.mark.parametrize(
    ("line", "gpu"),
    [
        ("GR3D_FREQ 12%", Load(12)),
        ("GR3D_FREQ 12%@1300", Load(12, (1300,))),
        ("GR3D_FREQ 12%@[1300,1300]", Load(12, (1300, 1300))),
        ("GR3D_FREQ @[1000,1000,1000]", Load(None, (1000, 1000, 1000))),
        ("GR3D_FREQ 5%@300 GR3D2_FREQ 5%@600", Load(5, (300, 600))),
        ("GR3D_FREQ off RAM 1/2MB", None),
    ],
)
def test_the_forms_of_a_gpus_load(line: str, gpu: Load | None) -> None:
    assert parse(line).gpu == gpu


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ("[3%@1904,off,off]", (Load(3, (1904,)), None, None)),
        ("[1%,off,2%]@2601", (Load(1, (2601,)), None, Load(2, (2601,)))),
    ],
)
def test_cores_can_be_off_and_share_a_clock(cores: str, expected: tuple[Load | None, ...]) -> None:
    assert parse(f"RAM 1/2MB (lfb 1x512kB) CPU {cores} APE 150").cores == expected


@pytest.mark.parametrize("line", ["", "no such command", "RAM much/more MB", "99-99-9999 99:99:99"])
def test_what_is_no_line_of_tegrastats_is_refused(line: str) -> None:
    with pytest.raises(InputRefused, match="no line of tegrastats"):
        parse(line)


PIECES = st.one_of(
    st.text(),
    st.sampled_from([word for line in LINES.values() for word in line.split()]),
    st.integers().map(lambda number: f"VDD_IN {number}mW/{number}mW"),
    st.integers(0, 5000).map(lambda digits: f"RAM {'9' * digits}/1MB"),
    st.text("0123456789%@[],of .", max_size=30).map(lambda text: f"CPU [{text}] GR3D_FREQ {text}"),
)


@given(st.lists(PIECES).map(" ".join))
def test_any_text_is_a_sample_or_is_refused(text: str) -> None:
    try:
        sample = parse(text)
    except InputRefused:
        return
    assert isinstance(sample, TegraSample)
    assert -256.0 not in sample.temperatures.values()


# --- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule", "watts"),
    [
        ("agx-orin-jp5", SUM_RULE, 7.132),
        ("agx-orin-jp6", SUM_RULE, 8.726),
        ("orin-nano-jp6", "VDD_IN", 12.479),
        ("agx-orin-jp7", SUM_RULE, 13.907),
        ("agx-xavier-jp4", SUM_RULE, 6.928),
        ("nano-jp4", "POM_5V_IN", 0.933),
    ],
)
def test_the_total_power_of_every_line(name: str, rule: str, watts: float) -> None:
    rails = parse(LINES[name]).rails
    assert total_rule(rails) == rule
    assert total_watts(rails) == pytest.approx(watts)


@pytest.mark.parametrize("names", [(), ("VDD_GPU_SOC",), ("GPU", "CPU"), ("VDD_NEW",)])
def test_rails_that_are_not_a_known_set_allow_no_total(names: tuple[str, ...]) -> None:
    assert total_watts({name: Rail(1000, 1000) for name in names}) is None


def test_thors_input_is_its_total() -> None:
    line = "VDD_GPU 6330mW/6330mW/6330mW VIN 28906mW/14453mW/28906mW"
    assert total_watts(parse(line).rails) == 28.906


@pytest.mark.parametrize(
    ("points", "joules"),
    [([], 0.0), ([(5.0, 9.0)], 0.0), ([(0.0, 2.0), (1.0, 4.0), (3.0, 4.0)], 11.0)],
)
def test_energy_is_summed_by_trapezoids(points: list[tuple[float, float]], joules: float) -> None:
    assert energy(points) == joules
