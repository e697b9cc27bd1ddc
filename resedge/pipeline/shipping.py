"""`resedge ship`, `status` and `rollback`: the same thing on several devices side by side.

A device that fails stops no other; what came of each is a row, and the exit code is that of the worst.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Literal, Protocol, TypeVar

from resedge.artifacts import JsonValue, encode
from resedge.errors import DeviceBusy, DeviceUnreachable, InputRefused, ResedgeError, UsageError, worst
from resedge.pipeline.extras import require
from resedge.pipeline.keys import read_signed
from resedge.shipping import delivery, hosts, moments, parcels, wire
from resedge.shipping.delivery import Delivered, Order
from resedge.shipping.hosts import Host
from resedge.shipping.parcels import Parcel
from resedge.shipping.remote import Remote
from resedge.shipping.ssh import connected

Result = Literal["updated", "unchanged", "rehearsed", "rejected", "refused", "failed", "unreachable"]

REJECTED: Final = 1  # the exit code of a trial that failed: a verdict
SCHEMA: Final = 1

_ATTEMPTS: Final = 3  # in a row that get a device no further
_PAUSE_SECONDS: Final = 1.0
_RESULTS: Final[dict[str, Result]] = {
    "committed": "updated",
    "unchanged": "unchanged",
    "rejected": "rejected",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Reaching:
    """How devices are reached: the key to log in with, how many at once, seconds for each in all.

    `root` is resedge's folder on the devices, None: their own default; `python` runs the agent there.
    """

    identity: Path | None = None
    jobs: int = 16
    timeout: float = 1800.0
    root: str | None = None
    python: str = "python3"


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of one device: an answer, or an error."""

    host: str
    answer: T | None
    error: ResedgeError | None
    seconds: float
    sent_bytes: int = 0

    @property
    def failure(self) -> str:
        """The error in words, without the device's name; "" where there is none."""
        return str(self.error).removeprefix(f"{self.host}: ") if self.error else ""


@dataclass(frozen=True)
class Shipped:
    """What came of a shipment, device by device, in the order in which they were named."""

    outcomes: tuple[Outcome[Delivered], ...]
    document: JsonValue
    exit_code: int


class FleetReporter(Protocol):
    """Who is told how far each device is; `host` is as the user wrote it."""

    def step(self, host: str, text: str) -> None:
        """Say what is being done there."""

    def count(self, host: str, total: int) -> None:
        """Say how many bytes are about to be sent there."""

    def sent(self, host: str, size: int) -> None:
        """Say that so many more bytes are sent."""

    def done(self, host: str, text: str) -> None:
        """Say what came of it."""


class SilentFleet:
    """Reports to nobody."""

    def step(self, host: str, text: str) -> None:
        """Do nothing."""

    def count(self, host: str, total: int) -> None:
        """Do nothing."""

    def sent(self, host: str, size: int) -> None:
        """Do nothing."""

    def done(self, host: str, text: str) -> None:
        """Do nothing."""


def ship(
    bundle: Path,
    devices: Sequence[str],
    order: Order,
    reaching: Reaching,
    reporter: FleetReporter | None = None,
) -> Shipped:
    """Bring a signed bundle onto devices and have each build, try and serve it.

    Raises:
        UsageError: A device is named twice, or in another form than [user@]host[:port].
        InputRefused: The bundle is not signed, or has expired.
        StaleArtifact: A file of it has changed.
        RuntimeUnavailable: asyncssh is not installed.
    """
    targets = _parsed(devices)
    signed = read_signed(bundle)
    _demand_time_left(signed.manifest.expires, bundle)
    parcel = parcels.wrap(signed)

    async def deliver(host: Host, told: _Told) -> Delivered:
        async with connected(host, reaching.identity) as device:
            told.connected = True
            there = Remote(device, reaching.root, reaching.python, parcel.agent_digest)
            return await delivery.deliver(parcel, there, order, told)

    outcomes = asyncio.run(_on_all(targets, deliver, reaching, reporter or SilentFleet(), _sentence))
    return Shipped(outcomes, _document(parcel, outcomes), worst_of(outcomes))


def status(
    devices: Sequence[str], reaching: Reaching, reporter: FleetReporter | None = None
) -> tuple[Outcome[wire.Status], ...]:
    """Ask devices what they serve.

    Raises:
        UsageError, RuntimeUnavailable: As `ship`.
    """

    async def ask(host: Host, told: _Told) -> wire.Status:
        async with connected(host, reaching.identity) as device:
            told.connected = True
            return await Remote(device, reaching.root, reaching.python).ask(wire.Status, "status")

    return asyncio.run(
        _on_all(_parsed(devices), ask, reaching, reporter or SilentFleet(), lambda _: "answered")
    )


