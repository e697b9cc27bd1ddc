from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from resedge.artifacts import decode, encode
from resedge.benchmarks.telemetry import Energy, energy_between, settings, summary, sustained
from resedge.jetson.device import Clock, Jetson, PowerMode
from resedge.jetson.power import SUM_RULE
from resedge.jetson.recording import Reading, Recording
from resedge.jetson.tegrastats import parse

ORIN = "VDD_GPU_SOC {}mW/1mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 600mW/600mW"


def readings(*points: tuple[float, str]) -> list[Reading]:
    return [Reading(seconds, parse(line)) for seconds, line in points]


def test_energy_lies_between_the_first_and_the_last_reading() -> None:
    ends = [10.0 + 0.1 * number for number in range(31)]  # ten images a second, from 10 s to 13 s
    rails = readings((10.55, "VDD_IN 4000mW/1mW"), (11.05, "VDD_IN 8000mW/1mW"), (12.55, "VDD_IN 8000mW/1mW"))
    found = energy_between(ends, rails)
    assert (found.readings, found.rule) == (3, "VDD_IN")
    assert found.seconds == pytest.approx(2.0)
    assert found.images == pytest.approx(20.0)
    assert found.joules_per_image == pytest.approx((0.5 * 6 + 1.5 * 8) / 20)
    assert found.watts == pytest.approx(7.5)
    assert found.rails == {"VDD_IN": pytest.approx(20 / 3)}


def test_the_rails_of_an_agx_module_are_summed_and_told() -> None:
    found = energy_between([0.0, 1.0, 2.0], readings((0.0, ORIN.format(1000)), (2.0, ORIN.format(3000))))
    assert found.rule == SUM_RULE
    assert found.watts == pytest.approx(3.0)
    assert found.rails == {"VDD_GPU_SOC": 2.0, "VDD_CPU_CV": pytest.approx(0.4), "VIN_SYS_5V0": 0.6}


@pytest.mark.parametrize(
    ("lines", "rails"),
    [
        ([], {}),
        ([(0.5, "VDD_IN 4000mW/1mW")], {"VDD_IN": 4.0}),
        ([(0.5, "VDD_NEW 4000mW/1mW"), (0.9, "VDD_NEW 4000mW/1mW")], {"VDD_NEW": 4.0}),
        ([(0.5, "VDD_IN 4000mW/1mW"), (0.9, "RAM 1/2MB")], {"VDD_IN": 4.0}),
    ],
    ids=["nothing", "one reading", "unknown rails", "a line without rails"],
)
def test_where_the_total_is_not_known_there_is_no_energy(
    lines: list[tuple[float, str]], rails: dict[str, float]
) -> None:
    found = energy_between([0.0, 1.0], readings(*lines))
    assert (found.rule, found.watts, found.joules_per_image) == (None, None, None)
    assert found.rails == rails


def test_an_engine_runs_alone_while_its_rails_are_read(tmp_path: Path) -> None:
    tegrastats = tmp_path / "tegrastats"
    tegrastats.write_text(
        f"#!{sys.executable}\nimport sys, time\n"
        "while True:\n    print('VDD_IN 3000mW/3000mW', flush=True)\n    time.sleep(int(sys.argv[2]) / 1e3)\n"
    )
    tegrastats.chmod(0o755)
    calls: list[float] = []

    def arm() -> None:
        calls.append(time.monotonic())
        time.sleep(0.001)

    found = sustained(arm, tegrastats, settle_seconds=0.2, seconds=1.5, interval_ms=10)
    assert found.readings >= 2
    assert found.watts == pytest.approx(3.0)
    assert 0 < found.images <= len(calls)
    assert found.joules_per_image == pytest.approx(3.0 * found.seconds / found.images)
    assert decode(Energy, json.loads(json.dumps(encode(found))), "here") == found


def test_a_recording_in_short() -> None:
    recording = Recording()
    for line in (
        "RAM 100/1000MB CPU [1%@700,off] EMC_FREQ 1%@2133 GR3D_FREQ 9%@[300,300] gpu@50C VDD_IN 2000mW/1mW",
        "RAM 300/1000MB CPU [1%@1700,2%@900] GR3D_FREQ 99%@[600,0] gpu@48C tj@51C VDD_IN 4000mW/1mW",
    ):
        recording.add(line)
    assert summary(recording, 1000) == {
        "interval_ms": 1000,
        "readings": 2,
        "rails_w": {"VDD_IN": 3.0},
        "power_w": 3.0,
        "power_rule": "VDD_IN",
        "temperatures_c": {"gpu": 50.0, "tj": 51.0},
        "cpu_mhz": [700, 1700],
        "gpu_mhz": [0, 600],
        "emc_mhz": [2133, 2133],
        "ram_used_mb": 300,
        "ram_total_mb": 1000,
    }


def test_a_recording_that_says_nothing_says_why() -> None:
    recording = Recording()
    recording.add("needs root")
    found = summary(recording, 1000)
    assert found.pop("refused") == recording.refused
    assert found == {"interval_ms": 1000, "readings": 0}


def test_how_a_jetson_is_set() -> None:
    clocks = (Clock("cpu0", 729.6, 1728.0), Clock("gpu", 306.0, 1020.0))
    jetson = Jetson(
        "Kit", "p3767-0005", "tegra234", "36.4.3", {}, None, PowerMode(2, "MAXN_SUPER"), clocks, None
    )
    assert settings(jetson) == {
        "module": "Orin Nano 8 GB (developer kit)",
        "l4t": "36.4.3",
        "power_mode": "MAXN_SUPER",
        "clocks_locked": False,
    }
    bare = replace(jetson, part=None, power_mode=PowerMode(7, None), clocks=())
    assert settings(bare) == {"module": "Kit", "l4t": "36.4.3", "power_mode": "7", "clocks_locked": None}
