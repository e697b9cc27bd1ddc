"""What a Jetson is, read from its files.

Every reader takes the root of the file system. What a file does not say is None: nothing is guessed, and
`FILES` names where each fact was looked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from resedge.jetson import jetpack
from resedge.jetson.modules import COMPUTE_CAPABILITIES, MODULES

ROOT = Path("/")

FILES: Mapping[str, str] = {
    "model": "/proc/device-tree/model",
    "part": "/proc/device-tree/compatible",
    "chip": "/proc/device-tree/compatible",
    "l4t": "/etc/nv_tegra_release",
    "packages": "/var/lib/dpkg/status",
    "cuda": "/usr/local/cuda/version.json",
    "power_mode": "/var/lib/nvpmodel/status",
    "clocks": "/sys/devices/system/cpu and /sys/class/devfreq",
    "memory": "/proc/meminfo",
}
_DTS_NAME = "/proc/device-tree/nvidia,dtsfilename"
_OLD_CUDA = "/usr/local/cuda/version.txt"
_POWER_MODES = "/etc/nvpmodel.conf"

_CHIPS = {f"nvidia,{chip}" for chip in COMPUTE_CAPABILITIES}
_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", re.ASCII)
_PART = re.compile(r"p\d{4}-\d{4}", re.ASCII)
_MODE = re.compile(r"pmode:(\d{1,4})", re.ASCII)
_LIBRARY = re.compile(r"libnvinfer\d+", re.ASCII)
_UPSTREAM = re.compile(r"\d+(?:\.\d+)*", re.ASCII)
_CPU_CLOCK = re.compile(r"cpu\d+", re.ASCII)
# The folder of the GPU's clock: 57000000.gpu, 17000000.gp10b, .gv11b, .ga10b.
_GPU_CLOCK = re.compile(r"[0-9a-f]+\.(?:gpu|g[pva]\d+b)", re.ASCII)


@dataclass(frozen=True)
class PowerMode:
    """A mode of nvpmodel; `name` is None where /etc/nvpmodel.conf does not name it."""

    number: int
    name: str | None


@dataclass(frozen=True)
class Clock:
    """A clock that scales between two bounds, MHz; `unit` is "cpu0" or "gpu"."""

    unit: str
    lowest: float
    highest: float

    @property
    def locked(self) -> bool:
        """Whether the bounds leave one frequency, as `jetson_clocks` sets them."""
        return self.lowest == self.highest


@dataclass(frozen=True)
class Memory:
    """The memory that CPU and GPU share, and swap; megabytes (10^6 bytes)."""

    total: float
    available: float
    swap: float


@dataclass(frozen=True)
class Jetson:
    """A Jetson.

    `part` is the module's part number ("p3767-0005"), `chip` such as "tegra234", `l4t` such as "36.4.3".
    `packages` maps those of nvidia-jetpack, nvidia-l4t-core and libnvinfer… that are installed to their
    versions, None where the list of packages cannot be read.
    """

    model: str | None
    part: str | None
    chip: str | None
    l4t: str | None
    packages: Mapping[str, str] | None
    cuda: str | None
    power_mode: PowerMode | None
    clocks: tuple[Clock, ...]
    memory: Memory | None

    @property
    def module(self) -> str | None:
        """The module's name, such as "Orin NX 16 GB"."""
        return MODULES.get(self.part or "")

    @property
    def compute_capability(self) -> str | None:
        """The GPU's compute capability, such as "8.7"."""
        return COMPUTE_CAPABILITIES.get(self.chip or "")

    @property
    def release(self) -> jetpack.Release | None:
        """The row of this device's L4T; None for an L4T that the table does not name."""
        return jetpack.release_of(self.l4t) if self.l4t else None

    @property
    def tensorrt(self) -> str | None:
        """The version of TensorRT's library, several where several are installed; None without one."""
        libraries = [v for name, v in (self.packages or {}).items() if _LIBRARY.fullmatch(name)]
        return ", ".join(sorted(map(_upstream, libraries))) or None

    @property
    def clocks_locked(self) -> bool | None:
        """Whether CPU and GPU run at one frequency each; None unless the clocks of both were read."""
        if len({clock.unit == "gpu" for clock in self.clocks}) < 2:
            return None
        return all(clock.locked for clock in self.clocks)


