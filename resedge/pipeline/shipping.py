"""`resedge ship`, `status` and `rollback`: the same thing on several devices side by side.

What came of each device is a row, and the exit code is that of the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from resedge.artifacts import JsonValue, encode
from resedge.errors import DeviceUnreachable, InputRefused, worst
from resedge.pipeline.fleets import FleetReporter, Outcome, Reaching, Told, on_all, targets_of
from resedge.pipeline.keys import read_signed
from resedge.shipping import delivery, moments, parcels, wire
from resedge.shipping.delivery import Delivered, Order
from resedge.shipping.parcels import Parcel
from resedge.shipping.remote import Remote

Result = Literal["updated", "unchanged", "rehearsed", "rejected", "refused", "failed", "unreachable"]

REJECTED: Final = 1  # the exit code of a trial that failed: a verdict
SCHEMA: Final = 1

_RESULTS: Final[dict[str, Result]] = {
    "committed": "updated",
    "unchanged": "unchanged",
    "rejected": "rejected",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Shipped:
    """What came of a shipment, device by device, in the order in which they were named."""

    outcomes: tuple[Outcome[Delivered], ...]
    document: JsonValue
    exit_code: int


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
    targets = targets_of(devices)
    signed = read_signed(bundle)
    _demand_time_left(signed.manifest.expires, bundle)
    parcel = parcels.wrap(signed)

    async def deliver(device: Remote, told: Told) -> Delivered:
        return await delivery.deliver(parcel, device, order, told)

    outcomes = on_all(targets, deliver, reaching, reporter, said=_sentence, agent=parcel.agent_digest)
    return Shipped(outcomes, _document(parcel, outcomes), worst_of(outcomes))


def status(
    devices: Sequence[str], reaching: Reaching, reporter: FleetReporter | None = None
) -> tuple[Outcome[wire.Status], ...]:
    """Ask devices what they serve.

    Raises:
        UsageError, RuntimeUnavailable: As `ship`.
    """

    async def ask(device: Remote, _: Told) -> wire.Status:
        return await device.ask(wire.Status, "status")

    return on_all(targets_of(devices), ask, reaching, reporter, said=lambda _: "answered")


def rollback(
    devices: Sequence[str], digest: str | None, reaching: Reaching, reporter: FleetReporter | None = None
) -> tuple[Outcome[wire.RolledBack], ...]:
    """Have devices serve a release again that was committed on them: the one before, or that of a digest.

    Raises:
        UsageError, RuntimeUnavailable: As `ship`.
    """

    async def turn(device: Remote, _: Told) -> wire.RolledBack:
        release = [await _release_of(device, digest)] if digest else []
        return await device.ask(wire.RolledBack, "rollback", *release)

    return on_all(
        targets_of(devices), turn, reaching, reporter, said=lambda a: f"{a.serving.digest[:12]} serves"
    )


async def _release_of(device: Remote, beginning: str) -> str:
    """Return the digest of the one release on a device that begins so.

    Raises:
        InputRefused: None does, or several do.
    """
    releases = (await device.ask(wire.Status, "status")).releases
    found = sorted({release.digest for release in releases if release.digest.startswith(beginning)})
    if len(found) != 1:
        there = ", ".join(release.digest[:12] for release in releases) or "none"
        raise InputRefused(
            f"has {len(found)} releases that begin with {beginning!r}.",
            where=device.where,
            cure=f"It has: {there}.",
        )
    return found[0]


def _demand_time_left(expires: str | None, bundle: Path) -> None:
    if expires is not None and moments.from_text(expires, f"{bundle}: expires") <= moments.now():
        raise InputRefused(
            f"has expired on {expires}.", where=str(bundle), cure="Sign it again with `resedge keys sign`."
        )


# --- what came of it -----------------------------------------------------------------------------


def result_of(outcome: Outcome[Delivered]) -> Result:
    """Return what came of a device, in a word."""
    if outcome.answer is not None:
        installed = outcome.answer.installed
        return _RESULTS[installed.outcome] if installed else "rehearsed"
    if isinstance(outcome.error, DeviceUnreachable):
        return "unreachable"
    return "refused" if isinstance(outcome.error, InputRefused) else "failed"


def engine_of(outcome: Outcome[Delivered]) -> str | None:
    """Return the engine that was tried on a device, or that would be; None where it did not come to that."""
    answer = outcome.answer
    if answer is None:
        return None
    trial = answer.installed.trial if answer.installed else None
    return trial.engine if trial else ":".join(answer.engine) if answer.engine else None


def reason_of(outcome: Outcome[Delivered]) -> str:
    """Say why a device is as it is; "" where nothing is to be said."""
    if outcome.answer is None:
        return outcome.failure
    installed = outcome.answer.installed
    if installed is None:
        return f"would be sent: {'; '.join(outcome.answer.plan) or 'nothing'}"
    return installed.reason or ""


def exit_code(outcome: Outcome[T]) -> int:
    """Return the exit code that one device comes to."""
    if outcome.error is not None:
        return outcome.error.exit_code
    installed = outcome.answer.installed if isinstance(outcome.answer, Delivered) else None
    return REJECTED if installed and installed.outcome == "rejected" else 0


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
