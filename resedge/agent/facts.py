"""What a device is: read from its files, and asked of its runtimes in a child."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata, util
from pathlib import Path
from typing import Final

from resedge import machine
from resedge.agent import children
from resedge.agent.layout import Layout
from resedge.agent.status import status
from resedge.errors import BuildFailed, MachineFailure
from resedge.jetson import device
from resedge.jetson.device import Jetson
from resedge.jetson.jetpack import jetpack_of
from resedge.shipping import moments, wire
from resedge.shipping.fitting import PREFERENCE
from resedge.version import __version__

SYSTEM_ROOT: Final = "RESEDGE_SYSROOT"
RUNTIMES: Final = tuple(dict.fromkeys(runtime for runtime, _ in PREFERENCE))
_PROBE_SECONDS: Final = 120.0


def facts(layout: Layout) -> wire.Facts:
    """Return what this device is.

    Where a Jetson's files lie can be set for tests: the environment's RESEDGE_SYSROOT, otherwise "/".

    Raises:
        InputRefused: The journal cannot be read.
    """
    system = Path(os.environ.get(SYSTEM_ROOT, "/"))
    cpu = machine.parse_cpuinfo(_text(system, "proc/cpuinfo"))
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _text(system, "proc/meminfo"), re.MULTILINE))
    jetson = device.read(system)
    return wire.Facts(
        agent=__version__,
        python=platform.python_version(),
        numpy=_numpy(),
        processor=cpu.processor,
        cpu_features=cpu.features,
        exact_int8=not cpu.saturates_pairs,
        cores=len(os.sched_getaffinity(0)),
        memory_total=int(memory.get("MemTotal", 0)) * 1024,
        memory_available=int(memory.get("MemAvailable", 0)) * 1024,
        disk_free=_disk_free(layout.root),
        clock=moments.to_text(moments.now()),
        root=str(layout.root),
        runtimes=_runtimes(),
        jetson=_jetson(jetson) if jetson else None,
        status=status(layout),
    )


def _runtimes() -> tuple[wire.RuntimeFacts, ...]:
    """Probe the runtimes together, and each by itself where that does not come to its end."""
    if util.find_spec("numpy") is None:
        return tuple(_absent(name, "numpy is not installed") for name in RUNTIMES)
    try:
        return children.ask(children.Probed, children.Probe(RUNTIMES), _PROBE_SECONDS).runtimes
    except (BuildFailed, MachineFailure):
        return tuple(_probed(name) for name in RUNTIMES)


def _probed(name: str) -> wire.RuntimeFacts:
    try:
        (found,) = children.ask(children.Probed, children.Probe((name,)), _PROBE_SECONDS).runtimes
    except (BuildFailed, MachineFailure) as error:
        return _absent(name, str(error))
    return found


def _absent(name: str, reason: str) -> wire.RuntimeFacts:
    return wire.RuntimeFacts(name, None, None, (), reason)


def _jetson(jetson: Jetson) -> wire.JetsonFacts:
    mode = jetson.power_mode
    return wire.JetsonFacts(
        model=jetson.model,
        module=jetson.module,
        l4t=jetson.l4t,
        jetpack=jetpack_of(jetson.l4t) if jetson.l4t else None,
        tensorrt=jetson.tensorrt,
        cuda=jetson.cuda,
        compute_capability=jetson.compute_capability,
        power_mode=(mode.name or str(mode.number)) if mode else None,
        clocks_locked=jetson.clocks_locked,
    )


def _numpy() -> str | None:
    try:
        return metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return None


def _text(system: Path, name: str) -> str:
    """Return a file of the system's, this machine's own where the set root has none."""
    for path in (system / name, Path("/") / name):
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _disk_free(root: Path) -> int:
    """Return the bytes that may be written below a folder that need not be there yet."""
    there = next(path for path in (root, *root.parents) if path.exists())
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize
