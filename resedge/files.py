"""Writing that survives a killed process: aside, synced, renamed.

A reader sees the old file or the new one, never a part. Errors of the disk are told apart from a folder
that the user may not write to: the first is the machine's failure, the second a refused input.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resedge.errors import InputRefused, MachineFailure, ResedgeError

ASIDE_SUFFIX = ".resedge-aside"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably.

    Raises:
        MachineFailure: The disk is full or failing; the old file, if any, is untouched.
        InputRefused: The folder does not exist or may not be written to.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}{ASIDE_SUFFIX}")
    with disk_errors(path):
        try:
            with aside.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def publish_folder(staged: Path, final: Path) -> None:
    """Put the folder `staged` in the place of `final`; both must be on one file system.

    Where `final` exists it steps aside under a name of its own first and is removed last; a process
    killed in between leaves both folders whole, and `recover_folder` puts the new one in place.

    Raises:
        MachineFailure, InputRefused: As `write_bytes`.
    """
    replaced = _replaced_name(final)
    with disk_errors(final):
        sync_tree(staged)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        staged.rename(final)
        sync_folder(final.parent)
        if replaced.exists():
            shutil.rmtree(replaced)


def recover_folder(final: Path) -> None:
    """Finish what a killed `publish_folder` left: bring the old folder back, or remove it."""
    replaced = _replaced_name(final)
    with disk_errors(final):
        if not replaced.exists():
            return
        if final.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(final)
        sync_folder(final.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself, to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries to the disk."""
    _sync(folder)


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Translate an OSError of the block into this package's errors.

    Raises:
        MachineFailure: The disk is full or failing.
        InputRefused: Anything else: no such folder, not writable, not a folder.
    """
    try:
        yield
    except ResedgeError:
        raise
    except OSError as error:
        place = str(error.filename or where)
        if error.errno in _FULL:
            raise MachineFailure(
                f"cannot be written ({error.strerror}).",
                where=place,
                cure="Free some space there and run the same command again; it goes on where it stopped.",
            ) from error
        raise InputRefused(
            f"cannot be written ({error.strerror}).",
            where=place,
            cure="Name a folder that exists and that you may write to.",
        ) from error


def _replaced_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced{ASIDE_SUFFIX}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
