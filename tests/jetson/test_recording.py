from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resedge.errors import RuntimeUnavailable
from resedge.jetson.recording import Recording, find, watch

Program = Callable[[str], Path]

SPEAKS = """
assert sys.argv[1] == "--interval"
while True:
    print("RAM 100/1000MB VDD_IN 2000mW/2000mW", flush=True)
    time.sleep(int(sys.argv[2]) / 1e3)
"""
# Writes its process id beside itself, so that a test can look for it.
NAMES_ITSELF = "open(sys.argv[0] + '.pid', 'w').write(str(os.getpid()))\n"


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def gone(program: Path) -> bool:
    try:
        os.kill(int(program.with_suffix(".pid").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tegrastats"]


def test_lines_are_recorded_in_their_order_while_the_block_runs(program: Program) -> None:
    tegrastats = program(NAMES_ITSELF + SPEAKS)
    begin = time.monotonic()
    with watch(tegrastats, 5) as recording:
        wait_for(lambda: len(recording.readings) >= 3)
    times = [reading.seconds for reading in recording.readings]
    assert begin < times[0]
    assert times == sorted(times)
    assert times[-1] <= time.monotonic()
    assert recording.readings[0].sample.rails["VDD_IN"].current == 2000
    assert recording.refused is None
    assert gone(tegrastats)
    assert watchers() == []


def test_it_is_gone_after_a_block_that_fails(program: Program) -> None:
    tegrastats = program(NAMES_ITSELF + SPEAKS)

    def fails() -> None:
        with watch(tegrastats, 5) as recording:
            wait_for(lambda: recording.readings)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert gone(tegrastats)
    assert watchers() == []


@pytest.mark.parametrize(
    "stubborn",
    ["signal.signal(signal.SIGTERM, signal.SIG_IGN)\n", "os.fork()\n"],
    ids=["ignores a request to end", "has a child that holds the pipe"],
)
def test_it_is_gone_even_where_it_will_not_go(
    program: Program, stubborn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resedge.jetson.recording._PATIENCE_SECONDS", 0.1)
    tegrastats = program(NAMES_ITSELF + stubborn + SPEAKS)
    with watch(tegrastats, 5) as recording:
        wait_for(lambda: recording.readings)
    assert gone(tegrastats)
    assert watchers() == []


def test_one_that_ends_by_itself_leaves_what_it_said(program: Program) -> None:
    with watch(program("print('needs root', file=sys.stderr)\nsys.exit(1)\n"), 5) as recording:
        wait_for(lambda: recording.refused)
        wait_for(lambda: not watchers())
    assert recording.readings == ()
    assert "needs root" in str(recording.refused)


def test_blank_lines_say_nothing_and_the_first_refusal_is_kept() -> None:
    recording = Recording()
    for line in ("\n", "first\n", "second\n", "RAM 1/2MB\n"):
        recording.add(line)
    assert len(recording.readings) == 1
    assert "first" in str(recording.refused)


def test_one_that_cannot_be_started_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="cannot be started"), watch(tmp_path / "tegrastats", 5):
        pass


def test_it_is_found_on_the_path(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find() is None
    tegrastats = program("")
    monkeypatch.setenv("PATH", str(tegrastats.parent))
    assert find() == tegrastats
