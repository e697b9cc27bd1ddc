"""An agent that does as it is told by ROOT/fake.json, for tests of the workstation's side.

It verifies nothing and builds nothing; it keeps chunks, and calls what has all of them a release.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from resedge.errors import InputRefused, ResedgeError
from resedge.shipping import framing, moments, wire
from resedge.shipping.chunks import FileChunks

GB = 1 << 30


def main() -> int:
    command, root = sys.argv[1], Path(sys.argv[sys.argv.index("--root") + 1])
    told = json.loads((root / "fake.json").read_text()) if (root / "fake.json").exists() else {}
    with (root / "calls.txt").open("a") as calls:
        calls.write(" ".join([command, *sys.argv[4:]]) + "\n")
    if command in told.get("dies", []):
        os.kill(os.getpid(), signal.SIGKILL)
    if command in told.get("sleeps", []):
        time.sleep(600)
    if command in told.get("raw", {}):
        sys.stdout.write(told["raw"][command])
        return int(told.get("code", 0))
    try:
        answer = getattr(Agent(root, told), command)(sys.argv[4:])
    except ResedgeError as error:
        sys.stdout.write(wire.error_text(error))
        return error.exit_code
    sys.stdout.write(wire.answer_text(answer))
    return 0


class Agent:
    def __init__(self, root: Path, told: dict[str, Any]) -> None:
        self.root, self.told = root, told
        (root / "held").mkdir(exist_ok=True)

    def probe(self, _: list[str]) -> wire.Facts:
        runtime = wire.RuntimeFacts("onnxruntime", "1.32.0", "CPU", ("fp32", "int8"), None)
        facts = wire.Facts(
            agent="0",
            python="3.11.0",
            numpy="2.0",
            processor="any",
            cpu_features=("avx2",),
            exact_int8=True,
            cores=2,
            memory_total=8 * GB,
            memory_available=4 * GB,
            disk_free=8 * GB,
            clock=moments.to_text(moments.now()),
            root=str(self.root),
            runtimes=(runtime,),
            jetson=None,
            status=self.status([]),
        )
        changed = dict(self.told.get("facts", {}))
        if changed.pop("bare", False):
            changed["runtimes"] = (wire.RuntimeFacts("onnxruntime", None, None, (), "no onnxruntime"),)
        if jetson := changed.pop("jetson", None):
            nothing = dict.fromkeys(field.name for field in dataclasses.fields(wire.JetsonFacts))
            changed["jetson"] = wire.JetsonFacts(**{**nothing, **jetson})
        if counter := changed.pop("counter", None):
            changed["status"] = dataclasses.replace(facts.status, counter=counter)
        return dataclasses.replace(facts, **changed)

    def begin(self, _: list[str]) -> wire.Begun:
        request = framing.read_request(sys.stdin.buffer.read)
        (self.root / "offer.json").write_text(
            json.dumps([dataclasses.asdict(file) for file in request.offer.files])
        )
        missing = self._missing()
        size = sum(self._files()[m.sha256].span(index)[1] for m in missing for index in m.chunks)
        return wire.Begun("0" * 64, missing, size)

    def receive(self, _: list[str]) -> wire.Received:
        refused = []
        for frame in framing.read_frames(sys.stdin.buffer.read):
            if not frame.sound or frame.index in self.told.get("refuses_chunks", []):
                refused.append(f"chunk {frame.index}")
                continue
            (self.root / "held" / f"{frame.sha256}-{frame.index}").write_bytes(frame.data)
        return wire.Received(tuple(refused), self._missing())

    def install(self, arguments: list[str]) -> wire.Installed:
        assert not self._missing()
        digest, engine = arguments[0], "onnxruntime:fp32"
        for state in ("verify", "build", "trial"):
            sys.stderr.write(wire.progress_line(wire.Progress(state, "", 1, 2)))
            sys.stderr.write("a library talks\n")
        if reason := self.told.get("rejects"):
            return wire.Installed(digest, "rejected", ("trial",), None, reason, None)
        unchanged = (self.root / "serving").exists() and (self.root / "serving").read_text() == digest
        (self.root / "serving").write_text(digest)
        (self.root / "engine").write_text(engine)
        return wire.Installed(
            digest, "unchanged" if unchanged else "committed", ("commit",), None, None, digest
        )

    def status(self, _: list[str]) -> wire.Status:
        now, serving = moments.to_text(moments.now()), None
        releases: tuple[wire.Release, ...] = ()
        if (self.root / "serving").exists():
            digest = (self.root / "serving").read_text()
            serving = wire.Serving(digest, 2, "net", (self.root / "engine").read_text(), now, None)
            releases = (wire.Release(digest, 2, "net", serving.engine, now),)
        return wire.Status(True, serving, 2 if serving else 0, None, releases, None, None)

    def rollback(self, arguments: list[str]) -> wire.RolledBack:
        serving = self.status([]).serving
        if serving is None:
            raise InputRefused("has nothing to go back to.", where=str(self.root))
        return wire.RolledBack(serving, arguments[0] if arguments else None)

    def collect(self, _: list[str]) -> wire.Collected:
        return wire.Collected((), ())

    def _files(self) -> dict[str, FileChunks]:
        rows = json.loads((self.root / "offer.json").read_text())
        return {row["sha256"]: FileChunks(row["sha256"], row["size"], tuple(row["chunks"])) for row in rows}

    def _missing(self) -> tuple[wire.Missing, ...]:
        held = {path.name for path in (self.root / "held").iterdir()}
        found = []
        for sha256, file in self._files().items():
            chunks = tuple(i for i in range(len(file.chunks)) if f"{sha256}-{i}" not in held)
            if chunks:
                found.append(wire.Missing(sha256, chunks))
        return tuple(found)


if __name__ == "__main__":
    sys.exit(main())