def rollback(
    devices: Sequence[str], digest: str | None, reaching: Reaching, reporter: FleetReporter | None = None
) -> tuple[Outcome[wire.RolledBack], ...]:
    """Have devices serve a release again that was committed on them: the one before, or that of a digest.

    Raises:
        UsageError, RuntimeUnavailable: As `ship`.
    """

    async def turn(host: Host, told: _Told) -> wire.RolledBack:
        async with connected(host, reaching.identity) as device:
            told.connected = True
            remote = Remote(device, reaching.root, reaching.python)
            release = [await _release_of(remote, digest)] if digest else []
            return await remote.ask(wire.RolledBack, "rollback", *release)

    def said(answer: wire.RolledBack) -> str:
        return f"serves {answer.serving.digest[:12]}"

    return asyncio.run(_on_all(_parsed(devices), turn, reaching, reporter or SilentFleet(), said))


async def _release_of(remote: Remote, beginning: str) -> str:
    """Return the digest of the one release on a device that begins so.

    Raises:
        InputRefused: None does, or several do.
    """
    releases = (await remote.ask(wire.Status, "status")).releases
    found = sorted({release.digest for release in releases if release.digest.startswith(beginning)})
    if len(found) != 1:
        there = ", ".join(release.digest[:12] for release in releases) or "none"
        raise InputRefused(
            f"has {len(found)} releases that begin with {beginning!r}.",
            where=remote.where,
            cure=f"It has: {there}.",
        )
    return found[0]


def result_of(outcome: Outcome[Delivered]) -> Result:
    """Return what came of a device, in a word."""
    if outcome.answer is not None:
        installed = outcome.answer.installed
        return _RESULTS[installed.outcome] if installed else "rehearsed"
    if isinstance(outcome.error, DeviceUnreachable):
        return "unreachable"
    return "refused" if isinstance(outcome.error, InputRefused) else "failed"


def exit_code(outcome: Outcome[T]) -> int:
    """Return the exit code that one device comes to."""
    if outcome.error is not None:
        return outcome.error.exit_code
    installed = outcome.answer.installed if isinstance(outcome.answer, Delivered) else None
    return REJECTED if installed and installed.outcome == "rejected" else 0


def engine_of(outcome: Outcome[Delivered]) -> str | None:
    """Return the engine that was tried on a device, or that would be; None where it did not come to that."""
    answer = outcome.answer
    if answer is None:
        return None
    trial = answer.installed.trial if answer.installed else None
    return trial.engine if trial else ":".join(answer.engine) if answer.engine else None


def worst_of(outcomes: Sequence[Outcome[T]]) -> int:
    """Return the exit code of the worst of several devices."""
    return worst(exit_code(outcome) for outcome in outcomes)


def answers_document(outcomes: Sequence[Outcome[T]]) -> JsonValue:
    """Return what devices answered as JSON."""
    rows = [
        {
            "host": outcome.host,
            "exit_code": exit_code(outcome),
            "reason": outcome.failure,
            "answer": encode(outcome.answer),
        }
        for outcome in outcomes
    ]
    return {"schema": SCHEMA, "devices": rows}


def reason_of(outcome: Outcome[Delivered]) -> str:
    """Say why a device is as it is; "" where nothing is to be said."""
    if outcome.error is not None:
        return outcome.failure
    assert outcome.answer is not None
    installed = outcome.answer.installed
    if installed is None:
        return f"would be sent: {'; '.join(outcome.answer.plan) or 'nothing'}"
    return installed.reason or ""


# --- side by side --------------------------------------------------------------------------------


@dataclass
class _Told:
    """What is known of a device's progress, passed on to the reporter."""

    host: str
    reporter: FleetReporter
    total_sent: int = 0
    connected: bool = False
    broken: bool = False
    missing: int | None = None
    further: bool = False  # whether the device has come to hold more, by its own account

    def step(self, text: str) -> None:
        self.reporter.step(self.host, text)

    def count(self, total: int) -> None:
        self.further = self.missing is None or total < self.missing
        self.missing = total
        self.reporter.count(self.host, total)

    def sent(self, size: int) -> None:
        self.total_sent += size
        self.reporter.sent(self.host, size)


