from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resedge import store as module
from resedge.errors import InputRefused, MachineFailure
from resedge.store import Key, Store

KEY = Key("stage", inputs={"a": "1"}, options={"n": 2})


def _writes(content: str, calls: list[str]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        calls.append(content)
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(content)

    return make


def test_a_stage_runs_once(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), list[str]()
    first = store.run(KEY, _writes("x", calls))
    again = Store(tmp_path).run(KEY, _writes("y", calls))
    assert (first.reused, again.reused) == (False, True)
    assert (again.folder / "sub" / "file").read_text() == "x"
    assert calls == ["x"]


@pytest.mark.parametrize(
    "other",
    [
        Key("other", inputs={"a": "1"}, options={"n": 2}),
        Key("stage", inputs={"a": "2"}, options={"n": 2}),
        Key("stage", inputs={"a": "1"}, options={"n": 3}),
        Key("stage", inputs={"a": "1"}, options={"n": 2}, versions={"torch": "2"}),
        Key("stage", inputs={"a": "1"}, options={"n": 2}, machine="m"),
    ],
)
def test_whatever_a_key_names_makes_another_stage(tmp_path: Path, other: Key) -> None:
    store, calls = Store(tmp_path), list[str]()
    store.run(KEY, _writes("x", calls))
    assert not store.run(other, _writes("y", calls)).reused


@pytest.mark.parametrize("damage", ["changed", "missing", "extra", "record"])
def test_a_damaged_stage_is_made_again(tmp_path: Path, damage: str) -> None:
    store, calls = Store(tmp_path), list[str]()
    folder = store.run(KEY, _writes("x", calls)).folder
    target = folder / "sub" / "file"
    if damage == "changed":
        target.write_text("z")
    elif damage == "missing":
        target.unlink()
    elif damage == "extra":
        (folder / "more").write_text("")
    else:
        (folder / "stage.json").write_text("{")
    assert not store.run(KEY, _writes("x", calls)).reused
    assert store.run(KEY, _writes("x", calls)).reused
    assert target.read_text() == "x"
    assert not (folder / "more").exists()


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fails(folder: Path) -> None:
        (folder / "part").write_text("half")
        raise InputRefused("no.")

    with pytest.raises(InputRefused, match=r"no\."):
        store.run(KEY, fails)
    assert store.usage() == (0, 0)
    assert not list((tmp_path / "work").iterdir())


_CHILD = """
import pathlib, sys, time
from resedge.store import Key, Store
def make(folder):
    (folder / "file").write_text("whole")
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(float(sys.argv[3]))
key = Key("stage", inputs={"a": "1"}, options={"n": 2})
print(Store(pathlib.Path(sys.argv[1])).run(key, make).reused)
"""


def _child(root: Path, started: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, str(root), str(started), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_a_killed_stage_is_made_again_at_once(tmp_path: Path) -> None:
    child = _child(tmp_path, tmp_path / "started", 60)
    _wait_for(tmp_path / "started")
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    calls: list[str] = []
    store = Store(tmp_path)
    assert store.usage() == (0, 0)
    assert not store.run(KEY, _writes("x", calls)).reused
    assert not list((tmp_path / "work").iterdir())


def test_two_processes_make_a_stage_once(tmp_path: Path) -> None:
    child = _child(tmp_path, tmp_path / "started", 1)
    _wait_for(tmp_path / "started")
    calls: list[str] = []
    waited: list[bool] = []
    stored = Store(tmp_path).run(KEY, _writes("x", calls), waiting=lambda: waited.append(True))
    output, _ = child.communicate()
    assert (stored.reused, calls, waited, output.strip()) == (True, [], [True], "False")


def test_the_least_recently_used_stages_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=1)
    keys = [Key(f"s{i}", inputs={}) for i in range(3)]
    folders = [store.run(key, _writes("x" * 1000, [])).folder for key in keys]
    for age, index in enumerate((1, 0, 2)):
        os.utime(folders[index] / "stage.json", ns=(age, age))
    store.limit_bytes = 3000
    store.shrink()
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert store.clear() == 2
    assert store.usage() == (0, 0)


def test_a_discarded_stage_is_made_again_and_no_other(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), list[str]()
    other = Key("other", inputs={})
    for key in (KEY, other):
        store.run(key, _writes("x", calls))
    assert (store.discard(KEY), store.discard(KEY)) == (True, False)
    assert store.run(other, _writes("y", calls)).reused
    assert not store.run(KEY, _writes("y", calls)).reused


def test_a_stage_that_is_being_made_is_not_discarded(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def make(folder: Path) -> None:
        assert not Store(tmp_path).discard(KEY)
        (folder / "file").touch()

    assert not store.run(KEY, make).reused


@pytest.mark.parametrize("moment", ["listed", "hashed", "touched"])
def test_a_stage_that_is_removed_while_it_is_looked_at_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another process removes it at that moment of the check without a lock."""
    store, calls = Store(tmp_path), list[str]()
    store.run(KEY, _writes("x", calls))
    owner, name = {"listed": (module, "_names"), "hashed": (module, "sha256_file"), "touched": (os, "utime")}[
        moment
    ]
    original = getattr(owner, name)

    def removed_before(*args: object) -> object:
        monkeypatch.setattr(owner, name, original)
        assert Store(tmp_path).discard(KEY)
        return original(*args)

    monkeypatch.setattr(owner, name, removed_before)
    stored = store.run(KEY, _writes("y", calls))
    assert (stored.reused, calls) == (False, ["x", "y"])
    assert (stored.folder / "sub" / "file").read_text() == "y"


_UNWRITABLE = (
    r"the stage cache cannot be written \(.*\)\. Set RESEDGE_HOME to a folder that you may write to\."
)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_cache_that_may_not_be_written_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: object, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    store = Store(tmp_path)
    store.run(KEY, _writes("x", []))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)  # as the lock's file is opened
        with pytest.raises(InputRefused, match=_UNWRITABLE):
            store.run(Key("other", inputs={}), _writes("x", []))
        with pytest.raises(InputRefused, match=_UNWRITABLE):
            store.clear()
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputRefused, match=_UNWRITABLE):
        Store(tmp_path / "none")
    with pytest.raises(InputRefused, match=_UNWRITABLE):
        store.run(Key("other", inputs={}), _writes("x", []))


def test_a_cache_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputRefused, match=_UNWRITABLE):
        Store(tmp_path / "file")


def test_a_full_disk_is_the_machines_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    with pytest.raises(MachineFailure, match="No space left"):
        store.run(KEY, full)
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(MachineFailure, match="No space left"):
        store.run(KEY, _writes("x", []))
    with pytest.raises(MachineFailure, match="No space left"):
        Store(tmp_path / "none")
    assert not list((tmp_path / "work").iterdir())


def test_a_failed_read_in_a_stage_is_not_called_a_failed_write(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        (folder / "none").read_bytes()

    with pytest.raises(FileNotFoundError):
        Store(tmp_path).run(KEY, read)
    assert not list((tmp_path / "work").iterdir())
