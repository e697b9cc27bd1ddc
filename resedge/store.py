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

import shutil
from collections.abc import Callable, Iterable, Mapping
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
        with files.disk_errors(root):
            for name in ("stages", "work", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True)

    def run(
        self, key: Key, make: Callable[[Path], None], *, waiting: Callable[[], None] = lambda: None
    ) -> Stored:
        """Return the stage's folder, made by `make(folder)` unless it is there.

        Two processes that want the same stage make it once: the second waits, after calling `waiting`.

        Raises:
            MachineFailure, InputRefused: The cache cannot be written.
            ResedgeError: Whatever `make` raises; nothing of the stage is then kept.
        """
        final = self.root / "stages" / key.label
        if _is_whole(final):
            _touch(final)
            return Stored(final, reused=True)
        lock = FileLock(self.root / "locks" / f"{key.label}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            if _is_whole(final):
                return Stored(final, reused=True)
            self._make(key, final, make)
        finally:
            lock.release()
        return Stored(final, reused=False)

    def _make(self, key: Key, final: Path, make: Callable[[Path], None]) -> None:
        work = self.root / "work" / key.label
        with files.disk_errors(work):
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
            work.mkdir()
            try:
                make(work)
                record = {name: sha256_file(work / name) for name in _names(work)}
                document = canonical_json({"key": key.document(), "files": record})
                files.write_bytes(work / _RECORD, document.encode())
                files.sync_tree(work)
                work.rename(final)
                files.sync_folder(final.parent)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise

    def usage(self) -> tuple[int, int]:
        """Return the number of finished stages and their bytes."""
        stages = list(self._stages())
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
        return sum(self._remove(stage) for stage in list(self._stages()))

    def _remove(self, stage: Path) -> bool:
        lock = FileLock(self.root / "locks" / f"{stage.name}.lock")
        try:
            with lock.acquire(blocking=False), files.disk_errors(stage):
                shutil.rmtree(stage)
        except Timeout:
            return False
        return True

    def _stages(self) -> Iterable[Path]:
        return (path for path in (self.root / "stages").iterdir() if path.is_dir())


def _is_whole(folder: Path) -> bool:
    """Whether a finished stage's files are all there and unchanged."""
    if not (folder / _RECORD).exists():
        return False
    try:
        record = load(Record, folder / _RECORD)
    except InputRefused:
        return False  # damaged: the stage is made again
    return set(record.files) == set(_names(folder)) - {_RECORD} and all(
        sha256_file(folder / name) == digest for name, digest in record.files.items()
    )


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _last_used(folder: Path) -> int:
    record = folder / _RECORD
    return record.stat().st_mtime_ns if record.exists() else 0


def _touch(folder: Path) -> None:
    with files.disk_errors(folder):
        (folder / _RECORD).touch()
