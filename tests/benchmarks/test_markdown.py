from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from resedge.benchmarks.comparing import compare_documents
from resedge.benchmarks.documents import read_document
from resedge.benchmarks.evidence import Evidence
from resedge.benchmarks.markdown import markdown

Document = dict[str, Any]
Make = Callable[..., Document]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, which is a run of lines that begin with a bar."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[line.strip("| ").split(" | ") for line in block.splitlines()] for block in found]


def test_the_table_has_a_row_an_engine(older_document: Document) -> None:
    sizes = {("openvino", "int8"): 1_100_000}
    (table,) = tables(markdown(read_document(older_document, "old"), Evidence(sizes=sizes)))
    assert len({len(row) for row in table}) == 1
    assert len(table) == 2 + 7
    assert table[4] == [
        *("OpenVINO int8", "1.10", "92.62", "0.00 (0.10)", "99.65", "1.27", "3.70 (3.51 to 3.93)", "pass")
    ]
    assert table[7][-1] == "unavailable"


def test_reasons_and_the_command_stand_below(make_document: Make) -> None:
    text = markdown(read_document(make_document(), "new"), Evidence(command="resedge bench a.resedge"))
    assert "\n- **TensorRT int8**: to be built on the device\n" in text
    assert text.endswith("```sh\nresedge bench a.resedge\n```\n")


def test_what_was_measured_besides_has_a_table(make_document: Make) -> None:
    document = make_document()
    camera = {"frames": 90, "rate": 30.0, "late": 2, "p50_ms": 1.5, "p99_ms": None, "longest_ms": 40.25}
    document["engines"][0]["scenarios"] = {"camera": camera}
    text = markdown(read_document(document, "new"), Evidence())
    assert "#### Measured besides" in text
    assert tables(text)[1][2:] == [
        ["OpenVINO fp32", "camera", "90 frames at 30 Hz: p50 1.50 ms, longest 40.25, 2 late"]
    ]


def test_changes_are_a_second_table(make_document: Make) -> None:
    before, now = make_document((2.0, 4.0), seed=1), make_document((2.0, 3.6), seed=2)
    now["conditions"]["threads"] = 1
    old, new = read_document(before, "old"), read_document(now, "new")
    text = markdown(new, Evidence(), compare_documents(old, new))
    table = tables(text)[1]
    assert [row[2] for row in table[2:]] == ["equivalent", "slower", "not in both"]
    assert "\n- another number of compute threads (threads was 2, is 1)" in text


def test_nothing_that_a_user_named_becomes_markup(make_document: Make) -> None:
    hostile = "a|b <img src=x> @team [x](y) `c` *d* _e_ #1 ~f~ $g$ \\| \n| next"
    document = make_document()
    document["model"] = hostile
    document["engines"][0].update(runtime=hostile, reasons=[hostile])
    text = markdown(read_document(document, "new"), Evidence(command="a ``` b\nc"))
    assert len({len(row) for row in tables(text)[0]}) == 1
    body = text[: text.index("```sh")].replace("**", "")
    body = re.sub(r"^(\| :?-.*|#+ )", "", body, flags=re.MULTILINE)
    assert not re.search(r"[<>@`*_\[\]~$\\]", body)
    assert text.count("```") == 2
