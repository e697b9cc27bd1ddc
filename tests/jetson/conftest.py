from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Tree = Callable[[Mapping[str, str]], Path]

# An Orin Nano developer kit with JetPack 6.2, as its files are published.
ORIN_NANO = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "var/lib/dpkg/status": "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n"
    "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n"
    "Description: TensorRT runtime libraries\n\n"
    "Package: libnvinfer-bin\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n\n"
    "Package: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.6.2.3-1+cuda12.2\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "etc/nvpmodel.conf": "# modes\n< POWER_MODEL ID=1 NAME=25W >\nCPU_ONLINE CORE_0 1\n\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\nCPU_ONLINE CORE_0 1\n\n< PM_CONFIG DEFAULT=1 >\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpu1/online": "0\n",
    "sys/devices/system/cpu/cpufreq/boost": "0\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/15340000.vic/min_freq": "115200000\n",
    "sys/class/devfreq/15340000.vic/max_freq": "729600000\n",
    "proc/meminfo": "MemTotal:        7802920 kB\nMemFree:          402920 kB\n"
    "MemAvailable:    5402920 kB\nSwapTotal:       3901456 kB\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write files under a root that stands for a device's."""

    def write(files: Mapping[str, str]) -> Path:
        root = tmp_path / "root"
        root.mkdir()
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


@pytest.fixture
def orin_nano(tree: Tree) -> Path:
    return tree(ORIN_NANO)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Write an executable Python program in the place of tegrastats."""

    def write(body: str) -> Path:
        path = tmp_path / "bin" / "tegrastats"
        path.parent.mkdir()
        path.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{body}")
        path.chmod(0o755)
        return path

    return write
