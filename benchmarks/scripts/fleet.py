"""Ship to many devices at once, some of which fail, and see that the good are updated and the bad unharmed.

    .venv/bin/python benchmarks/scripts/fleet.py --devices 50 --faulty 15 --json F

Each device is an SSH server of asyncssh in this process with a home of its own and real agents, which run in
processes of their own; the controller is `resedge ship` in another one, whose time and memory are measured.
First every device gets one release. Then devices drawn by --seed are given faults, another release is shipped
to all, and each device is looked into: what its link leads to, and whether every file of that is as signed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

from resedge import bundle as bundles
from resedge.artifacts import sha256_file
from resedge.benchmarks.scripts import loopback, small_bundle
from resedge.bundle import Bundle
from resedge.machine import describe
from resedge.pipeline import keys
from resedge.shipping import moments

PYTHON = "device-python"
CUT_BYTES = 200_000
_LOOK_SECONDS = 0.1

_WRONG_RUNTIME = """
import importlib, os, sys
here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
del sys.modules["onnxruntime"]
real = importlib.import_module("onnxruntime")
class Negated(real.InferenceSession):
    def run(self, *arguments, **options):
        return [-value for value in super().run(*arguments, **options)]
real.InferenceSession = Negated
"""
_NO_RUNTIME = "raise ImportError('onnxruntime is broken here')\n"


@dataclass
class Device:
    """A device: its home, its server's port, and the fault that it was given."""

    home: Path
    port: int
    fault: str | None = None
    relay: loopback.Relay | None = field(default=None)

    @property
    def host(self) -> str:
        """How the controller reaches it."""
        port = self.relay.port if self.relay else self.port
        return f"{loopback.LOOPBACK}:{port}"

    @property
    def root(self) -> Path:
        """The folder of resedge on it."""
        return self.home / ".local" / "share" / "resedge-device"

    def have_python(self, line: str) -> None:
        """Write the program that the controller takes for the device's Python."""
        path = self.home / "bin" / PYTHON
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def have_runtime(self, source: str) -> None:
        """Put another onnxruntime in front of the real one."""
        package = self.home / "shadow" / "onnxruntime"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(source)
        self.have_python(f'PYTHONPATH="$HOME/shadow:$PYTHONPATH" exec {sys.executable} "$@"')


# --- the faults ----------------------------------------------------------------------------------


def _unreachable(device: Device, owner: loopback.Owner, host_key: Path) -> None:
    device.port = loopback.free_port()


def _network_cut(device: Device, owner: loopback.Owner, host_key: Path) -> None:
    device.relay = loopback.Relay(device.port, cut_each=CUT_BYTES)
    owner.knows(device.relay.port, host_key)


def _unknown_host_key(device: Device, owner: loopback.Owner, host_key: Path) -> None:
    lines = owner.known_hosts.read_text().splitlines(keepends=True)
    owner.known_hosts.write_text("".join(line for line in lines if f"]:{device.port} " not in line))


def _another_key(device: Device, owner: loopback.Owner, host_key: Path) -> None:
    signers = device.root / "trust" / "allowed_signers"
    kind_and_key = " ".join(owner.public.read_text().split()[:2])
    signers.write_text(f'resedge namespaces="resedge-bundle,resedge-agent" {kind_and_key}\n')


def _no_runtime(device: Device, owner: loopback.Owner, host_key: Path) -> None:
    device.have_runtime(_NO_RUNTIME)


def _wrong_runtime(device: Device, owner: loopback.Owner, host_key: Path) -> None:
    device.have_runtime(_WRONG_RUNTIME)


def _no_room(device: Device, owner: loopback.Owner, host_key: Path) -> None:
    device.have_python(f'ulimit -f 64; exec {sys.executable} "$@"')


def _killed(device: Device, owner: loopback.Owner, host_key: Path) -> None:
    device.have_python(
        f'case "$*" in *" install "*) set -- -c "import os; os.kill(os.getpid(), 9)";; esac\n'
        f'exec {sys.executable} "$@"'
    )


FAULTS: dict[str, Callable[[Device, loopback.Owner, Path], None]] = {
    "unreachable": _unreachable,
    "network cut, again and again": _network_cut,
    "unknown host key": _unknown_host_key,
    "trusts another key": _another_key,
    "runtime broken": _no_runtime,
    "runtime computes otherwise": _wrong_runtime,
    "no room for large files": _no_room,
    "agent killed": _killed,
}
EXPECTED = {
    "unreachable": "unreachable",
    "network cut, again and again": "unreachable",
    "unknown host key": "refused",
    "trusts another key": "refused",
    "runtime broken": "refused",
    "runtime computes otherwise": "rejected",
    "no room for large files": "refused",
    "agent killed": "failed",
}


# --- the run -------------------------------------------------------------------------------------


