"""Signatures as OpenSSH makes them (SSHSIG), over Ed25519 keys: every device with SSH can check one.

A signature holds for one namespace, so that one over a bundle is none over an agent, and the keys that a
device trusts stand in a file of its own in the form of allowed_signers (`man ssh-keygen`).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from resedge.errors import InputRefused, RuntimeUnavailable
from resedge.files import disk_errors

BUNDLE_NAMESPACE: Final = "resedge-bundle"
AGENT_NAMESPACE: Final = "resedge-agent"
PRINCIPAL: Final = "resedge"
PRIVATE_KEY: Final = "resedge"
PUBLIC_KEY: Final = "resedge.pub"

_KIND: Final = "ssh-ed25519"
_GOOD: Final = re.compile(r'Good "(?P<namespace>[^"]*)" signature .* key (?P<key>SHA256:[A-Za-z0-9+/]+)')
_CURE_OF_KEY: Final = "Give a key that `resedge keys generate` wrote."


def generate(folder: Path) -> tuple[Path, Path]:
    """Write a new key pair into an existing folder: `resedge`, for its owner's eyes alone, and `resedge.pub`.

    Returns:
        Where the private and the public key are.

    Raises:
        InputRefused: A file of that name stands there, or the folder cannot be written to.
        RuntimeUnavailable: There is no ssh-keygen.
    """
    private, public = folder / PRIVATE_KEY, folder / PUBLIC_KEY
    for path in (private, public):
        if os.path.lexists(path):
            raise InputRefused(
                "exists; a key is never replaced.", where=str(path), cure="Name another folder with --out."
            )
    code, said = _run("-q", "-t", "ed25519", "-N", "", "-C", PRINCIPAL, "-f", str(private))
    if code != 0:
        raise InputRefused(f"no key can be written ({said}).", where=str(folder))
    return private, public


def public_key(path: Path) -> str:
    """Return the one line of a public key: its kind and its Base64 text, its comment left out.

    Raises:
        InputRefused: It cannot be read, or is no Ed25519 public key.
    """
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputRefused(f"cannot be read ({reason}).", where=str(path), cure=_CURE_OF_KEY) from error
    if len(words) < 2 or words[0] != _KIND or not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", words[1]):
        raise InputRefused(f"is no public key of the kind {_KIND}.", where=str(path), cure=_CURE_OF_KEY)
    return f"{_KIND} {words[1]}"


def allowed_signers(public: Path) -> str:
    """Return the content of a file that trusts one public key, for bundles and for agents.

    Raises:
        InputRefused: As `public_key`.
    """
    return f'{PRINCIPAL} namespaces="{BUNDLE_NAMESPACE},{AGENT_NAMESPACE}" {public_key(public)}\n'


def fingerprint(key: Path) -> str:
    """Return the fingerprint of a key, private or public, such as "SHA256:…".

    Raises:
        InputRefused: It is no key, or cannot be read.
        RuntimeUnavailable: There is no ssh-keygen.
    """
    code, said = _run("-l", "-E", "sha256", "-f", str(key))
    words = said.split()
    if code != 0 or len(words) < 2 or not words[1].startswith("SHA256:"):
        raise InputRefused(f"is not a key ({said}).", where=str(key), cure=_CURE_OF_KEY)
    return words[1]


def sign(data: bytes, key: Path, namespace: str) -> bytes:
    """Return a signature over bytes, in its armour of text.

    Args:
        data: What is signed.
        key: The private key; or the public key of one that an SSH agent holds. ssh-keygen asks for a
            passphrase where there is one.
        namespace: What the signature is for.

    Raises:
        InputRefused: The key cannot be used.
        RuntimeUnavailable: There is no ssh-keygen.
    """
    with _aside(data) as folder:
        code, said = _run("-Y", "sign", "-q", "-f", str(key.absolute()), "-n", namespace, f"{folder}/data")
        if code != 0:
            raise InputRefused(f"cannot sign ({said}).", where=str(key), cure=_CURE_OF_KEY)
        return Path(folder, "data.sig").read_bytes()


def verify(data: bytes, signature: bytes, signers: Path, namespace: str, where: str) -> str:
    """Check a signature over bytes; return the fingerprint of the key that made it.

    Args:
        data: What was signed, as it will be used: nothing is read again.
        signature: In its armour.
        signers: The file of allowed signers.
        namespace: What the signature must be for.
        where: Named in errors.

    Raises:
        InputRefused: There is no file of signers, or the signature is not that of one of them over these
            bytes in this namespace.
        RuntimeUnavailable: There is no ssh-keygen.
    """
    if not signers.is_file():
        raise InputRefused(
            "does not exist, so no key is trusted here.",
            where=str(signers),
            cure="Install the owner's key once: resedge ship --trust KEY.pub HOST.",
        )
    with _aside(signature) as folder:
        code, said = _run(
            *("-Y", "verify", "-f", str(signers), "-I", PRINCIPAL, "-n", namespace, "-s", f"{folder}/data"),
            given=data,
        )
    found = _GOOD.search(said)
    if code != 0 or found is None or found["namespace"] != namespace:
        raise InputRefused(
            f"has no valid signature of a key that is trusted here ({said}).",
            where=where,
            cure=f"Sign it with a key of {signers.name}, or have the owner of the device trust its key.",
        )
    return found["key"]


@contextmanager
def _aside(data: bytes) -> Iterator[Path]:
    """Yield a folder of the block's own with the bytes in its file `data`."""
    where = Path(tempfile.gettempdir())
    with disk_errors(where, cure="Set TMPDIR to a folder that you may write to."):
        folder = tempfile.TemporaryDirectory(prefix="resedge-signing-")
        Path(folder.name, "data").write_bytes(data)
    with folder as name:
        yield Path(name)


def _run(*arguments: str, given: bytes | None = None) -> tuple[int, str]:
    """Run ssh-keygen; return its exit code and what it said, on one line."""
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments],
            input=b"" if given is None else given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except OSError as error:
        raise RuntimeUnavailable(
            f"ssh-keygen cannot be run ({error.strerror}).", cure="Install OpenSSH's client, 8.2 or later."
        ) from error
    lines = done.stdout.decode(errors="replace").splitlines()
    return done.returncode, "; ".join(line.strip() for line in lines if line.strip())
