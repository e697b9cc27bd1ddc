"""One line of tegrastats as a value.

The fields are those of NVIDIA's "Tegrastats Utility"; their forms differ between JetPack 4 and 7, and
every module brings new ones. A field that is not known, or has an unknown form, is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from resedge.errors import InputRefused

_INVALID_CELSIUS = -256.0  # a sensor of a part that is switched off
_NOT_CONNECTED = "NC"
_NUMBER = r"\d{1,9}"
_DECIMAL = r"-?\d{1,9}(?:\.\d{1,9})?"


def _field(pattern: str) -> re.Pattern[str]:
    """Compile the pattern of a whole field, between blanks."""
    return re.compile(rf"(?<!\S){pattern}(?!\S)", re.ASCII)


_STAMP = re.compile(r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d(?!\S)", re.ASCII)
_MEMORY = _field(rf"(RAM|SWAP) ({_NUMBER})/({_NUMBER})MB")
_CORES = _field(rf"CPU \[([^\[\]]*)\](?:@({_NUMBER}))?")
_LOAD = re.compile(rf"(?:({_NUMBER})%)?(?:@({_NUMBER}))?", re.ASCII)
_ENGINE = _field(rf"(GR3D_FREQ|GR3D2_FREQ|EMC_FREQ) (?:({_NUMBER})%)?(?:@({_NUMBER}|\[[^\[\]]*\]))?")
_TEMPERATURE = _field(rf"(\w{{1,40}})@({_DECIMAL})C(?:/{_DECIMAL}C)?")
_RAIL = _field(rf"([A-Z]\w{{0,40}}) ({_NUMBER})(?:mW)?/({_NUMBER})(?:mW)?(?:/{_NUMBER}mW)?")


@dataclass(frozen=True)
class Usage:
    """Memory in use and in all, MB as tegrastats counts them (2^20 bytes)."""

    used: int
    total: int


@dataclass(frozen=True)
class Load:
    """How busy a core, the GPU or the memory controller is: percent, at MHz; None where it is not said.

    A GPU has a clock for each of its processing clusters.
    """

    percent: int | None
    clocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rail:
    """The power of one supply rail, mW: at this moment, and on average since tegrastats was started."""

    current: int
    average: int


@dataclass(frozen=True)
class TegraSample:
    """What one line says; None or empty where it does not.

    `time` is the device's local time, which JetPack 4 leaves out. `cores` has None for a core that is off.
    `temperatures` maps sensors to degrees Celsius, without those that give none; `rails` maps supply rails to
    their power, without those that are not connected. Names are as they stand in the line.
    """

    time: datetime | None
    ram: Usage | None
    swap: Usage | None
    cores: tuple[Load | None, ...]
    gpu: Load | None
    emc: Load | None
    temperatures: Mapping[str, float]
    rails: Mapping[str, Rail]


def parse(line: str) -> TegraSample:
    """Return what a line of tegrastats says.

    Raises:
        InputRefused: The line has none of the fields above, so it is none of tegrastats.
    """
    memory = {name: Usage(int(used), int(total)) for name, used, total in _MEMORY.findall(line)}
    engines = _engines(line)
    sample = TegraSample(
        time=_time(line),
        ram=memory.get("RAM"),
        swap=memory.get("SWAP"),
        cores=_cores(line),
        gpu=_gpu(engines),
        emc=engines.get("EMC_FREQ"),
        temperatures={
            name: float(celsius)
            for name, celsius in _TEMPERATURE.findall(line)
            if float(celsius) != _INVALID_CELSIUS
        },
        rails={
            name: Rail(int(current), int(average))
            for name, current, average in _RAIL.findall(line)
            if name != _NOT_CONNECTED
        },
    )
    if not (sample.ram or sample.cores or engines or sample.temperatures or sample.rails):
        raise InputRefused(
            f"is no line of tegrastats: {line.strip()[:80]!r}.",
            where="tegrastats",
            cure="Run `tegrastats` by hand and see what it says.",
        )
    return sample


def _time(line: str) -> datetime | None:
    found = _STAMP.match(line)
    try:
        return datetime.strptime(found[0], "%m-%d-%Y %H:%M:%S") if found else None
    except ValueError:  # digits that are no date
        return None


def _cores(line: str) -> tuple[Load | None, ...]:
    """Return the cores' loads; one clock behind the list is the clock of all."""
    found = _CORES.search(line)
    if found is None:
        return ()
    shared = (int(found[2]),) if found[2] else ()
    return tuple(_core(entry.strip(), shared) for entry in found[1].split(","))


def _core(entry: str, shared: tuple[int, ...]) -> Load | None:
    if entry == "off":
        return None
    found = _LOAD.fullmatch(entry)
    if found is None:
        return Load(None)
    return Load(int(found[1]) if found[1] else None, (int(found[2]),) if found[2] else shared)


def _engines(line: str) -> dict[str, Load]:
    """Return the loads of GPU and memory controller by their names in the line."""
    return {
        name: Load(int(percent) if percent else None, tuple(map(int, re.findall(_NUMBER, clocks, re.ASCII))))
        for name, percent, clocks in _ENGINE.findall(line)
        if percent or clocks
    }


def _gpu(engines: Mapping[str, Load]) -> Load | None:
    """Return the GPU's load; JetPack 5 gives its second cluster a field of its own."""
    first, second = engines.get("GR3D_FREQ"), engines.get("GR3D2_FREQ")
    if first is None or second is None:
        return first
    return Load(first.percent, first.clocks + second.clocks)