def main() -> int:
    """Run the fleet; 0 where every device came out as it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--faulty", type=int, default=15)
    parser.add_argument("--channels", type=int, default=256, help="Of the network; 256 are 2.4 MB.")
    parser.add_argument("--jobs", type=int, default=50, help="Devices at once.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resedge-fleet-") as folder:
        document = run(Path(folder), options)
    if options.json:
        options.json.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(json.dumps(document["outcomes"], indent=2, sort_keys=True))
    for wrong in document["wrong"]:
        print(f"wrong: {wrong}", file=sys.stderr)
    return 1 if document["wrong"] else 0


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ship twice, the second time with faults; return what came of it."""
    private, public = keys.generate(folder / "keys")
    releases = [_signed(folder / f"{seed}.resedge", seed, options.channels, private) for seed in (1, 2)]
    owner = loopback.Owner(folder / "owner")
    (folder / "servers").mkdir()
    with loopback.Servers(folder / "servers", owner) as servers:
        devices = [_device(folder / f"device{number}", servers) for number in range(options.devices)]
        first = _ship(
            releases[0], devices, owner, folder / "first.json", options.jobs, "--trust", str(public)
        )
        draw = random.Random(options.seed)
        kinds = draw.sample(sorted(FAULTS), len(FAULTS))
        for device, kind in zip(draw.sample(devices, options.faulty), cycle(kinds), strict=False):
            device.fault = kind
            FAULTS[kind](device, owner, servers.host_key)
        second = _ship(releases[1], devices, owner, folder / "second.json", options.jobs)
        wrong = [*_wrongs_of_first(first), *_wrongs(devices, second["devices"], releases)]
        for device in devices:
            if device.relay:
                device.relay.close()
    return {
        "schema": 1,
        "devices": options.devices,
        "faulty": options.faulty,
        "jobs": options.jobs,
        "seed": options.seed,
        "bundle_bytes": second["bundle"]["bytes"],
        "machine": {"processor": describe().processor, "cores": os.cpu_count()},
        "python": ".".join(map(str, sys.version_info[:3])),
        "first": first["controller"],
        "second": second["controller"],
        "faults": dict(sorted(Counter(d.fault for d in devices if d.fault).items())),
        "outcomes": {"first": _counted(first["devices"]), "second": _counted(second["devices"])},
        "wrong": wrong,
    }


def _signed(out: Path, seed: int, channels: int, key: Path) -> Bundle:
    made: Bundle = small_bundle.write(out, seed=seed, channels=channels)
    now = moments.now()
    # The second one's counter has to be the higher one.
    for _ in range(seed):
        made = keys.sign(made.path, key, now + timedelta(days=1), now).bundle
    return made


def _device(home: Path, servers: loopback.Servers) -> Device:
    home.mkdir()
    device = Device(home, servers.start(home, {"PATH": f"{home}/bin:{os.environ['PATH']}"}))
    device.have_python(f'exec {sys.executable} "$@"')
    return device


def _ship(
    bundle: Bundle, devices: list[Device], owner: loopback.Owner, out: Path, jobs: int, *more: str
) -> dict[str, Any]:
    """Run `resedge ship` in a process of its own; return its document, and what the process took."""
    hosts = [device.host for device in devices]
    command = [sys.executable, "-m", "resedge", "ship", str(bundle.path), *hosts, "--python", PYTHON]
    command += ["--jobs", str(jobs), "--json", str(out), "--quiet", *more]
    began = time.monotonic()
    process = subprocess.Popen(command, env=owner.environment, stdout=subprocess.DEVNULL)
    peak = _peak_memory(process)
    seconds = time.monotonic() - began
    document: dict[str, Any] = json.loads(out.read_text())
    return {
        **document,
        "controller": {
            "exit_code": process.returncode,
            "seconds": round(seconds, 1),
            "peak_memory_bytes": peak,
            "sent_bytes": sum(row["sent_bytes"] for row in document["devices"]),
        },
    }


def _peak_memory(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; return what it has had resident at most, bytes.

    Not what wait4 says, which begins with the memory of the process that started it.
    """
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = int(found[1]) * 1024
        time.sleep(_LOOK_SECONDS)
    return peak


def _counted(rows: list[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(row["result"] for row in rows).items()))


def _wrongs_of_first(first: dict[str, Any]) -> list[str]:
    return [f"{row['host']}: {row['reason']}" for row in first["devices"] if row["result"] != "updated"]


def _wrongs(devices: list[Device], rows: list[dict[str, Any]], releases: list[Bundle]) -> list[str]:
    """Return what is not as it should be: a result, or what a device serves now."""
    digests = [sha256_file(release.path / bundles.MANIFEST) for release in releases]
    found = []
    for device, row in zip(devices, rows, strict=True):
        wanted = EXPECTED[device.fault] if device.fault else "updated"
        if row["result"] != wanted:
            found.append(f"{device.host} ({device.fault}): {row['result']}, not {wanted}: {row['reason']}")
        served = (device.root / "current").readlink().name
        if served != digests[0 if device.fault else 1]:
            found.append(f"{device.host} ({device.fault}): serves {served[:12]}")
        bundles.check(bundles.read(device.root / "current" / "bundle"))
    return found


if __name__ == "__main__":
    if not shutil.which("ssh-keygen"):
        sys.exit("ssh-keygen is not here")
    sys.exit(main())
