"""The stage cache: a stage runs once for one set of inputs, and a killed run goes on where it stopped.

A stage's key is the digest of all that its result depends on: the digests of its inputs, its options, the
versions of the libraries that it uses and, where that matters, the machine. Its result is a folder:

    stages/NAME-KEY/           the files that the stage wrote, and stage.json: the key in full, file digests
    work/NAME-KEY/             a stage that is being made; what a killed process left here is thrown away
    locks/NAME-KEY.lock        held (by the operating system) while a stage is made

A folder under stages/ is complete: it came there by a rename. It is used only while the digests of its
files hold; otherwise it is made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from resedge import files
from resedge.artifacts import JsonValue, canonical_json, load, sha256_file, sha256_json
from resedge.errors import InputRefused

DEFAULT_LIMIT_BYTES = 4 << 30
_RECORD = "stage.json"


@dataclass(frozen=True)
class Key:
    """What a stage's result depends on, and nothing else."""

    name: str
    inputs: Mapping[str, str]
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""

    @property
    def label(self) -> str:
        """The stage's folder name: its name and the start of the key's digest."""
        return f"{self.name}-{sha256_json(self.document())[:24]}"

    def document(self) -> dict[str, JsonValue]:
        """The key as JSON."""
        return {
            "name": self.name,
            "inputs": dict(self.inputs),
            "options": dict(self.options),
            "versions": dict(self.versions),
            "machine": self.machine,
        }


@dataclass(frozen=True)
class Record:
    """The content of stage.json."""

    key: Mapping[str, JsonValue]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Stored:
    """A finished stage: its folder, and whether it was there already."""

    folder: Path
    reused: bool


class Store:
    """The stage cache below one folder."""

    def __init__(self, root: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        with self._own_writes():
            for name in ("stages", "work", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)

    def run(
        self, key: Key, make: Callable[[Path], None], *, waiting: Callable[[], None] = lambda: None
    ) -> Stored:
        """Return the stage's folder, made by `make(folder)` unless it is there.

        Two processes that want the same stage make it once: the second waits, after calling `waiting`.

        Raises:
            MachineFailure: The disk is full or failing.
            InputRefused: The cache cannot be written.
            Exception: Whatever else `make` raises; nothing of the stage is then kept.
        """
        final = self.root / "stages" / key.label
        if _is_whole(final) and _touched(final):
            return Stored(final, reused=True)
        lock = self._lock(final)
        if not self._taken(lock, blocking=False):
            waiting()
            self._taken(lock, blocking=True)
        try:
            if _is_whole(final):
                return Stored(final, reused=True)
            self._make(key, final, make)
        finally:
            lock.release()
        return Stored(final, reused=False)

    def _make(self, key: Key, final: Path, make: Callable[[Path], None]) -> None:
        work = self.root / "work" / key.label
        with self._own_writes():
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
            work.mkdir()
        try:
            with files.full_disk(work):
                make(work)
            with self._own_writes():
                record = {name: sha256_file(work / name) for name in _names(work)}
                document = canonical_json({"key": key.document(), "files": record})
                files.write_bytes(work / _RECORD, document.encode())
                files.sync_tree(work)
                work.rename(final)
                files.sync_folder(final.parent)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise

    def discard(self, key: Key) -> bool:
        """Remove one finished stage, so that it is made again; return whether it was there.

        A stage that another process is making is left alone, as it is being made again already.

        Raises:
            InputRefused: The cache cannot be written.
        """
        return self._remove(self.root / "stages" / key.label)

    def usage(self) -> tuple[int, int]:
        """Return the number of finished stages and their bytes."""
        stages = self._stages()
        return len(stages), sum(_size(stage) for stage in stages)

    def shrink(self) -> None:
        """Remove the stages used longest ago until the cache is within its limit."""
        sizes = {stage: _size(stage) for stage in self._stages()}
        total = sum(sizes.values())
        for stage in sorted(sizes, key=_last_used):
            if total <= self.limit_bytes:
                return
            if self._remove(stage):
                total -= sizes[stage]

    def clear(self) -> int:
        """Remove every stage that no process is making; return how many were removed."""
        return sum(self._remove(stage) for stage in self._stages())

    def _remove(self, stage: Path) -> bool:
        lock = self._lock(stage)
        if not self._taken(lock, blocking=False):
            return False
        try:
            with self._own_writes():
                if not stage.exists():
                    return False
                shutil.rmtree(stage)
        finally:
            lock.release()
        return True

    def _stages(self) -> list[Path]:
        with self._own_writes():
            return [path for path in (self.root / "stages").iterdir() if path.is_dir()]

    def _lock(self, stage: Path) -> FileLock:
        return FileLock(self.root / "locks" / f"{stage.name}.lock")

    def _taken(self, lock: FileLock, *, blocking: bool) -> bool:
        """Take a lock; return False where another process holds it and `blocking` is not set."""
        with self._own_writes():
            try:
                lock.acquire(blocking=blocking)
            except Timeout:
                return False
        return True

    def _own_writes(self) -> AbstractContextManager[None]:
        return files.disk_errors(
            self.root,
            "the stage cache cannot be written",
            "Set RESEDGE_HOME to a folder that you may write to.",
        )


def _is_whole(folder: Path) -> bool:
    """Whether a finished stage's files are all there and unchanged.

    Without the stage's lock the answer may be no although it was whole: another process may be removing it.
    """
    try:
        record = load(Record, folder / _RECORD)
        return set(record.files) == set(_names(folder)) - {_RECORD} and all(
            sha256_file(folder / name) == digest for name, digest in record.files.items()
        )
    except (InputRefused, OSError):
        return False  # missing, damaged, or removed meanwhile: the stage is made, under its lock


def _touched(folder: Path) -> bool:
    """Note that a stage is used; return False where it was removed meanwhile, or may not be written."""
    try:
        os.utime(folder / _RECORD)  # which never makes the file, as touch would
    except OSError:
        return False  # under the lock it is made again, or refused with the reason
    return True


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _size(folder: Path) -> int:
    """Return a stage's bytes, without those that another process removes meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(root, name).lstat().st_size
    return total


def _last_used(folder: Path) -> int:
    try:
        return (folder / _RECORD).stat().st_mtime_ns
    except FileNotFoundError:  # damaged, or removed meanwhile
        return 0
