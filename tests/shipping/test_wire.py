from __future__ import annotations

import json

import pytest

from resedge.errors import InputRefused, MachineFailure, ResedgeError
from resedge.shipping import wire

DIGEST = "ab" * 32
BEGUN = wire.Begun(DIGEST, (wire.Missing("cd" * 32, (0, 2)),), 1234)


def test_an_answer_comes_back_as_it_was() -> None:
    assert wire.read_answer(wire.Begun, wire.answer_text(BEGUN), "nano") == BEGUN


@pytest.mark.parametrize("kind", [InputRefused, MachineFailure])
def test_an_error_is_raised_again_as_what_it_was(kind: type[ResedgeError]) -> None:
    text = wire.error_text(kind("is full.", where="/data", cure="Free some."))
    with pytest.raises(kind) as caught:
        wire.read_answer(wire.Begun, text, "nano")
    assert (type(caught.value), str(caught.value)) == (kind, "/data: is full. Free some.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback",
        "{}",
        json.dumps({"wire": 2, "error": None, "answer": None}),
        json.dumps({"wire": 1, "error": None, "answer": {"digest": DIGEST}}),
        json.dumps({"wire": 1, "error": None, "answer": None}),
    ],
)
def test_what_is_no_answer_is_refused_by_the_devices_name(text: str) -> None:
    with pytest.raises(InputRefused, match="nano"):
        wire.read_answer(wire.Begun, text, "nano")


def test_an_error_of_an_unknown_kind_is_a_refusal() -> None:
    failure = {"kind": "annotations", "what": "broke.", "where": "", "cure": ""}
    with pytest.raises(InputRefused, match="broke"):
        wire.read_answer(wire.Begun, json.dumps({"wire": 1, "error": failure, "answer": None}), "nano")


def test_progress_is_one_line_and_other_lines_are_none() -> None:
    progress = wire.Progress("receive", "füllt\nauf", 3, 7)
    line = wire.progress_line(progress)
    assert line.count("\n") == 1
    assert wire.read_progress(line) == progress
    assert wire.read_progress("WARNING: something\n") is None
