"""Which bundles a device takes: signed by a key that it trusts, not expired, no older than what it had."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from resedge import bundle as bundles
from resedge.agent.journal import Journal
from resedge.agent.layout import Layout
from resedge.artifacts import sha256_bytes
from resedge.bundle import Manifest
from resedge.errors import InputRefused
from resedge.shipping import moments, signing

_SIGN_AGAIN = "Sign the bundle again on the workstation, and ship that."


def authentic(layout: Layout, manifest: bytes, signature: bytes) -> Manifest:
    """Return a manifest whose signature holds; not a byte of it is looked into before that.

    Raises:
        InputRefused: It has no valid signature of a key that is trusted here, or is no manifest.
    """
    where = f"manifest {sha256_bytes(manifest)[:12]}"
    signing.verify(manifest, signature, layout.signers, signing.BUNDLE_NAMESPACE, where)
    try:
        return bundles.parse(manifest.decode(), where)
    except UnicodeDecodeError as error:
        raise InputRefused("is not UTF-8 text.", where=where) from error


def read_authentic(layout: Layout, folder: Path) -> tuple[str, Manifest]:
    """Return the digest and the content of the signed manifest in a folder.

    Raises:
        InputRefused: As `authentic`, or it is not there.
    """
    manifest, signature = (_read(folder / name) for name in (bundles.MANIFEST, bundles.SIGNATURE))
    return sha256_bytes(manifest), authentic(layout, manifest, signature)


def admit(journal: Journal, digest: str, manifest: Manifest, clock: datetime) -> str:
    """Refuse an authentic manifest that has expired or is older than what was committed.

    A clock that was set back, or lost its battery, does not bring an old bundle back to life: expiry is
    judged by the later of the clock and the newest time that a trusted signer has put on a bundle.

    Args:
        journal: Of the device.
        digest: Of the manifest's bytes.
        manifest: What they say.
        clock: The device's own.

    Returns:
        The newest signed time that the device has now seen.

    Raises:
        InputRefused: As above; or it does not say when it was signed and when it expires.
    """
    where = f"manifest {digest[:12]}"
    if manifest.signing is None or manifest.signed_at is None or manifest.expires is None:
        raise InputRefused("does not say when it was signed and expires.", where=where, cure=_SIGN_AGAIN)
    _check_counter(journal, digest, manifest.counter, where)
    signed = moments.from_text(manifest.signed_at, f"{where}: signed_at")
    seen = [moments.from_text(journal.newest_signed, "state.json")] if journal.newest_signed else []
    now = max([clock, *seen])
    if moments.from_text(manifest.expires, f"{where}: expires") <= now:
        whose = "the clock of this device" if now == clock else "a newer bundle that was here"
        raise InputRefused(
            f"expired on {manifest.expires}; {whose} says {moments.to_text(now)}.",
            where=where,
            cure=_SIGN_AGAIN,
        )
    return moments.to_text(max([signed, *seen]))


def _check_counter(journal: Journal, digest: str, counter: int, where: str) -> None:
    if counter < journal.counter:
        raise InputRefused(
            f"has the counter {counter}, and {journal.counter} was committed here: it is a bundle of old.",
            where=where,
            cure="To go back to a release that is kept here: resedge rollback. Otherwise sign it again.",
        )
    if counter == journal.counter and digest != journal.counter_digest:
        raise InputRefused(
            f"has the counter {counter}, as another bundle that was committed here.",
            where=where,
            cure=_SIGN_AGAIN,
        )


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > bundles.MAX_MANIFEST_BYTES:
            raise InputRefused(f"has more than {bundles.MAX_MANIFEST_BYTES:,} bytes.", where=str(path))
        return path.read_bytes()
    except OSError as error:
        raise InputRefused(
            f"cannot be read ({error.strerror}).", where=str(path), cure="Ship the bundle again."
        ) from error
