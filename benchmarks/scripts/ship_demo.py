"""Ship bundles to a device on loopback whose service is asked without pause, and say what it answered.

    scripts/ship_demo                      on ./notebook.resedge, which is exported if it is not there
    scripts/ship_demo BUNDLE --json F

The device is an SSH server on loopback (OpenSSH's where it is installed, else asyncssh's) with a home of its
own. A first bundle is shipped and the serving example started there; from then on request follows request. A
second bundle replaces the first, a third, whose golden logits are another model's, is refused at trial, and a
rollback brings the first one back.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from resedge import bundle as bundles
from resedge.artifacts import sha256_bytes
from resedge.benchmarks.scripts import loopback, small_bundle
from resedge.golden import read_golden
from resedge.pipeline import keys
from resedge.shipping import moments

SERVICE = Path(__file__).parents[2] / "examples" / "serve.py"
PAUSE = 0.002
REJECTED = 1


@dataclass
class Client:
    """Asks a service without pause, from a thread of its own; counts answers by release, and what failed."""

    port: int
    body: bytes
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> dict[str, Any]:
        """Ask once.

        Raises:
            OSError, HTTPException: No answer.
        """
        connection = HTTPConnection(loopback.LOOPBACK, self.port, timeout=30)
        try:
            connection.request("POST", "/predict", self.body)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
            if response.status != 200:
                raise HTTPException(f"{response.status}: {answer}")
            return answer
        finally:
            connection.close()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask for the length of the block."""
        thread = threading.Thread(target=self._ask_on)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _ask_on(self) -> None:
        while not self._stop.wait(PAUSE):
            try:
                self.answers[self.ask()["release"]] += 1
            except (OSError, HTTPException, ValueError, KeyError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")


class Demo:
    """A device, who owns it, and the one place of the bundle that is shipped to it again and again."""

    def __init__(self, folder: Path, source: Path, backend: str | None) -> None:
        self.bundle = folder / source.name
        shutil.copytree(source, self.bundle)
        self.home = folder / "home"
        self.home.mkdir()
        self.owner = loopback.Owner(folder / "owner")
        self.private, self.public = keys.generate(folder / "keys")
        self._more = ["--backend", backend] if backend else []
        self.steps: list[dict[str, Any]] = []

    @property
    def root(self) -> Path:
        """The folder of resedge on the device."""
        return self.home / ".local" / "share" / "resedge-device"

    @contextmanager
    def device(self, folder: Path) -> Iterator[str]:
        """Run the device's SSH server for the length of the block; yields how it is reached."""
        folder.mkdir()
        if loopback.SSHD:
            server = loopback.Sshd(folder, self.home, self.owner)
            self.owner.knows(server.port, server.host_key)
            try:
                yield f"{loopback.LOOPBACK}:{server.port}"
            finally:
                server.close()
        else:
            with loopback.Servers(folder, self.owner) as servers:
                yield f"{loopback.LOOPBACK}:{servers.start(self.home)}"

    @contextmanager
    def service(self) -> Iterator[int]:
        """Run the serving example on the device for the length of the block; yields its port."""
        port = loopback.free_port()
        command = [sys.executable, str(SERVICE), "--root", str(self.root), "--port", str(port)]
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"]}
        process = subprocess.Popen(command, env=environment, cwd=self.home)
        try:
            loopback.wait_for(port, process)
            yield port
        finally:
            process.terminate()
            process.wait()

    def sign(self) -> None:
        """Sign the bundle as it is now, which makes another release of it."""
        now = moments.now()
        keys.sign(self.bundle, self.private, now + timedelta(days=1), now)

    def spoil(self) -> None:
        """Have the bundle claim golden logits that are not its model's."""
        bundle = bundles.read(self.bundle)
        images, logits = read_golden(bundle.file(bundles.GOLDEN))
        data = save({"input": images, "logits": np.ascontiguousarray(np.roll(logits, 1, axis=1))})
        sources = {a.path.as_posix(): bundle.path / a.path for a in bundle.manifest.files}
        with tempfile.TemporaryDirectory() as folder:
            sources[bundles.GOLDEN] = Path(folder, "golden")
            sources[bundles.GOLDEN].write_bytes(data)
            files = tuple(
                replace(a, sha256=sha256_bytes(data)) if a.path.as_posix() == bundles.GOLDEN else a
                for a in bundle.manifest.files
            )
            bundles.publish(replace(bundle.manifest, files=files), sources, self.bundle)

    def run(self, what: str, *arguments: str) -> int:
        """Run a command of resedge as the owner does; keep what it came to."""
        began = time.monotonic()
        print(f"\n$ resedge {shlex.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "resedge", *arguments, "--python", sys.executable]
        code = subprocess.run(command, env=self.owner.environment, check=False).returncode
        serving = (self.root / "current").readlink().name[:12]
        seconds = round(time.monotonic() - began, 1)
        self.steps.append({"step": what, "exit_code": code, "serves": serving, "seconds": seconds})
        return code

    def ship(self, what: str, host: str, *more: str) -> int:
        """Ship the bundle as it is now."""
        self.sign()
        return self.run(what, "ship", str(self.bundle), host, *self._more, *more)


def tell(demo: Demo, folder: Path) -> dict[str, Any]:
    """Do all of it; return what was seen."""
    with demo.device(folder) as host:
        codes = [demo.ship("first", host, "--trust", str(demo.public))]
        bundle = bundles.read(demo.bundle)
        images, _ = read_golden(bundle.file(bundles.GOLDEN))
        with demo.service() as port:
            client = Client(port, _as_npy(images[:1]))
            check = f"{sys.executable} {SERVICE} --wait-for http://{loopback.LOOPBACK}:{port}"
            with client.asking():
                codes.append(demo.ship("second", host, "--confirm-command", check))
                demo.spoil()
                codes.append(demo.ship("bad", host, "--confirm-command", check))
                codes.append(demo.run("rollback", "rollback", host))
                time.sleep(1)
        demo.run("status", "status", host)
    return {
        "schema": 1,
        "steps": demo.steps,
        "exit_codes": codes,
        "answers": {release[:12]: count for release, count in client.answers.items()},
        "failures": client.failures,
    }


def _as_npy(images: npt.NDArray[Any]) -> bytes:
    body = io.BytesIO()
    np.save(body, images)
    return body.getvalue()


def wrongs(seen: dict[str, Any]) -> list[str]:
    """Return what is not as it should be."""
    first, second, bad, back = (step["serves"] for step in seen["steps"][:4])
    found = [f"a request failed: {failure}" for failure in seen["failures"]]
    if seen["exit_codes"] != [0, 0, REJECTED, 0]:
        found.append(f"the exit codes are {seen['exit_codes']}")
    if not (first != second == bad and back == first):
        found.append(f"what served was {first}, {second}, {bad}, {back}")
    if set(seen["answers"]) != {first, second}:
        found.append(f"the service answered with {sorted(seen['answers'])}")
    return found


def main() -> int:
    """Run the demo; 0 where all went as it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="An exported bundle; it is copied.")
    parser.add_argument("--small", action="store_true", help="A network of a few weights in its place.")
    parser.add_argument("--backend", help="The engine, such as onnxruntime:int8.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resedge-demo-") as place:
        folder = Path(place)
        source = small_bundle.write(folder / "small.resedge").path if options.small else options.bundle
        if source is None:
            parser.error("name a bundle, or --small")
        (folder / "demo").mkdir()
        seen = tell(Demo(folder / "demo", source, options.backend), folder / "server")
    print(f"\n{sum(seen['answers'].values())} requests were answered, {len(seen['failures'])} failed:")
    for release, count in seen["answers"].items():
        print(f"  {count} by {release}")
    if options.json:
        options.json.write_text(json.dumps(seen, indent=2) + "\n")
    found = wrongs(seen)
    for wrong in found:
        print(f"wrong: {wrong}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
