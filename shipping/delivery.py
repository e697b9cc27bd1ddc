"""One bundle to one device, step by step; each step starts from what the device says it holds.

survey, trust, bootstrap, agent, probe, fit, begin, send, install, collect. What refuses comes before what
sends: not a byte of the bundle goes to a device that it does not fit or that does not trust its signer.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from resedge.artifacts import sha256_bytes
from resedge.engines import EngineName
from resedge.errors import InputRefused, MachineFailure, RuntimeUnavailable
from resedge.shipping import fitting, remote, signing, wheels, wire
from resedge.shipping.parcels import Parcel
from resedge.shipping.remote import Remote, Survey
from resedge.shipping.wheels import Wheels

# What must stay free on a device's disk, and what a process needs beside an engine: the libraries.
SPARE_DISK_BYTES: Final = 64 << 20
BASE_MEMORY_BYTES: Final = 128 << 20

_MOST_ROUNDS: Final = 5


class Watch(Protocol):
    """Who is told how far a device is."""

    def step(self, text: str) -> None:
        """Say what is being done."""

    def count(self, total: int) -> None:
        """Say how many bytes are about to be sent."""

    def sent(self, size: int) -> None:
        """Say that so many more bytes are sent."""


@dataclass(frozen=True)
class Order:
    """How a bundle is to be installed.

    `trust` is a public key whose signatures the device shall accept; `keep` how many releases stay there.
    """

    engine: EngineName | None = None
    limits: wire.Limits = field(default_factory=wire.Limits)
    confirm_command: str | None = None
    trust: Path | None = None
    replace_trust: bool = False
    wheels: Wheels | None = None
    keep: int = 3
    dry_run: bool = False


@dataclass(frozen=True)
class Delivered:
    """What came of it on one device.

    `plan` says what would be sent by a dry run. `facts` is None where the agent is not there yet, and
    `installed` where nothing was to be installed.
    """

    survey: Survey
    facts: wire.Facts | None
    engine: EngineName | None
    installed: wire.Installed | None
    plan: tuple[str, ...] = ()


async def deliver(parcel: Parcel, device: Remote, order: Order, watch: Watch) -> Delivered:
    """Bring a bundle onto a device and have it installed there; a second time does what is left.

    Raises:
        ResedgeError: A refusal, of the workstation or of the device, or what broke.
    """
    watch.step("surveying")
    survey = await device.survey()
    remote.check_base(survey, device.where)
    await asyncio.to_thread(_check_trust, parcel, survey, order, device.where)
    if order.dry_run:
        return await _rehearse(parcel, device, survey, order)
    await _prepare(parcel, device, survey, order, watch)
    watch.step("probing")
    facts = await device.ask(wire.Facts, "probe")
    engine = _check_fit(parcel, facts, order, device.where)
    await _send(parcel, device, facts, watch)
    installed = await _install(parcel, device, order, watch)
    if installed.outcome != "rejected":
        await device.ask(wire.Collected, "collect", "--keep", str(order.keep))
    return Delivered(survey, facts, engine, installed)


# --- before anything is sent ---------------------------------------------------------------------


def _check_trust(parcel: Parcel, survey: Survey, order: Order, where: str) -> None:
    """Refuse a bundle that the device would refuse, from the keys that it trusts or is to trust.

    Raises:
        InputRefused: It trusts no key, another key than the one to be trusted, or not the bundle's signer.
    """
    wanted = signing.allowed_signers(order.trust) if order.trust else None
    signers = wanted if order.replace_trust and wanted else survey.signers or wanted
    if signers is None:
        raise InputRefused(
            "trusts no key yet.", where=where, cure="Have it trust the owner's key once: --trust KEY.pub."
        )
    if wanted is not None and wanted not in signers.splitlines(keepends=True):
        raise remote.another_key(where)
    with tempfile.TemporaryDirectory(prefix="resedge-signers-") as folder:
        path = Path(folder) / "allowed_signers"
        path.write_text(signers, encoding="utf-8")
        for data, signature, namespace, what in (
            (parcel.manifest, parcel.signature, signing.BUNDLE_NAMESPACE, "the bundle"),
            (parcel.agent, parcel.agent_signature, signing.AGENT_NAMESPACE, "the bundle's agent"),
        ):
            signing.verify(data, signature, path, namespace, f"{where}: {what}")


def _check_fit(parcel: Parcel, facts: wire.Facts, order: Order, where: str) -> EngineName:
    """Return the engine that is to run there.

    Raises:
        InputRefused: The bundle does not fit, is older than what was there, or has expired there.
        RuntimeUnavailable: A library is missing.
        MachineFailure: There is too little memory.
    """
    manifest, status = parcel.bundle.manifest, facts.status
    if facts.numpy is None:
        raise RuntimeUnavailable(
            "has no numpy.", where=where, cure="Install it there, or send wheels: --bootstrap WHEELS."
        )
    try:
        engine = fitting.choose(manifest, facts, order.engine)
    except (InputRefused, RuntimeUnavailable) as error:
        raise type(error)(error.what, where=where, cure=error.cure) from error
    known = {release.digest for release in status.releases}
    if manifest.counter < status.counter and parcel.digest not in known:
        raise InputRefused(
            f"has had a bundle with counter {status.counter}; this one has {manifest.counter}.",
            where=where,
            cure="Sign the bundle again, or go back on the device: resedge rollback HOST.",
        )
    if manifest.expires is not None and manifest.expires <= max(facts.clock, status.newest_signed or ""):
        raise InputRefused(
            f"its clock says {facts.clock}, and the bundle expired on {manifest.expires}.",
            where=where,
            cure="Set the clock, or sign the bundle again.",
        )
    needed = _memory_needed(parcel, engine)
    if facts.memory_available < needed:
        raise MachineFailure(
            f"has {_megabytes(facts.memory_available)} of memory to spare; the engine needs about "
            f"{_megabytes(needed)}.",
            where=where,
            cure="End other programs there, or choose a smaller engine with --backend.",
        )
    return engine


def _memory_needed(parcel: Parcel, engine: EngineName) -> int:
    """Return what an engine takes, roughly: twice its files, as read and as unpacked, and the libraries."""
    sizes = {file.sha256: file.size for file in parcel.files}
    names = fitting.files_of(parcel.bundle.manifest, engine)
    return BASE_MEMORY_BYTES + 2 * sum(sizes[file.sha256] for file in names)


# --- sending -------------------------------------------------------------------------------------


async def _rehearse(parcel: Parcel, device: Remote, survey: Survey, order: Order) -> Delivered:
    """Say what would be sent, from facts alone; the agent is asked only where it is there already."""
    plan = []
    if order.trust and survey.signers != signing.allowed_signers(order.trust):
        plan.append(f"the key {order.trust.name}, to be trusted there")
    if order.wheels:
        plan.append(f"{len(order.wheels.files)} wheels, {_megabytes(order.wheels.size)}")
    if not _has_agent(parcel, survey):
        plan.append(f"the agent, {len(parcel.agent) / 1e3:.0f} kB; what it finds there is not known before")
    facts, engine = None, None
    if not plan:
        facts = await device.ask(wire.Facts, "probe")
        engine = _check_fit(parcel, facts, order, device.where)
    if facts is None or parcel.digest not in {release.digest for release in facts.status.releases}:
        plan.append(f"the bundle, at most {_megabytes(parcel.size)}")
        _check_disk(parcel.size, facts.disk_free if facts else survey.disk_free, device.where)
    return Delivered(survey, facts, engine, None, tuple(plan))


async def _prepare(parcel: Parcel, device: Remote, survey: Survey, order: Order, watch: Watch) -> None:
    """Bring there what the bundle needs: the key, the wheels, the agent."""
    if order.trust and (survey.signers is None or order.replace_trust):
        watch.step("installing the key")
        await device.trust(signing.allowed_signers(order.trust), replace=order.replace_trust)
    if order.wheels:
        await wheels.install(order.wheels, device, watch.step)
    if not _has_agent(parcel, survey):
        watch.step("sending the agent")
        await device.send_agent(parcel.agent, parcel.agent_signature)


def _has_agent(parcel: Parcel, survey: Survey) -> bool:
    return (survey.agent, survey.signature) == (parcel.agent_digest, sha256_bytes(parcel.agent_signature))


async def _send(parcel: Parcel, device: Remote, facts: wire.Facts, watch: Watch) -> None:
    """Send the chunks that the device does not hold, until it holds all.

    Raises:
        InputRefused: The device goes on refusing chunks.
        MachineFailure: The bundle does not fit on its disk.
    """
    watch.step("beginning")
    begun = await device.ask(wire.Begun, "begin", feed=parcel.request)
    missing = begun.missing
    _check_disk(begun.missing_bytes, facts.disk_free, device.where)
    refused: Sequence[str] = ()
    for _ in range(_MOST_ROUNDS):
        if not missing:
            return
        watch.step("sending")
        watch.count(parcel.size_of(missing))
        async with aclosing(parcel.frames(missing, watch.sent)) as frames:  # closes its file if it is cut off
            received = await device.ask(wire.Received, "receive", parcel.digest, feed=frames)
        missing, refused = received.missing, received.refused
    if missing:
        reason = "; ".join(refused) or "chunks got lost"
        raise InputRefused(
            f"did not take the bundle in {_MOST_ROUNDS} attempts ({reason}).",
            where=device.where,
            cure="See whether its disk and the connection are sound, and run the same command again.",
        )


async def _install(parcel: Parcel, device: Remote, order: Order, watch: Watch) -> wire.Installed:
    """Have the bundle installed; an engine that nobody named is the choice of the device, which keeps it."""
    arguments = ["install", parcel.digest]
    if order.engine:
        arguments += ["--backend", ":".join(order.engine)]
    if order.limits != wire.Limits():
        arguments += ["--limits", wire.limits_text(order.limits)]
    if order.confirm_command:
        arguments += ["--confirm-command", order.confirm_command]
    return await device.ask(wire.Installed, *arguments, on_progress=_steps(watch.step))


def _steps(step: Callable[[str], None]) -> Callable[[wire.Progress], None]:
    def told(progress: wire.Progress) -> None:
        count = f" {progress.done} of {progress.total}" if progress.total else ""
        step(f"{progress.state}{count}{f': {progress.message}' if progress.message else ''}")

    return told


def _check_disk(needed: int, free: int | None, where: str) -> None:
    if free is not None and needed and free < needed + SPARE_DISK_BYTES:
        raise MachineFailure(
            f"has {_megabytes(free)} free on its disk; {_megabytes(needed)} are to be sent, and "
            f"{_megabytes(SPARE_DISK_BYTES)} must stay free.",
            where=where,
            cure="Free some space there, and run the same command again.",
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
