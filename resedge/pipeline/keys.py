"""`resedge keys`: sign a bundle together with the agent that installs it, and check who signed one."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from resedge import bundle as bundles
from resedge import files
from resedge.artifacts import Artifact, sha256_file
from resedge.bundle import Bundle, Manifest, Signing
from resedge.errors import InputRefused, StaleArtifact, UsageError
from resedge.shipping import moments, signing, zipapp

DEFAULT_DAYS: Final = 90

_AGENT_KIND: Final = "agent"
_SIGNATURE_KIND: Final = "agent/signature"
_MOST_DAYS: Final = 36_500


@dataclass(frozen=True)
class Signed:
    """A bundle, the fingerprint of the key that signed it, and when it was signed and expires."""

    bundle: Bundle
    key: str
    expires: datetime
    signed_at: datetime


def generate(folder: Path) -> tuple[Path, Path]:
    """Write a new key pair into a folder, which is made if it is not there; return their paths.

    Raises:
        InputRefused: A key is there already, or the folder cannot be written to.
        RuntimeUnavailable: There is no ssh-keygen.
    """
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return signing.generate(folder)


def expiry(text: str, now: datetime) -> datetime:
    """Return the moment that DAYS ("90") or a DATE in UTC ("2027-01-31") mean; a date counts to its end.

    Raises:
        UsageError: It is neither, or lies in the past.
    """
    cure = "Write a number of days, or a date such as 2027-01-31."
    if re.fullmatch(r"\d{1,5}", text, re.ASCII) and 1 <= int(text) <= _MOST_DAYS:
        return now + timedelta(days=int(text))
    try:
        moment = moments.from_text(f"{text}T23:59:59Z", "--expires")
    except InputRefused as error:
        raise UsageError(f"{text!r} is neither.", where="--expires", cure=cure) from error
    if moment <= now:
        raise UsageError(f"{text} is in the past.", where="--expires", cure=cure)
    return moment


def sign(path: Path, key: Path, expires: datetime, now: datetime) -> Signed:
    """Sign a bundle: the agent and its signature are put into it, its counter grows, it is written anew.

    Args:
        path: The bundle's folder; it is replaced whole.
        key: The private key, or the public one of a key that an SSH agent holds.
        expires: When devices refuse to install it.
        now: The time that it is signed at.

    Raises:
        InputRefused: No bundle, one whose files are not the manifest's, or a key that cannot be used.
        RuntimeUnavailable: There is no ssh-keygen.
        MachineFailure: The disk is full or failing.
    """
    bundle = bundles.read(path)
    bundles.check(bundle)
    signer = signing.fingerprint(key)
    sources = {a.path.as_posix(): bundle.path / a.path for a in bundle.manifest.files}
    with tempfile.TemporaryDirectory(prefix="resedge-agent-") as folder:
        added = _agent_files(Path(folder), key)
        sources |= {name: file.path for name, file in added.items()}
        manifest = replace(
            _with_files(bundle.manifest, added),
            expires=moments.to_text(expires),
            signing=Signing(signing.BUNDLE_NAMESPACE, signer),
            signed_at=moments.to_text(now),
        )
        published = bundles.publish(
            manifest, sources, path, lambda text: signing.sign(text, key, signing.BUNDLE_NAMESPACE)
        )
    return Signed(published.bundle, signer, expires, now)


def verify(path: Path, public: Path, now: datetime) -> Signed:
    """Check that a bundle is signed by a key, that every file is the manifest's, and that it has not expired.

    Raises:
        InputRefused: It is not signed, by another key, or has expired.
        StaleArtifact: A file is missing, changed, or not in the manifest.
        RuntimeUnavailable: There is no ssh-keygen.
    """
    with tempfile.TemporaryDirectory(prefix="resedge-keys-") as folder:
        signers = Path(folder) / "allowed_signers"
        signers.write_text(signing.allowed_signers(public), encoding="utf-8")
        signed = _verified(path, signers, public)
    if signed.expires <= now:
        raise InputRefused(
            f"has expired on {moments.to_text(signed.expires)}.",
            where=str(path),
            cure="Sign it again with `resedge keys sign`.",
        )
    return signed


def read_signed(path: Path) -> Bundle:
    """Read a bundle that claims to be signed, its files compared with the manifest; by whom is not checked.

    Raises:
        InputRefused: It is no bundle, or not signed.
        StaleArtifact: A file is missing, changed, or not in the manifest.
    """
    bundle = bundles.read(path)
    if not (path / bundles.SIGNATURE).is_file() or bundle.manifest.signing is None:
        raise InputRefused(
            "is not signed.", where=str(path), cure="Sign it with `resedge keys sign BUNDLE --key PRIVATE`."
        )
    bundles.check(bundle)
    return bundle


def _verified(path: Path, signers: Path, public: Path) -> Signed:
    bundle = read_signed(path)
    text, agent = (path / bundles.MANIFEST).read_bytes(), bundle.file(bundles.AGENT).read()
    where = str(path / bundles.MANIFEST)
    signature = (path / bundles.SIGNATURE).read_bytes()
    key = signing.verify(text, signature, signers, signing.BUNDLE_NAMESPACE, where)
    if bundles.parse(text.decode(), where) != bundle.manifest:
        raise StaleArtifact("changed while it was read.", where=where)
    signing.verify(
        agent,
        bundle.file(bundles.AGENT_SIGNATURE).read(),
        signers,
        signing.AGENT_NAMESPACE,
        str(path / bundles.AGENT),
    )
    manifest = bundle.manifest
    if manifest.expires is None or manifest.signed_at is None:
        raise InputRefused("is signed without a time of expiry.", where=where, cure="Sign it again.")
    expires = moments.from_text(manifest.expires, f"{where}: expires")
    return Signed(bundle, key, expires, moments.from_text(manifest.signed_at, f"{where}: signed_at"))


def _agent_files(folder: Path, key: Path) -> dict[str, Artifact]:
    """Write the agent and its signature into a folder; return both by their place in the bundle."""
    agent, signature = folder / "agent.pyz", folder / "agent.pyz.sig"
    agent.write_bytes(zipapp.build())
    signature.write_bytes(signing.sign(agent.read_bytes(), key, signing.AGENT_NAMESPACE))
    digest = sha256_file(agent)
    return {
        bundles.AGENT: Artifact(agent, digest, _AGENT_KIND),
        bundles.AGENT_SIGNATURE: Artifact(
            signature, sha256_file(signature), _SIGNATURE_KIND, parents=(digest,)
        ),
    }


def _with_files(manifest: Manifest, added: dict[str, Artifact]) -> Manifest:
    """Return a manifest that names these files in the place of those that an earlier signing added."""
    kept = bundles.unsigned(manifest)
    named = [replace(file, path=Path(name)) for name, file in added.items()]
    merged = sorted((*kept.files, *named), key=lambda file: file.path.as_posix())
    return replace(kept, files=tuple(merged))