def read(root: Path = ROOT) -> Jetson | None:
    """Return the Jetson whose files lie under `root`; None where this is none."""
    compatible = _strings(root, FILES["chip"])
    chip = next((name[len("nvidia,") :] for name in compatible if name in _CHIPS), None)
    if chip is None and _text(root, FILES["l4t"]) is None:
        return None
    packages = _packages(root)
    return Jetson(
        model=next(iter(_strings(root, FILES["model"])), None),
        part=_part(root, compatible),
        chip=chip,
        l4t=_l4t(root, packages or {}),
        packages=packages,
        cuda=_cuda(root),
        power_mode=power_mode(root),
        clocks=tuple(_clocks(root)),
        memory=_memory(root),
    )


def power_mode(root: Path = ROOT) -> PowerMode | None:
    """Return the mode that nvpmodel is in; None where this is no Jetson, or it was not written down."""
    found = _MODE.search(_text(root, FILES["power_mode"]) or "")
    if found is None:
        return None
    number = int(found[1])
    line = re.compile(rf"^<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)\s*>", re.MULTILINE)
    named = line.search(_text(root, _POWER_MODES) or "")
    return PowerMode(number, named[1] if named else None)


def _part(root: Path, compatible: list[str]) -> str | None:
    """Return the part number of a known module; carrier boards have such numbers too."""
    texts = (*compatible, *_strings(root, _DTS_NAME))
    numbers = [number for text in texts for number in _PART.findall(text)]
    return next((number for number in numbers if number in MODULES), None)


def _l4t(root: Path, packages: Mapping[str, str]) -> str | None:
    found = _RELEASE.search(_text(root, FILES["l4t"]) or "")
    if found:
        return f"{found[1]}.{found[2]}"
    core = packages.get("nvidia-l4t-core")
    return _upstream(core) if core else None


def _packages(root: Path) -> dict[str, str] | None:
    """Return those installed packages that matter here, from dpkg's list."""
    text = _text(root, FILES["packages"])
    if text is None:
        return None
    found: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line)
        name, version = fields.get("Package", ""), fields.get("Version")
        matters = name in ("nvidia-jetpack", "nvidia-l4t-core") or _LIBRARY.fullmatch(name)
        if matters and version and fields.get("Status", "").endswith(" installed"):
            found[name] = version
    return found


def _cuda(root: Path) -> str | None:
    """Return the toolkit's version; it was written as text before CUDA 11.1."""
    try:
        version = json.loads(_text(root, FILES["cuda"]) or "")["cuda"]["version"]
    except (ValueError, RecursionError, LookupError, TypeError):
        found = re.match(r"CUDA Version (\d+(?:\.\d+)*)", _text(root, _OLD_CUDA) or "", re.ASCII)
        return found[1] if found else None
    return version if isinstance(version, str) else None


def _clocks(root: Path) -> Iterator[Clock]:
    for folder in _folders(root, "/sys/devices/system/cpu", _CPU_CLOCK):
        bounds = [_integer(folder / f"cpufreq/scaling_{bound}_freq") for bound in ("min", "max")]
        if bounds[0] is not None and bounds[1] is not None:  # a core that is off has none
            yield Clock(folder.name, bounds[0] / 1e3, bounds[1] / 1e3)
    for folder in _folders(root, "/sys/class/devfreq", _GPU_CLOCK):
        bounds = [_integer(folder / f"{bound}_freq") for bound in ("min", "max")]
        if bounds[0] is not None and bounds[1] is not None:
            yield Clock("gpu", bounds[0] / 1e6, bounds[1] / 1e6)


def _memory(root: Path) -> Memory | None:
    kilobytes = re.compile(r"^(MemTotal|MemAvailable|SwapTotal):\s+(\d{1,15}) kB$", re.MULTILINE | re.ASCII)
    lines = kilobytes.findall(_text(root, FILES["memory"]) or "")
    found = {name: int(size) * 1024 / 1e6 for name, size in lines}
    if len(found) < 3:
        return None
    return Memory(found["MemTotal"], found["MemAvailable"], found["SwapTotal"])


def _upstream(version: str) -> str:
    """Return what comes before a Debian version's revision: "10.3.0.30" of "10.3.0.30-1+cuda12.5"."""
    found = _UPSTREAM.match(version)
    return found[0] if found else version


def _folders(root: Path, path: str, name: re.Pattern[str]) -> list[Path]:
    folder = _under(root, path)
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if name.fullmatch(entry.name))


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _strings(root: Path, path: str) -> list[str]:
    """Return the strings of a property of the device tree, which end with NUL each."""
    return [string for string in (_text(root, path) or "").split("\0") if string]


def _text(root: Path, path: str) -> str | None:
    """Return a file's text; None where it cannot be read: it is looked for, not demanded."""
    try:
        return _under(root, path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _under(root: Path, path: str) -> Path:
    return root / path.removeprefix("/")
