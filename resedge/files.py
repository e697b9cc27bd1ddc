"""Writing that survives a killed process: aside, synced, renamed.

A reader sees the old file or the new one, never a part. Errors of the disk are told apart from a folder
that the user may not write to: the first is the machine's failure, the second a refused input.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resedge.errors import InputRefused, MachineFailure

ASIDE_SUFFIX = ".resedge-aside"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL}
_AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working folder
_RENAME_EXCHANGE = 2  # linux/fs.h


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

    Where `final` exists the two swap their names in one step (renameat2 with RENAME_EXCHANGE) and the old
    folder, now under the name of `staged`, is removed: at every moment `final` is the old folder or the
    new one. Where the file system or the C library cannot swap, the old folder steps aside first. An
    error in between puts it back; after a kill in between there is no `final` until `recover_folder` has
    put it back.

    Raises:
        MachineFailure, InputRefused: As `write_bytes`.
    """
    with disk_errors(final):
        sync_tree(staged)
        if not final.exists():
            staged.rename(final)
            old = None
        else:
            old = staged if _exchange(staged, final) else _replace_in_two_steps(staged, final)
        sync_folder(final.parent)
        if old is not None:
            shutil.rmtree(old)


def recover_folder(final: Path) -> None:
    """Finish what a `publish_folder` that cannot swap left when it was killed.

    The old folder is put back where no new one stands in its place, and removed where one does.

    Raises:
        MachineFailure, InputRefused: As `write_bytes`.
    """
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
def locked_folder(folder: Path, seconds: float) -> Iterator[None]:
    """Hold an exclusive lock (flock) on a folder itself: it leaves no file and ends with the process.

    Args:
        folder: The folder, by whatever name: the lock is on the folder that it leads to.
        seconds: How long to wait for another holder, in this process or another one.

    Raises:
        TimeoutError: Another holder kept it for longer.
        OSError: The folder is not there or may not be read.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + seconds
        while not _flocked(descriptor):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{folder} is locked")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(
    where: Path,
    what: str = "cannot be written",
    cure: str = "Name a folder that exists and that you may write to.",
) -> Iterator[None]:
    """Translate an OSError of the block, which writes and does nothing else, into this package's errors.

    Args:
        where: Named in the error where the OSError itself names no file.
        what: What could not be done, to which the system's reason is added.
        cure: What to do about anything but a full or failing disk.

    Raises:
        MachineFailure: The disk is full or failing.
        InputRefused: Anything else: no such folder, not writable, not a folder.
    """
    try:
        yield
    except OSError as error:
        place = str(error.filename or where)
        if error.errno in _FULL | {errno.EIO}:
            raise _machine_failure(error, what, place) from error
        raise InputRefused(f"{what} ({error.strerror}).", where=place, cure=cure) from error


@contextmanager
def full_disk(where: Path) -> Iterator[None]:
    """Translate the OSErrors of the block that only a write can raise; others pass as they are.

    Raises:
        MachineFailure: The disk or the quota is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _machine_failure(error, "cannot be written", str(error.filename or where)) from error


def _flocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _machine_failure(error: OSError, what: str, place: str) -> MachineFailure:
    return MachineFailure(
        f"{what} ({error.strerror}).",
        where=place,
        cure="Free some space there and run the same command again; it goes on where it stopped.",
    )


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; return False, nothing changed, where that cannot be done.

    Raises:
        OSError: It can be done in general, and these two cannot be swapped.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library older than the call
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _replace_in_two_steps(staged: Path, final: Path) -> Path:
    """Rename `final` aside and `staged` to `final`; return where the old folder is now."""
    replaced = _replaced_name(final)
    if replaced.exists():
        shutil.rmtree(replaced)
    try:
        final.rename(replaced)
        staged.rename(final)
    except BaseException:
        if replaced.exists() and not final.exists():
            replaced.rename(final)
        raise
    return replaced


def _replaced_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced{ASIDE_SUFFIX}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
