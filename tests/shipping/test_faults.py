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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resedge import bundle as bundles
from resedge.artifacts import sha256_bytes
from resedge.bundle import Bundle
from resedge.shipping import framing, wire
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

    def only(self, *command: str) -> Case:
        """Give one command."""
        return {"commands": [list(command)], "digest": self.digest, "given": {}}


@dataclass(frozen=True)
class Table:
    """Bundles, and devices that they are shipped to."""

    folder: Path
    signers: str
    old: Parcel
    new: Parcel
    wrong: Parcel

    def run(self, cases: Sequence[Case], prepare: Sequence[Case], rerun: Case) -> list[Outcome]:
        """Run each case, and then `rerun`, on a copy of a device that has been prepared."""
        template = self.folder / "device"
        shutil.rmtree(template, ignore_errors=True)
        (template / "trust").mkdir(parents=True)
        (template / "trust" / "allowed_signers").write_text(self.signers)
        assignment = {
            "template": str(template),
            "requests": [parcel.given["begin"] for parcel in (self.old, self.new, self.wrong)],
            "prepare": list(prepare),
            "rerun": rerun,
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
def table(maker: Any, tmp_path: Path) -> Table:  # noqa: ANN401 - Maker
    """Bundles whose networks nobody runs: the runtime is a stand-in."""

    def parcel(name: str, counter: int) -> Parcel:
        contents = {
            "onnx/fp32.onnx": name.encode() * 300_000,  # two chunks
            bundles.GOLDEN: b"golden",
            bundles.THRESHOLDS: b"thresholds",
        }
        bundle: Bundle = maker.bundle(contents, counter=counter)
        paths = {a.sha256: bundle.path / a.path for a in bundle.manifest.files}
        files = [split_file(path) for path in paths.values()]
        manifest, signature = (
            (bundle.path / part).read_bytes() for part in (bundles.MANIFEST, bundles.SIGNATURE)
        )
        frames = [
            framing.chunk_frame(file.sha256, index, paths[file.sha256].read_bytes()[start : start + length])
            for file in files
            for index, (start, length) in enumerate(map(file.span, range(len(file.chunks))))
        ]
        given = {
            "begin": framing.begin_request(manifest, signature, files),
            "forged": framing.begin_request(manifest, signature[::-1], files),
            "receive": b"".join(frames),
        }
        for part, data in given.items():
            (tmp_path / f"{name}.{part}").write_bytes(data)
        return Parcel(sha256_bytes(manifest), {part: str(tmp_path / f"{name}.{part}") for part in given})

    numbers = {"old": 1, "new": 2, "wrong": 2}
    return Table(tmp_path, maker.signers(), *(parcel(name, number) for name, number in numbers.items()))


def check(outcomes: Sequence[Outcome], served: Mapping[str | None, str], at_last: str | None) -> Counter[str]:
    """Check every case; return how many served what after the fault.

    Args:
        outcomes: Of the runner.
        served: What may serve after the fault, and its name.
        at_last: What must serve once all was done again without the fault.
    """
    counts: Counter[str] = Counter()
    broken = []
    for found in outcomes:
        after, again = found["after"], found["again"]
        is_whole = not isinstance(after, dict) and after in served  # otherwise it says what was wrong
        ended = (again[0], found["at_last"], found["left"]) if isinstance(again, list) else None
        if is_whole and ended == (0, at_last, []):
            counts[served[after]] += 1
        else:
            broken.append(found)
    assert not broken, json.dumps(broken, indent=1)
    return counts


def say(capsys: pytest.CaptureFixture[str], name: str, served: Counter[str]) -> None:
    """Print the figures of a table that has held."""
    with capsys.disabled():
        parts = ", ".join(f"{what} {count}" for what, count in sorted(served.items()))
        sys.stdout.write(f"\n{name}: {served.total()} cases; served: {parts}; neither: 0; not converged: 0\n")


def test_every_state_and_every_fault(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    cases = []
    for state in STATES:
        for fault in FAULTS:
            objection = ["--confirm-command", "false"] if state == "rollback" else []
            case = table.new.case(*objection, state=state, fault=fault)
            if (state, fault) == ("begin", "bad signature"):
                case["given"] = {**case["given"], "begin": case["given"]["forged"]}
            cases.append(case)
    outcomes = table.run(cases, [table.old.case()], table.new.case())
    served = check(outcomes, {table.old.digest: "old", table.new.digest: "new"}, table.new.digest)
    say(capsys, "10 states x 10 faults", served)
    for case, found in zip(cases, outcomes, strict=True):
        _check_exit(case["state"], case["fault"], found)


def _check_exit(state: str, fault: str, found: Outcome) -> None:
    """Check that a fault is told by its exit code, and one that comes too late to matter by none."""
    if fault == "killed agent":
        assert found["first"] == {"signal": 9}, found
        return
    after_transfer = STATES.index(state) >= STATES.index("stage")
    expected = {
        "killed controller": {0} if after_transfer else {5, 6},
        "network cut": {0} if after_transfer else {5, 6},
        "disk full": {6},
        "bad signature": {5},
        "wrong version": {4, 0} if state == "commit" else {4},
        "build out of memory": {6, 0} if state == "commit" else {6},
        "golden mismatch": {1, 0} if state == "commit" else {1},
        "latency over limit": {1} if STATES.index(state) <= STATES.index("trial") else {0},
        "wrong clock": {0} if after_transfer else {5},
    }[fault]
    if state == "rollback":  # entered since the owner's check failed
        expected = {6} if fault == "disk full" else {1}
    assert found["first"][0] in expected, found


MODES = ("kill", "full", "io")


@dataclass(frozen=True)
class Scenario:
    """Commands to a device that has been prepared, what may serve after a fault, and what at last."""

    prepare: list[Case]
    case: Case
    served: dict[str | None, str]
    at_last: str | None
    rerun: Case | None = None


def _scenarios(table: Table) -> dict[str, Scenario]:
    old, new = table.old, table.new
    either: dict[str | None, str] = {old.digest: "old", new.digest: "new"}
    objected = new.case("--confirm-command", "false")
    interrupted = new.case(state="confirm", fault="killed agent")
    return {
        "ship": Scenario([old.case()], new.case(), either, new.digest),
        "first ship": Scenario([], new.case(), {None: "nothing", new.digest: "new"}, new.digest),
        "a failing trial": Scenario([old.case()], table.wrong.case(), either, new.digest, new.case()),
        "a failing check": Scenario([old.case()], objected, either, new.digest, new.case()),
        "roll back": Scenario([old.case(), new.case()], new.only("rollback", old.digest), either, old.digest),
        "collect": Scenario([old.case(), new.case()], new.only("collect", "--keep", "1"), either, new.digest),
        "recover": Scenario([old.case(), interrupted], new.only("recover"), either, new.digest),
    }


def _every_step(table: Table, name: str, every: int, modes: Sequence[str]) -> Counter[str]:
    """Break a scenario at every so many steps, each way."""
    scenario = _scenarios(table)[name]
    rerun = scenario.rerun or scenario.case
    (whole,) = table.run([scenario.case], scenario.prepare, rerun)
    steps = whole["first"][1]
    assert steps > 4, whole
    cases = [
        {**scenario.case, "step": step, "mode": mode} for step in range(1, steps + 1, every) for mode in modes
    ]
    return check(table.run(cases, scenario.prepare, rerun), scenario.served, scenario.at_last)


@pytest.mark.parametrize("name", ["ship", "roll back", "collect", "recover"])
def test_a_kill_at_some_steps(table: Table, capsys: pytest.CaptureFixture[str], name: str) -> None:
    say(capsys, f"{name}, killed at every 9th step", _every_step(table, name, 9, ("kill",)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", ["ship", "first ship", "a failing trial", "a failing check", "roll back", "collect", "recover"]
)
def test_every_step_of_every_command(
    table: Table, capsys: pytest.CaptureFixture[str], name: str, mode: str
) -> None:
    say(capsys, f"{name}, {mode} at every step", _every_step(table, name, 1, (mode,)))
