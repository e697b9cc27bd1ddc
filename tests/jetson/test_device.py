from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from resedge.jetson import description, device
from resedge.jetson.device import Clock, Memory, PowerMode

Tree = Callable[[Mapping[str, str]], Path]

AGX_XAVIER = {
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t186ref, EABI: aarch64\n",
    "proc/device-tree/compatible": "nvidia,p2972-0000\0nvidia,tegra194\0",
    "proc/device-tree/nvidia,dtsfilename": "/dvs/galen/kernel-dts/tegra194-p2888-0001-p2822-0000.dts\0",
    "usr/local/cuda/version.txt": "CUDA Version 10.2.300\n",
}


def found(root: Path) -> device.Jetson:
    jetson = device.read(root)
    assert jetson is not None
    return jetson


def test_what_an_orin_nano_is(orin_nano: Path) -> None:
    jetson = found(orin_nano)
    assert jetson.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (jetson.part, jetson.module) == ("p3767-0005", "Orin Nano 8 GB (developer kit)")
    assert (jetson.chip, jetson.compute_capability) == ("tegra234", "8.7")
    assert jetson.l4t == "36.4.3"
    assert jetson.release is not None
    assert jetson.release.tensorrt == "10.3.0"
    assert jetson.packages == {"nvidia-jetpack": "6.2+b77", "libnvinfer10": "10.3.0.30-1+cuda12.5"}
    assert (jetson.tensorrt, jetson.cuda) == ("10.3.0.30", "12.6.11")
    assert jetson.power_mode == PowerMode(2, "MAXN_SUPER")
    assert jetson.clocks == (Clock("cpu0", 729.6, 1728.0), Clock("gpu", 306.0, 1020.0))
    assert jetson.clocks_locked is False
    kilobytes = (7802920, 5402920, 3901456)
    assert jetson.memory == Memory(*(size * 1024 / 1e6 for size in kilobytes))


def test_an_older_one_is_known_from_other_files(tree: Tree) -> None:
    jetson = found(tree(AGX_XAVIER))
    assert (jetson.module, jetson.compute_capability) == ("AGX Xavier 16 GB", "7.2")
    assert (jetson.l4t, jetson.cuda) == ("32.7.1", "10.2.300")


def test_without_a_release_file_the_package_says_the_l4t(tree: Tree) -> None:
    package = "Package: nvidia-l4t-core\nStatus: install ok installed\nVersion: 36.4.4-20250616085344\n"
    root = tree({"proc/device-tree/compatible": "nvidia,tegra234\0", "var/lib/dpkg/status": package})
    assert found(root).l4t == "36.4.4"


@pytest.mark.parametrize(
    "files",
    [{}, {"proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0", "proc/meminfo": ""}],
)
def test_another_machine_is_no_jetson(tree: Tree, files: Mapping[str, str]) -> None:
    assert device.read(tree(files)) is None


@pytest.mark.parametrize(
    ("file", "text", "field"),
    [
        ("etc/nv_tegra_release", "garbage", "l4t"),
        ("proc/device-tree/compatible", "nvidia,p9999-0000\0nvidia,tegra999\0", "part"),
        ("usr/local/cuda/version.json", "[" * 20000, "cuda"),
        ("usr/local/cuda/version.json", '{"cuda": {"version": 12}}', "cuda"),
        ("usr/local/cuda/version.json", "[]", "cuda"),
        ("var/lib/nvpmodel/status", "pmode:\n", "power_mode"),
        ("proc/meminfo", "MemTotal: many kB\n", "memory"),
        ("var/lib/dpkg/status", "\0\0: : Package\n\n\n", "tensorrt"),
        ("sys/class/devfreq/17000000.gpu/min_freq", "9" * 5000, "clocks_locked"),
    ],
)
def test_a_file_that_says_something_else_leaves_its_fact_unknown(
    orin_nano: Path, file: str, text: str, field: str
) -> None:
    (orin_nano / file).write_text(text)
    assert getattr(found(orin_nano), field) is None


def test_a_mode_that_is_not_named_keeps_its_number(orin_nano: Path) -> None:
    (orin_nano / "etc/nvpmodel.conf").write_text("< PM_CONFIG DEFAULT=1 >\n")
    assert device.power_mode(orin_nano) == PowerMode(2, None)


def test_clocks_with_one_frequency_left_are_locked(orin_nano: Path) -> None:
    (orin_nano / "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq").write_text("1728000\n")
    assert found(orin_nano).clocks_locked is False
    (orin_nano / "sys/class/devfreq/17000000.gpu/min_freq").write_text("1020000000\n")
    assert found(orin_nano).clocks_locked is True


# --- in words ------------------------------------------------------------------------------------


def test_a_jetson_in_words(orin_nano: Path) -> None:
    assert dict(description.lines(found(orin_nano))) == {
        "jetson": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super; "
        "module Orin Nano 8 GB (developer kit) (p3767-0005); compute capability 8.7",
        "jetpack": "6.2, by L4T 36.4.3; the package nvidia-jetpack is 6.2+b77",
        "tensorrt (apt)": "10.3.0.30",
        "cuda": "12.6.11",
        "power mode": "MAXN_SUPER (nvpmodel 2)",
        "clocks": "1 cpu 730 to 1728 MHz, 1 gpu 306 to 1020 MHz; they move with the load; for steady times: "
        "sudo jetson_clocks",
        "memory": "8.0 GB for CPU and GPU together, 5.5 GB available; swap 4.0 GB",
    }


def test_what_is_unknown_is_said_with_its_file(tree: Tree) -> None:
    lines = dict(description.lines(found(tree({"etc/nv_tegra_release": "# R99 (release), REVISION: 1.0\n"}))))
    assert lines["jetpack"] == "unknown (not in `resedge doctor --jetpack`), by L4T 99.1.0"
    for name, file in (
        ("jetson", "/proc/device-tree/model"),
        ("tensorrt (apt)", "/var/lib/dpkg/status"),
        ("cuda", "/usr/local/cuda/version.json"),
        ("power mode", "/var/lib/nvpmodel/status"),
        ("clocks", "/sys/devices/system/cpu"),
        ("memory", "/proc/meminfo"),
    ):
        assert "unknown" in lines[name]
        assert file in lines[name]


def test_another_version_than_jetpacks_is_said(orin_nano: Path) -> None:
    status = orin_nano / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("10.3.0.30", "10.7.0.23"))
    assert (
        dict(description.lines(found(orin_nano)))["tensorrt (apt)"] == "10.7.0.23; JetPack comes with 10.3.0"
    )