async def _on_all(
    targets: Sequence[Host],
    task: Callable[[Host, _Told], Awaitable[T]],
    reaching: Reaching,
    reporter: FleetReporter,
    sentence: Callable[[T], str],
) -> tuple[Outcome[T], ...]:
    """Do a task on every device, so many at once; a defect is raised when all have ended."""
    room = asyncio.Semaphore(reaching.jobs)

    async def one(host: Host) -> Outcome[T]:
        async with room:
            outcome = await _outcome(host, task, reaching.timeout, reporter)
            reporter.done(host.text, outcome.failure or _said(outcome, sentence))
            return outcome

    found = await asyncio.gather(*(one(host) for host in targets), return_exceptions=True)
    for item in found:
        if isinstance(item, BaseException):
            raise item
    return tuple(item for item in found if isinstance(item, Outcome))


def _said(outcome: Outcome[T], sentence: Callable[[T], str]) -> str:
    assert outcome.answer is not None
    return sentence(outcome.answer)


async def _outcome(
    host: Host, task: Callable[[Host, _Told], Awaitable[T]], timeout: float, reporter: FleetReporter
) -> Outcome[T]:
    told, began = _Told(host.text, reporter), time.monotonic()
    answer, error = None, None
    try:
        answer = await asyncio.wait_for(_persistently(task, host, told), timeout)
    except ResedgeError as caught:
        error = caught
    except asyncio.TimeoutError:
        error = DeviceUnreachable(
            f"was not done within {timeout:g} seconds.",
            where=host.text,
            cure="Run the same command again, or allow more with --timeout.",
        )
    return Outcome(host.text, answer, error, time.monotonic() - began, told.total_sent)


async def _persistently(task: Callable[[Host, _Told], Awaitable[T]], host: Host, told: _Told) -> T:
    """Do a task again when its connection broke, as long as that gets it further, or for a few times.

    A device that could not be reached in the first place is not tried again. The agent that a broken
    connection left behind brings its work to an end, which is waited for.
    """
    idle = 0
    while True:
        told.further = False
        try:
            return await task(host, told)
        except DeviceUnreachable:
            idle = 0 if told.further else idle + 1
            if not told.connected or idle == _ATTEMPTS:
                raise
            told.broken = True
            told.step("the connection broke; once more")
        except DeviceBusy:
            if not told.broken:
                raise
            told.step("the agent of the broken connection is still at work")
        await asyncio.sleep(_PAUSE_SECONDS * (idle + 1))


# --- parsing and saying --------------------------------------------------------------------------


def _parsed(devices: Sequence[str]) -> tuple[Host, ...]:
    require("reaching devices", "ship")
    targets = tuple(hosts.parse(text) for text in devices)
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"{target.text} is named twice.")
    return targets


def _demand_time_left(expires: str | None, bundle: Path) -> None:
    if expires is not None and moments.from_text(expires, f"{bundle}: expires") <= moments.now():
        raise InputRefused(
            f"has expired on {expires}.", where=str(bundle), cure="Sign it again with `resedge keys sign`."
        )


def _sentence(delivered: Delivered) -> str:
    installed = delivered.installed
    if installed is None:
        return f"would be sent: {'; '.join(delivered.plan) or 'nothing'}"
    serving = f"{(installed.serving or 'nothing')[:12]} serves"
    reason = f": {installed.reason}" if installed.reason else ""
    return f"{_RESULTS[installed.outcome]}, {serving}{reason}"


def _document(parcel: Parcel, outcomes: Sequence[Outcome[Delivered]]) -> JsonValue:
    return {
        "schema": SCHEMA,
        "bundle": {
            "model": parcel.bundle.manifest.model.name,
            "digest": parcel.digest,
            "counter": parcel.bundle.manifest.counter,
            "bytes": parcel.size,
        },
        "devices": [_row(outcome) for outcome in outcomes],
    }


def _row(outcome: Outcome[Delivered]) -> JsonValue:
    answer = outcome.answer
    return {
        "host": outcome.host,
        "result": result_of(outcome),
        "exit_code": exit_code(outcome),
        "reason": reason_of(outcome),
        "engine": engine_of(outcome),
        "installed": encode(answer.installed) if answer else None,
        "facts": encode(answer.facts) if answer else None,
        "sent_bytes": outcome.sent_bytes,
        "seconds": round(outcome.seconds, 3),
    }
