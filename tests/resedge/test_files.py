from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from resedge import files
from resedge.errors import InputRefused, MachineFailure


def _fail_with(number: int) -> object:
    def raise_it(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    monkeypatch.setattr(os, "fsync", _fail_with(errno.ENOSPC))
    with pytest.raises(MachineFailure, match="No space left on device"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="No such file"):
        files.write_bytes(tmp_path / "none" / "file", b"data")


def _folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "content").write_text(content)
    return path


@pytest.fixture
def swapping(tmp_path: Path) -> None:
    """Skips where the file system cannot swap two folders."""
    one, other = _folder(tmp_path / "one", "1"), _folder(tmp_path / "other", "2")
    if not files._exchange(one, other):
        pytest.skip("this file system cannot swap two folders")
    assert ((one / "content").read_text(), (other / "content").read_text()) == ("2", "1")
    with pytest.raises(FileNotFoundError):
        files._exchange(one, tmp_path / "none")
    shutil.rmtree(one)
    shutil.rmtree(other)


@pytest.mark.usefixtures("swapping")
def test_a_folder_is_swapped_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, staged = _folder(tmp_path / "final", "old"), _folder(tmp_path / "staged", "new")
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("renamed"))
    files.publish_folder(staged, final)
    assert (final / "content").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_folder_is_published_where_there_is_none(tmp_path: Path) -> None:
    files.publish_folder(_folder(tmp_path / "staged", "new"), tmp_path / "final")
    assert (tmp_path / "final" / "content").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, None])
def test_a_swap_that_the_system_lacks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    class Missing:
        def __call__(self, *_: object) -> int:
            ctypes.set_errno(number or 0)
            return -1

    library = SimpleNamespace() if number is None else SimpleNamespace(renameat2=Missing())
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    final = _folder(tmp_path / "final", "old")
    files.publish_folder(_folder(tmp_path / "staged", "new"), final)
    assert (final / "content").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), Interrupted()])
@pytest.mark.parametrize("step", ["sync", "swap", "first rename", "second rename"])
def test_an_error_on_the_way_leaves_the_old_folder_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    final, staged = _folder(tmp_path / "final", "old"), _folder(tmp_path / "staged", "new")
    renames = 0
    rename = Path.rename

    def fail(*_: object) -> None:
        raise error

    def counted(path: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if step == ("", "first rename", "second rename", "")[renames]:
            raise error
        return rename(path, target)

    monkeypatch.setattr(files, "_exchange", fail if step == "swap" else lambda *_: False)
    monkeypatch.setattr(Path, "rename", counted)
    if step == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((MachineFailure, Interrupted)):
        files.publish_folder(staged, final)
    assert renames == {"sync": 0, "swap": 0, "first rename": 1, "second rename": 3}[step]
    assert (final / "content").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "staged"]


_KILLED = """
import ctypes, os, pathlib, shutil, signal, sys
from resedge import files
staged, final, way, step = sys.argv[1:]
count = 0
def counted(original):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == int(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return call
if way == "two steps":
    files._exchange = lambda *_: False
else:
    files._exchange = counted(files._exchange)
pathlib.Path.rename = counted(pathlib.Path.rename)
shutil.rmtree = counted(shutil.rmtree)
files.publish_folder(pathlib.Path(staged), pathlib.Path(final))
"""


def _kill(staged: Path, final: Path, way: str, step: int) -> None:
    """SIGKILL at the n-th change of the file system."""
    command = [sys.executable, "-c", _KILLED, str(staged), str(final), way, str(step)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path, step: int) -> None:
    """Recovery and another try give the new folder."""
    final, staged = _folder(tmp_path / "final", "old"), _folder(tmp_path / "staged", "new")
    _kill(staged, final, "two steps", step)
    files.recover_folder(final)
    assert (final / "content").read_text() == ("new" if step == 3 else "old")
    if staged.exists():
        files.publish_folder(staged, final)
    assert (final / "content").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize(("step", "found"), [(1, "old"), (2, "new")])
@pytest.mark.usefixtures("swapping")
def test_a_kill_at_the_swap_leaves_a_whole_folder_without_recovery(
    tmp_path: Path, step: int, found: str
) -> None:
    final, staged = _folder(tmp_path / "final", "old"), _folder(tmp_path / "staged", "new")
    _kill(staged, final, "exchange", step)
    assert (final / "content").read_text() == found
    assert (staged / "content").read_text() == ("new" if found == "old" else "old")


def test_a_locked_folder_is_locked_by_whatever_name(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    with (
        files.locked_folder(folder, 0),
        pytest.raises(TimeoutError),
        files.locked_folder(tmp_path / "link", 0.06),
    ):
        pytest.fail("the block was entered")
    with files.locked_folder(tmp_path / "link", 0):
        assert list(folder.iterdir()) == []


def test_only_a_full_disk_is_told_from_other_errors_of_a_block_that_reads() -> None:
    with pytest.raises(MachineFailure, match="No space left"), files.full_disk(Path("place")):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(IsADirectoryError), files.full_disk(Path("place")):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
