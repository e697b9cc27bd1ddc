"""Run the agent's commands with a fault in them, each case in a process of its own, and look what serves.

    faults.py ASSIGNMENT.json          prints one JSON list of outcomes

This process has one thread and forks for each case: no interpreter is started, and SIGKILL is SIGKILL. The
file system, the journal, the lock and the signatures are real; what stands in for the runtime is `Bench`,
which checks the bytes that it is given. Nothing of the agent knows of any of this: steps are counted by an
audit hook, and states by looking at the journal as it is written.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from resedge import bundle as bundles
from resedge.agent import children, commands, engines, journal, releases
from resedge.agent.journal import Journal
from resedge.agent.layout import Layout
from resedge.artifacts import Artifact, Engine
from resedge.errors import MachineFailure, RuntimeUnavailable
from resedge.shipping import framing, moments, signing, wire

STEPS = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate"}
TAKES_SPACE = {"os.mkdir", "os.link", "os.symlink"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NOW = moments.now
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where a sync costs nothing


@dataclass
class World:
    """What the stand-ins do: all is well until a fault changes it."""

    memory: bool = True
    runtime: bool = True
    agreement: float = 1.0
    milliseconds: float = 1.0
    clock: Callable[[], datetime] = NOW


class Bench:
    """Stands in for the agent's children."""

    def __init__(self, world: World) -> None:
        self.world = world

    def ask(self, kind: type[Any], request: Any, seconds: float | None = None) -> Any:  # noqa: ANN401
        answer = getattr(self, type(request).__name__.lower())(request)
        assert isinstance(answer, kind)
        return answer

    def probe(self, request: children.Probe) -> children.Probed:
        absent = None if self.world.runtime else "it was taken away"
        version = "1" if self.world.runtime else None
        precisions = ("fp32",) if self.world.runtime else ()
        return children.Probed(
            tuple(wire.RuntimeFacts(name, version, "CPU", precisions, absent) for name in request.runtimes)
        )

    def build(self, request: children.Build) -> Engine:
        self._demand()
        folder = Path(request.folder)
        path = folder / request.out / "engine.bin"
        path.write_bytes(request.graph.under(folder).read())
        made = Artifact(path, request.graph.sha256, "any").relative_to(folder)
        return Engine(made, request.runtime, "1", "CPU", request.precision)

    def replay(self, request: children.Replay) -> wire.Trial:
        self._demand()
        folder = Path(request.folder)
        engine = bundles.resolve(request.engine, folder)
        content = engine.artifact.read()
        request.golden.under(folder).read()
        agreement = 0.0 if b"wrong" in content else self.world.agreement
        limit, took = request.limits.p50_ms, self.world.milliseconds
        reasons = ["the golden images do not agree"] if agreement < 1 else []
        reasons += ["too slow"] if limit is not None and took > limit else []
        return wire.Trial(
            *(f"{engine.runtime}:{engine.precision}", 1, 12, agreement, 1.0, 50, took, took, 1 << 20),
            *(request.limits, tuple(reasons), moments.to_text(NOW())),
        )

    def _demand(self) -> None:
        if not self.world.memory:
            raise MachineFailure("the child was killed (SIGKILL), as happens when memory runs out.")
        if not self.world.runtime:
            raise RuntimeUnavailable("the runtime was taken away.")


# --- faults --------------------------------------------------------------------------------------


