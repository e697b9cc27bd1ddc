from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

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


def test_a_folder_is_published_and_replaced(tmp_path: Path) -> None:
    final = tmp_path / "final"
    files.publish_folder(_folder(tmp_path / "staged", "old"), final)
    files.publish_folder(_folder(tmp_path / "staged", "new"), final)
    assert (final / "content").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path, step: int) -> None:
    """SIGKILL at the n-th change of the file system; recovery and another try give the new folder."""
    final = _folder(tmp_path / "final", "old")
    staged = _folder(tmp_path / "staged", "new")
    script = f"""
import os, pathlib, shutil, signal
from resedge import files
count = 0
def counted(original):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return call
pathlib.Path.rename = counted(pathlib.Path.rename)
remove = shutil.rmtree
shutil.rmtree = counted(lambda path, ignore_errors=False: remove(path, ignore_errors=ignore_errors))
files.shutil.rmtree = shutil.rmtree
files.publish_folder(pathlib.Path({str(staged)!r}), pathlib.Path({str(final)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    files.recover_folder(final)
    assert (final / "content").read_text() in ("old", "new")
    if staged.exists():
        files.publish_folder(staged, final)
    assert (final / "content").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]
