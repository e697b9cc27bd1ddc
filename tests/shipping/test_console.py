from __future__ import annotations

import pytest

from resedge.console_shipping import Fleet, print_shipped, print_statuses
from resedge.errors import DeviceUnreachable
from resedge.pipeline.fleets import Outcome
from resedge.shipping import wire
from resedge.shipping.delivery import Delivered
from resedge.shipping.remote import Survey

AT = "2026-03-01T12:00:00Z"
TRIAL = wire.Trial("openvino:int8", 2, 70, 0.9, 1.0, 100, 1.5, 2.0, 10, wire.Limits(), ("it disagrees",), AT)
SURVEY = Survey("/r", "aarch64", "3.10.0", True, None, "", "", None, None, None)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("quiet", [False, True])
def test_what_is_said_while_devices_work(
    terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    with Fleet(["nano", "orin[1]"], quiet=quiet) as fleet:
        fleet.step("nano", "probing")
        fleet.count("nano", 100)
        fleet.sent("nano", 50)
        fleet.done("nano", "updated")
        fleet.done("orin[1]", "a\x1b[2Jb [red]")
    said = capsys.readouterr().err
    assert ("updated" in said) is not quiet
    assert ("nano" in said) is not quiet
    assert "\x1b[2J" not in said
    assert ("[red]" in said) is not quiet


def test_a_table_of_what_was_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    rejected = wire.Installed("a" * 64, "rejected", ("trial",), TRIAL, "it disagrees", "b" * 64)
    away = DeviceUnreachable("cannot be reached (no route).", where="orin")
    print_shipped(
        [
            Outcome("nano", Delivered(SURVEY, None, ("openvino", "int8"), rejected), None, 1.0, 3_000_000),
            Outcome[Delivered]("orin", None, away, 1.0),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["nano", "rejected", "bbbbbbbbbbbb", "openvino:int8", "3.0", "MB"]
    assert lines[3].split() == ["orin", "unreachable", "-", "-", "0.0", "MB"]
    assert lines[4] == "nano: trial: 90.0% of 70 agree, p50 1.50 ms; it disagrees"
    assert lines[5] == "orin: cannot be reached (no route)."


def test_a_table_of_what_serves(capsys: pytest.CaptureFixture[str]) -> None:
    serving = wire.Serving("c" * 64, 7, "net", "openvino:int8", AT, TRIAL)
    operation = wire.Operation("install", "d" * 64, "build", "c" * 64, AT)
    failed = wire.Failed("e" * 64, "trial", "it disagrees", AT)
    print_statuses(
        [
            Outcome("nano", wire.Status(True, serving, 7, None, (), operation, failed), None, 1.0),
            Outcome("new", wire.Status(True, None, 0, None, (), None, None), None, 1.0),
        ]
    )
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[2].split() == ["nano", "openvino:int8", "cccccccccccc", AT]
    assert lines[3].split() == ["new", "-", "-", "-"]
    assert "install of dddddddddddd stopped in build" in said
    assert f"eeeeeeeeeeee failed in trial at {AT}: it disagrees" in said