def kill(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Faults:
    """What can go wrong, by name; each is let loose at one moment, and stays."""

    def __init__(self, layout: Layout, world: World, digest: str) -> None:
        self.layout, self.world, self.digest = layout, world, digest
        self.full = False

    def loose(self, name: str) -> None:
        getattr(self, name.replace(" ", "_"))()

    def killed_agent(self) -> None:
        kill()

    def killed_controller(self) -> None:
        """The channel closes: nobody reads any more, nothing comes any more, and a hang-up is heard."""
        read, write = os.pipe()
        os.close(read)
        for descriptor in (1, 2):
            os.dup2(write, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.kill(os.getpid(), signal.SIGHUP)

    def network_cut(self) -> None:
        """Nothing comes any more, and nothing says so: the agent's patience ends."""
        read, _write = os.pipe()
        os.dup2(read, 0)

    def disk_full(self) -> None:
        self.full = True

    def bad_signature(self) -> None:
        for folder in (self.layout.arriving(self.digest), self.layout.bundle(self.digest)):
            path = folder / bundles.SIGNATURE
            if path.exists():  # both names may be one file
                text = path.read_bytes()
                path.unlink()
                path.write_bytes(text[:60] + bytes([text[60] ^ 1]) + text[61:])

    def wrong_version(self) -> None:
        self.world.runtime = False

    def build_out_of_memory(self) -> None:
        self.world.memory = False

    def golden_mismatch(self) -> None:
        self.world.agreement = 0.5

    def latency_over_limit(self) -> None:
        self.world.milliseconds = 1e6

    def wrong_clock(self) -> None:
        self.world.clock = lambda: datetime(2099, 1, 1, tzinfo=timezone.utc)


FAULTS = tuple(
    name.replace("_", " ") for name in vars(Faults) if name not in ("loose",) and not name.startswith("_")
)


class Steps:
    """Counts what changes the file system below the root, and does something before one of it."""

    def __init__(self, root: Path, at: int | None, mode: str, faults: Faults) -> None:
        self.root, self.at, self.mode, self.faults = str(root), at, mode, faults
        self.count = 0
        self.quiet = False

    def install(self) -> None:
        sys.addaudithook(self.hear)
        for name in ("fsync", "pwrite"):
            real = getattr(os, name)

            def counted(*arguments: Any, real: Any = real, name: str = name) -> Any:  # noqa: ANN401
                self.step(takes_space=name == "pwrite")
                return real(*arguments)

            setattr(os, name, counted)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.quiet:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and flags & WRITES and os.fsdecode(path).startswith(self.root):
                self.step(takes_space=True)
        elif event in STEPS and self._is_ours([str(argument) for argument in arguments[:2]]):
            self.step(takes_space=event in TAKES_SPACE)

    def _is_ours(self, names: list[str]) -> bool:
        """Whether a step is below the root, or in a folder that is open there; ssh-keygen's files are not."""
        relative = not names[0].startswith("/") and names[0] not in ("data", "data.sig")
        return relative or any(name.startswith(self.root) for name in names)

    def step(self, *, takes_space: bool) -> None:
        if self.quiet:
            return
        self.count += 1
        if self.faults.full and takes_space:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.count != self.at:
            return
        if self.mode == "kill":
            kill()
        if self.mode == "io":
            raise OSError(errno.EIO, "Input/output error")
        self.faults.full = True
        if takes_space:
            raise OSError(errno.ENOSPC, "No space left on device")


# --- one case ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A fault: by the `state` that it comes in, or before the numbered `step`."""

    commands: list[list[str]]
    digest: str
    given: dict[str, str]
    state: str | None = None
    fault: str | None = None
    step: int | None = None
    mode: str = "kill"


def run(layout: Layout, case: Case, world: World) -> tuple[int, int]:
    """Obey the case's commands; return the exit code of the last and the number of steps."""
    faults = Faults(layout, world, case.digest)
    steps = Steps(layout.root, case.step, case.mode, faults)
    children.ask = Bench(world).ask
    moments.now = lambda: world.clock()
    if case.fault is not None:
        _watch_states(layout, case, faults, steps)
    steps.install()
    code = 0
    for arguments in case.commands:
        _feed(case.given.get(arguments[0]))
        if case.fault and case.state == arguments[0] and arguments[0] in ("begin", "receive"):
            _cut_short(case, faults, steps)
        code = commands.run([*arguments[:1], "--root", str(layout.root), *arguments[1:]])
        if code:
            break
    return code, steps.count


def _watch_states(layout: Layout, case: Case, faults: Faults, steps: Steps) -> None:
    """Let the fault loose as soon as the journal says that the state has begun."""
    real, loose = journal.write, [False]

    def write(layout: Layout, journal: Journal) -> Journal:
        written = real(layout, journal)
        if journal.operation and journal.operation.state == case.state and not loose[0]:
            loose[0] = True
            steps.quiet = True
            faults.loose(str(case.fault))
            steps.quiet = False
        return written

    journal.write = write


def _feed(given: str | None) -> None:
    os.dup2(os.open(given or os.devnull, os.O_RDONLY), 0)


def _cut_short(case: Case, faults: Faults, steps: Steps) -> None:
    """Let the fault loose when half of what is sent has been read, while the agent waits for more."""
    half, progress = os.fstat(0).st_size // 2, {"read": 0, "loose": False}
    real_read, real_select = os.read, select.select

    def read(descriptor: int, count: int) -> bytes:
        data = real_read(descriptor, min(count, half) if descriptor == 0 else count)
        progress["read"] += len(data)
        return data

    def wait(*arguments: Any) -> Any:  # noqa: ANN401
        if progress["read"] >= half and not progress["loose"]:
            progress["loose"] = steps.quiet = True
            faults.loose(str(case.fault))
            steps.quiet = False
        return real_select(*arguments)

    os.read, select.select = read, wait


def in_child(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - what is JSON
    """Do something in a fork; return what it returned, or the signal or the error that ended it."""
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            try:
                answer.write(json.dumps(work()).encode())
                answer.flush()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
                answer.write(json.dumps({"raised": f"{type(error).__name__}: {error}"}).encode())
                answer.flush()
                os._exit(99)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        answer.seek(0)
        text = answer.read()
    return json.loads(text) if text else {"signal": os.WTERMSIG(status)}


def serves(layout: Layout) -> str | None:
    """Return the digest of the release that serves, its signature and its bytes checked, as one opens it."""
    digest = layout.serving()
    if digest is None:
        return None
    releases.verify(layout, digest)
    engine = bundles.resolve(engines.read_engine(layout, digest), layout.release(digest))
    for part in (engine.artifact, *engine.companions):
        part.read()
    return digest


def left_over(layout: Layout) -> list[str]:
    """Return what an operation that has ended must not leave."""
    known = journal.read(layout)
    kept = {release.digest for release in known.releases}
    found = [str(path.relative_to(layout.root)) for path in layout.root.rglob("*.resedge-aside")]
    found += [f"incoming/{path.name}" for path in layout.incoming.iterdir()]
    found += [f"releases/{p.name}" for p in layout.releases.iterdir() if p.name not in kept]
    return found + ([f"operation {known.operation.state}"] if known.operation else [])


def outcome(template: Path, case: Case, rerun: Case) -> dict[str, Any]:
    """Run a case on a copy of a device, look what serves, run it again without the fault, and look again."""
    with tempfile.TemporaryDirectory(prefix="resedge-faults-", dir=FAST) as folder:
        layout = Layout(Path(folder) / "device")
        shutil.copytree(template, layout.root, symlinks=True, copy_function=shutil.copy)
        first = in_child(lambda: run(layout, case, World()))
        after = in_child(lambda: serves(layout))
        again = in_child(lambda: run(layout, rerun, World()))
        at_last = in_child(lambda: serves(layout))
        left = in_child(lambda: left_over(layout))
        failed = in_child(lambda: _failure(layout))
    return {
        "case": f"{case.fault} in {case.state}" if case.fault else f"{case.mode} at {case.step}",
        **{"first": first, "after": after, "again": again, "at_last": at_last, "left": left},
        "failed": failed,
    }


def _failure(layout: Layout) -> str | None:
    failed = journal.read(layout).last_failure
    return failed.reason if failed else None


def remember_signatures(layout: Layout, requests: list[str]) -> None:
    """Have ssh-keygen check a signature that holds once for all cases; all others it checks each time."""
    real = signing.verify
    held: dict[tuple[bytes, bytes, bytes, str], str] = {}

    def verify(data: bytes, signature: bytes, signers: Path, namespace: str, where: str) -> str:
        key = (data, signature, signers.read_bytes(), namespace)
        return held.get(key) or real(data, signature, signers, namespace, where)

    for name in requests:
        request = framing.read_request(io.BytesIO(Path(name).read_bytes()).read)
        given = (request.manifest, request.signature)
        key = (*given, layout.signers.read_bytes(), signing.BUNDLE_NAMESPACE)
        held[key] = real(*given, layout.signers, signing.BUNDLE_NAMESPACE, name)
    signing.verify = verify


def main() -> None:
    assignment = json.loads(Path(sys.argv[1]).read_text())
    template = Path(assignment["template"])
    remember_signatures(Layout(template), assignment["requests"])
    for case in (Case(**fields) for fields in assignment["prepare"]):
        done = in_child(partial(run, Layout(template), case, World()))
        assert case.fault or done[0] == 0, f"the device cannot be prepared: {done}"
    rerun = Case(**assignment["rerun"])
    results = [outcome(template, Case(**case), rerun) for case in assignment["cases"]]
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
