"""What the kernel's texts say, and what a busy neighbour looks like."""

import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from resedge.benchmarks import conditions as module
from resedge.benchmarks import kernel
from resedge.benchmarks.conditions import (
    Moment,
    Watch,
    busy_ticks,
    conditions,
    cpu_model,
    foreign_cores,
    governor,
    isa_flags,
    library_versions,
)
from resedge.benchmarks.stability import Seen

CPUINFO = """\
processor\t: 0
model name\t: Example CPU @ 2.00GHz
flags\t\t: fpu sse2 avx avx2 avx512f avx512_vnni

processor\t: 1
model name\t: Example CPU @ 2.00GHz
flags\t\t: fpu sse2 avx avx2 avx512f avx512_vnni
"""
ARM_CPUINFO = "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd42\n"
STAT = "cpu  100 20 30 4000 50 6 7 8 9 0\ncpu0 1 1 1 1 1 1 1 1 1 0\nintr 12\n"


def test_cpuinfo() -> None:
    assert cpu_model(CPUINFO) == "Example CPU @ 2.00GHz"
    assert isa_flags(CPUINFO) == ("avx2", "avx512_vnni")
    assert isa_flags(CPUINFO.replace("avx2", "avx_vnni amx_int8")) == ("avx_vnni", "avx512_vnni", "amx_int8")


@pytest.mark.parametrize("text", ["", ARM_CPUINFO])
def test_cpuinfo_that_names_nothing(text: str) -> None:
    assert cpu_model(text) is None
    assert isa_flags(text) == ()


def test_busy_ticks_leave_out_idle_waiting_and_guest() -> None:
    assert busy_ticks(STAT) == 100 + 20 + 30 + 6 + 7 + 8


@pytest.mark.parametrize("text", ["", "intr 12\n", "cpu 1 2 3\n"])
def test_stat_without_a_total_is_unknown(text: str) -> None:
    assert busy_ticks(text) is None


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (Moment(110.0, 1035.0, 20.0), 1.5),  # 35 s on the machine, 20 s of them ours, in 10 s
        (Moment(110.0, 1019.9, 20.0), 0.0),
        (Moment(110.0, None, 20.0), None),
        (Moment(100.0, 1000.0, 0.0), None),
    ],
)
def test_foreign_cores(after: Moment, expected: float | None) -> None:
    assert foreign_cores(Moment(100.0, 1000.0, 0.0), after) == expected


def test_governor() -> None:
    assert governor(["performance\n", "performance\n"]) == "performance"
    assert governor(["schedutil\n", "performance\n"]) == "performance, schedutil"
    assert governor(["", ""]) is None


def test_versions_of_what_is_installed() -> None:
    expected = {"numpy": importlib.metadata.version("numpy")}
    assert library_versions(["numpy", "no-such-distribution"]) == expected


def test_conditions_of_this_machine() -> None:
    found = conditions(2, ["rich", "no-such-distribution"])
    assert list(found) == [
        "cpu",
        "cpus_available",
        "isa",
        "governor",
        "threads",
        "kernel",
        "python",
        "libraries",
    ]
    assert found["threads"] == 2
    assert found["cpus_available"] == len(os.sched_getaffinity(0))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["libraries"] == {name: importlib.metadata.version(name) for name in ("numpy", "rich")}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_watch_sees_between_its_ends_only(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([Moment(0.0, 0.0, 0.0, 4, None), Moment(2.0, 3.0, 1.0, 7, None)])
    monkeypatch.setattr(kernel, "_CLOCKS", "nowhere")
    monkeypatch.setattr(module, "_moment", lambda: next(moments))
    monkeypatch.setattr(os, "getloadavg", lambda: (1.234, 9.0, 9.0))
    with Watch() as watch:
        pass
    assert watch.found() == {
        "load_average_before": 1.23,
        "foreign_cpu_cores": 1.0,
        "clock_mhz": None,
        "throttled": 3,
        "pages_swapped_in": None,
    }
    assert watch.seen() == Seen(foreign_cores=1.0, throttled=3)


def test_own_work_and_that_of_children_is_not_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {resource.RUSAGE_SELF: (1.0, 0.5), resource.RUSAGE_CHILDREN: (0.25, 0.125)}
    monkeypatch.setattr(
        resource, "getrusage", lambda who: SimpleNamespace(ru_utime=used[who][0], ru_stime=used[who][1])
    )
    monkeypatch.setattr(module, "text", {"/proc/stat": STAT}.__getitem__)
    found = module._moment()
    assert found.own == 1.875
    assert found.machine == 171 / os.sysconf("SC_CLK_TCK")


def test_watch_on_a_jetson_adds_what_tegrastats_said(tmp_path: Path) -> None:
    tegrastats = tmp_path / "tegrastats"
    line = "RAM 100/1000MB VDD_IN 2000mW/2000mW"
    tegrastats.write_text(f"#!{sys.executable}\nimport time\nprint('{line}', flush=True)\ntime.sleep(60)\n")
    tegrastats.chmod(0o755)
    with Watch(tegrastats) as watch:
        while not watch._recording.readings:  # type: ignore[union-attr]
            time.sleep(0.005)
    assert watch.found()["tegrastats"] == {
        "interval_ms": 1000,
        "readings": 1,
        "rails_w": {"VDD_IN": 2.0},
        "power_w": 2.0,
        "power_rule": "VDD_IN",
        "ram_used_mb": 100,
        "ram_total_mb": 1000,
    }
