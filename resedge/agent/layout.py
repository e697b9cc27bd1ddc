"""Where things are on a device, and who may touch them.

    trust/allowed_signers        the keys that the owner trusts
    incoming/DIGEST/             a bundle on its way: its signed manifest, offer.json, files/SHA256[.part]
    releases/DIGEST/             bundle/, engine/ and trial.json
    current                      a link to the release that serves
    state.json                   what was done, and what is being done
    timing/                      what TensorRT measured kernels to cost

DIGEST is the SHA-256 of a bundle's manifest.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resedge import files
from resedge.errors import DeviceBusy, InputRefused, UsageError
from resedge.shipping.chunks import is_digest

ENVIRONMENT: Final = "RESEDGE_DEVICE_ROOT"
_DEFAULT: Final = Path(".local", "share", "resedge-device")
_LOCK_SECONDS: Final = 2.0
_NO_LINK: Final = frozenset({errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})


@dataclass(frozen=True)
class Layout:
    """The folder of a device, and every place in it."""

    root: Path

    @property
    def signers(self) -> Path:
        """The keys that the owner of the device trusts."""
        return self.root / "trust" / "allowed_signers"

    @property
    def state(self) -> Path:
        """The journal's file."""
        return self.root / "state.json"

    @property
    def current(self) -> Path:
        """The link to the release that serves."""
        return self.root / "current"

    @property
    def timing(self) -> Path:
        """What TensorRT measured kernels to cost here."""
        return self.root / "timing"

    @property
    def incoming(self) -> Path:
        """Where bundles arrive."""
        return self.root / "incoming"

    @property
    def releases(self) -> Path:
        """Where bundles are that have arrived."""
        return self.root / "releases"

    def arriving(self, digest: str) -> Path:
        """Return the folder of a bundle on its way."""
        return self.incoming / _demanded(digest)

    def release(self, digest: str) -> Path:
        """Return the folder of a bundle that has arrived."""
        return self.releases / _demanded(digest)

    def bundle(self, digest: str) -> Path:
        """Return where the bundle itself is in its release."""
        return self.release(digest) / "bundle"

    def serving(self) -> str | None:
        """Return the digest of the release that `current` leads to; None where there is no such link.

        Raises:
            InputRefused: It is no link, or leads elsewhere.
        """
        try:
            target = self.current.readlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputRefused(f"is not a link ({error.strerror}).", where=str(self.current)) from error
        if target.parent != Path(self.releases.name) or not is_digest(target.name):
            raise InputRefused(f"leads to {target}, not to a release.", where=str(self.current))
        return target.name

    def point(self, digest: str | None) -> None:
        """Have `current` lead to a release, in one step; None: to none.

        Raises:
            MachineFailure, InputRefused: As `resedge.files.write_bytes`.
        """
        with files.disk_errors(self.current):
            if digest is None:
                self.current.unlink(missing_ok=True)
            else:
                aside = self.root / f"current{files.ASIDE_SUFFIX}"
                aside.unlink(missing_ok=True)
                aside.symlink_to(Path(self.releases.name, _demanded(digest)))
                aside.replace(self.current)
            files.sync_folder(self.root)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other agent away; what one that was killed left half written is removed.

        Raises:
            DeviceBusy: Another one is at work.
            InputRefused: The folder may not be written to.
            MachineFailure: The disk is full or failing.
        """
        with files.disk_errors(self.root):
            for folder in (self.root, self.incoming, self.releases, self.timing):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(files.locked_folder(self.root, _LOCK_SECONDS))
            except TimeoutError as error:
                raise DeviceBusy(
                    "another agent is at work here.", where=str(self.root), cure="Wait until it has finished."
                ) from error
            self._sweep()
            yield

    def _sweep(self) -> None:
        with files.disk_errors(self.root):
            inner = (*self.incoming.iterdir(), *self.releases.iterdir())
            for folder in (self.root, self.timing, self.incoming, self.releases, *inner):
                for left in folder.glob(f"*{files.ASIDE_SUFFIX}"):
                    remove(left)


def find(root: str | None) -> Layout:
    """Return the layout of `root`, or of the environment's folder, or of the default."""
    chosen = root or os.environ.get(ENVIRONMENT)
    return Layout(Path(chosen).absolute() if chosen else Path.home() / _DEFAULT)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that never changes a second name; where the file system cannot, copy it.

    Raises:
        OSError: Neither can be done.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target)


def _demanded(digest: str) -> str:
    if not is_digest(digest):
        raise UsageError(f"{digest!r:.80} is not the digest of a bundle's manifest.")
    return digest
