"""Several devices side by side: as many at once as there is room for, each with an outcome of its own.

A device that fails stops no other. One whose connection breaks is tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from resedge.errors import DeviceBusy, DeviceUnreachable, ResedgeError, UsageError
from resedge.pipeline.extras import require
from resedge.shipping import hosts
from resedge.shipping.hosts import Host
from resedge.shipping.remote import Remote
from resedge.shipping.ssh import connected

_ATTEMPTS: Final = 3  # in a row that get a device no further
_PAUSE_SECONDS: Final = 1.0

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

    def demanded(self) -> T:
        """Return the answer.

        Raises:
            ResedgeError: The error in its place.
        """
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer


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


@dataclass
class Told:
    """What is known of a device's progress, passed on to the reporter.

    `further` says whether the device has come to hold more, by its own account, since that was last asked.
    """

    host: str
    reporter: FleetReporter
    sent_bytes: int = 0
    connected: bool = False
    broken: bool = False
    further: bool = False
    _missing: int | None = None

    def step(self, text: str) -> None:
        """Say what is being done."""
        self.reporter.step(self.host, text)

    def count(self, total: int) -> None:
        """Say how many bytes are about to be sent."""
        self.further = self._missing is None or total < self._missing
        self._missing = total
        self.reporter.count(self.host, total)

    def sent(self, size: int) -> None:
        """Say that so many more bytes are sent."""
        self.sent_bytes += size
        self.reporter.sent(self.host, size)


Task = Callable[[Remote, Told], Awaitable[T]]


def targets_of(devices: Sequence[str]) -> tuple[Host, ...]:
    """Return the devices that a user names.

    Raises:
        UsageError: One is named twice, or in another form than [user@]host[:port].
        RuntimeUnavailable: asyncssh is not installed.
    """
    require("reaching devices", "ship")
    targets = tuple(hosts.parse(text) for text in devices)
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"{target.text} is named twice.")
    return targets


def on_all(
    targets: Sequence[Host],
    task: Task[T],
    reaching: Reaching,
    reporter: FleetReporter | None = None,
    *,
    said: Callable[[T], str],
    agent: str | None = None,
) -> tuple[Outcome[T], ...]:
    """Do a task on every device; a defect is raised when all have ended.

    Args:
        targets: The devices.
        task: What is done on a device that is connected.
        reaching: How devices are reached, and how many at once.
        reporter: Who is told; nobody by default.
        said: An answer in words.
        agent: The digest of the agent to run there; None: the newest that is there.
    """
    return asyncio.run(_all(targets, task, reaching, reporter or SilentFleet(), said, agent))


async def _all(
    targets: Sequence[Host],
    task: Task[T],
    reaching: Reaching,
    reporter: FleetReporter,
    said: Callable[[T], str],
    agent: str | None,
) -> tuple[Outcome[T], ...]:
    room = asyncio.Semaphore(reaching.jobs)

    async def one(host: Host) -> Outcome[T]:
        async with room:
            outcome = await _outcome(host, task, reaching, reporter, agent)
        reporter.done(host.text, outcome.failure or said(outcome.demanded()))
        return outcome

    found = await asyncio.gather(*(one(host) for host in targets), return_exceptions=True)
    for item in found:
        if isinstance(item, BaseException):
            raise item
    return tuple(item for item in found if isinstance(item, Outcome))


async def _outcome(
    host: Host, task: Task[T], reaching: Reaching, reporter: FleetReporter, agent: str | None
) -> Outcome[T]:
    told, began = Told(host.text, reporter), time.monotonic()
    answer: T | None = None
    error: ResedgeError | None = None
    try:
        answer = await asyncio.wait_for(_persistently(host, task, reaching, told, agent), reaching.timeout)
    except ResedgeError as caught:
        error = caught
    except asyncio.TimeoutError:
        error = DeviceUnreachable(
            f"was not done within {reaching.timeout:g} seconds.",
            where=host.text,
            cure="Run the same command again, or allow more with --timeout.",
        )
    return Outcome(host.text, answer, error, time.monotonic() - began, told.sent_bytes)


async def _persistently(host: Host, task: Task[T], reaching: Reaching, told: Told, agent: str | None) -> T:
    """Do a task again when its connection broke, as long as that gets it further, or for a few times.

    A device that could not be reached in the first place is not tried again. The agent that a broken
    connection left behind brings its work to an end, which is waited for.
    """
    idle = 0
    while True:
        told.further = False
        try:
            async with connected(host, reaching.identity) as device:
                told.connected = True
                return await task(Remote(device, reaching.root, reaching.python, agent), told)
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
