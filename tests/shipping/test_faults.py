"""The fault table: every state and every fault, and a kill, a full disk and a failing one at every step.

Whatever happens, the old release serves afterwards or the new one, whole and with a signature that holds;
and the same commands once more, without the fault, end with the new one and leave nothing lying about.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resedge import bundle as bundles
from resedge.artifacts import sha256_bytes
from resedge.bundle import Bundle
from resedge.shipping import wire
from resedge.shipping.chunks import split_file

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")

RUNNER = Path(__file__).parent / "faults.py"
STATES = ("begin", "receive", *wire.STATES)
FAULTS = (
    "killed agent",
    "killed controller",
    "network cut",
    "disk full",
    "bad signature",
    "wrong version",
    "build out of memory",
    "golden mismatch",
    "latency over limit",
    "wrong clock",
)
LIMITS = json.dumps({"p50_ms": 1000})
PATIENCE = ("--idle-seconds", "0.05")

Case = dict[str, Any]
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Parcel:
    """A bundle, and the files that its commands are given."""

    digest: str
    given: dict[str, str]

    def case(self, *install: str, **fault: Any) -> Case:  # noqa: ANN401
        """Ship it, with a fault."""
        commands = [
            ["begin", *PATIENCE],
            ["receive", self.digest, *PATIENCE],
            ["install", self.digest, "--limits", LIMITS, *install],
        ]
        return {"commands": commands, "digest": self.digest, "given": self.given, **fault}


@dataclass(frozen=True)
class Table:
    """A device that serves `old`, to which `new` is shipped."""

    folder: Path
    old: Parcel
    new: Parcel

    def run(
        self, cases: Sequence[Case], prepare: Sequence[Case] | None = None, rerun: Case | None = None
    ) -> list[Outcome]:
        assignment = {
            "template": str(self.folder / "device"),
            "requests": [self.old.given["begin"], self.new.given["begin"]],
            "prepare": [self.old.case()] if prepare is None else list(prepare),
            "rerun": rerun or self.new.case(),
            "cases": list(cases),
        }
        path = self.folder / "assignment.json"
        path.write_text(json.dumps(assignment))
        done = subprocess.run(
            [sys.executable, str(RUNNER), str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: list[Outcome] = json.loads(done.stdout)
        return found


@pytest.fixture
def parcel(maker: Any, tmp_path: Path) -> Callable[..., Parcel]:  # noqa: ANN401 - Maker
    """Make a bundle whose network nobody runs, and the files that its commands are given."""

    def make(name: str, **change: Any) -> Parcel:  # noqa: ANN401
        contents = {
            "onnx/fp32.onnx": name.encode() * 300_000,  # two chunks
            bundles.GOLDEN: b"golden",
            bundles.THRESHOLDS: b"thresholds",
        }
        bundle: Bundle = maker.bundle(contents, **change)
        paths = {a.sha256: bundle.path / a.path for a in bundle.manifest.files}
        files = [split_file(path) for path in paths.values()]
        manifest, signature = (
            (bundle.path / part).read_bytes() for part in (bundles.MANIFEST, bundles.SIGNATURE)
        )
        frames = [
            wire.chunk_frame(file.sha256, index, paths[file.sha256].read_bytes()[start : start + length])
            for file in files
            for index, (start, length) in enumerate(map(file.span, range(len(file.chunks))))
        ]
        given = {
            "begin": wire.begin_request(manifest, signature, files),
            "forged": wire.begin_request(manifest, signature[::-1], files),
            "receive": b"".join(frames),
        }
        for part, data in given.items():
            (tmp_path / f"{name}.{part}").write_bytes(data)
        places = {part: str(tmp_path / f"{name}.{part}") for part in given}
        return Parcel(sha256_bytes(manifest), places)

    return make


@pytest.fixture
def table(maker: Any, parcel: Callable[..., Parcel], tmp_path: Path) -> Table:  # noqa: ANN401 - Maker
    trust = tmp_path / "device" / "trust"
    trust.mkdir(parents=True)
    (trust / "allowed_signers").write_text(maker.signers())
    return Table(tmp_path, parcel("old", counter=1), parcel("new", counter=2))


def check(outcomes: Sequence[Outcome], old: str | None, new: str) -> Counter[str]:
    """Check every case; return how many served what after the fault."""
    names = {old: "old", new: "new"}
    served: Counter[str] = Counter()
    broken = []
    for found in outcomes:
        ended = (
            (found["again"][:1], found["at_last"], found["left"]) if isinstance(found["again"], list) else ()
        )
        if str(found["after"]) in map(str, names) and ended == ([0], new, []):
            served[names[found["after"]]] += 1
        else:
            broken.append(found)
    assert not broken, json.dumps(broken, indent=1)
    return served


def test_every_state_and_every_fault(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    cases = []
    for state in STATES:
        for fault in FAULTS:
            case = table.new.case(
                *(["--confirm-command", "false"] if state == "rollback" else []), state=state, fault=fault
            )
            if (state, fault) == ("begin", "bad signature"):
                case["given"] = {**case["given"], "begin": case["given"]["forged"]}
            cases.append(case)
    outcomes = table.run(cases)
    served = check(outcomes, table.old.digest, table.new.digest)
    ended = Counter(
        str(found["first"][0]) if isinstance(found["first"], list) else "killed" for found in outcomes
    )
    with capsys.disabled():
        print(_figures("states x faults", outcomes, served), dict(ended))
        for found in outcomes:
            print(found["case"], found["first"], found["after"] == table.new.digest, found["failed"])


def _figures(name: str, outcomes: Sequence[Outcome], served: Counter[str]) -> str:
    parts = ", ".join(f"{what} {count}" for what, count in sorted(served.items()))
    return f"\n{name}: {len(outcomes)} cases; served afterwards: {parts}, neither 0; converged: all"
