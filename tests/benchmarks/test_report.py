"""The table as it is read, and the document as DESIGN names its keys."""

import io
import json
from collections.abc import Sequence
from typing import Literal

import pytest
from rich.console import Console

from resedge.artifacts import Accuracy, JsonValue, Latency, Verdict
from resedge.benchmarks.report import document, run_notes, table

REASON = "is not installed. Try: pip install 'resedge[tensorrt]'"
VERDICTS = (
    Verdict(
        "openvino",
        "int8",
        "pass",
        (),
        Accuracy(10_000, 0.9976, 0.21, 0.9241, 0.9243, 0.0002, 0.0013, 11, 9),
        Latency(0.25, 1.40, 5.61, 5.404, 5.82, 4.6, "faster", 8, 50),
        {"threads": 2},
    ),
    Verdict(
        "onnxruntime",
        "int8",
        "inconclusive",
        ("1,000 images are too few.",),
        Accuracy(1000, 1.0, 0.21, 0.8021, 0.9243, 0.1222, 0.1253, 125, 3),
        Latency(171.35, 1882.0, 10.98, 10.9, 11.05, 9.8, "faster", 8, 50),
    ),
    Verdict(
        "openvino",
        "fp16",
        "fail",
        ("too slow.",),
        Accuracy(1000, 0.999, 0.1),
        Latency(99.95, 98.0, 0.98, 0.97, 0.99, 0.9, "slower", 8, 50),
    ),
    Verdict("tensorrt", "int8", "unavailable", (REASON,)),
)
SIZES = {("openvino", "int8"): 2_912_345, ("onnxruntime", "int8"): 102_800_000}


def rendered(width: int, verdicts: Sequence[Verdict] = VERDICTS, *, colour: bool = False) -> str:
    out = io.StringIO()
    colours: Literal["standard"] | None = "standard" if colour else None
    console = Console(file=out, width=width, force_terminal=colour, color_system=colours, highlight=False)
    console.print(table(verdicts, SIZES))
    return out.getvalue()


def test_at_120_columns_an_engine_is_a_line() -> None:
    lines = [line.rstrip() for line in rendered(120).splitlines()]
    rows = [line.split() for line in lines[3:7]]
    assert [" ".join(row) for row in rows] == [
        "openvino int8 2.91 92.41 +0.02 (<=0.13) 99.76 0.25 5.61x 5.40..5.82 pass",
        "onnxruntime int8 103 80.21 +12.22 (<=12.53) 100.00 171 11.0x 10.9..11.1 inconclusive",
        "openvino fp16 - - - 99.90 100 0.98x 0.97..0.99 fail",
        "tensorrt int8 - - - - - - unavailable",
    ]
    assert lines[7:] == [
        "",
        "onnxruntime int8: 1,000 images are too few.",
        "openvino fp16: too slow.",
        "tensorrt int8: is not installed. Try: pip install 'resedge[tensorrt]'",
    ]


def test_at_80_columns_nothing_is_cut() -> None:
    text = rendered(80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    wide = rendered(120).split()
    assert sorted(word for word in text.split() if "─" not in word) == sorted(
        word for word in wide if "─" not in word
    )


@pytest.mark.parametrize("width", [80, 120])
def test_headings(width: int) -> None:
    first, second = rendered(width).splitlines()[:2]
    assert first.split() == ["size", "top-1", "drop,", "agrees", "p50", "ratio", "to"]
    assert second.split() == ["backend", "precision", "MB", "%", "points", "%", "ms", "eager", "verdict"]


def test_the_outcome_is_a_word_and_a_colour() -> None:
    text = rendered(120, colour=True)
    for code, word in (("32", "pass"), ("33", "inconclusive"), ("1;31", "fail"), ("2", "unavailable")):
        assert f"\x1b[{code}m{word}" in text


def test_no_reasons_no_notes() -> None:
    assert len(rendered(120, VERDICTS[:1]).splitlines()) == 4


def test_the_document_has_the_keys_of_the_design() -> None:
    found = document("notebook", "eager, batchnorm split", {"threads": 2, "batch": 1}, VERDICTS)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == ["schema", "model", "reference", "conditions", "engines"]
    assert (found["schema"], found["model"]) == (1, "notebook")
    assert (found["reference"], found["conditions"]) == ("eager, batchnorm split", {"threads": 2, "batch": 1})
    engines = found["engines"]
    assert isinstance(engines, list)
    assert engines[0] == {
        "runtime": "openvino",
        "precision": "int8",
        "outcome": "pass",
        "reasons": [],
        "accuracy": {
            "images": 10_000,
            "top1": 0.9241,
            "top1_eager": 0.9243,
            "drop": 0.0002,
            "drop_upper": 0.0013,
            "agreement": 0.9976,
            "negative_flips": 11,
            "positive_flips": 9,
            "max_abs_logit_error": 0.21,
            "top5": None,
            "top5_eager": None,
            "kl": None,
            "worst_class": None,
            "images_needed": None,
        },
        "latency": {
            "p50_ms": 0.25,
            "p50_ms_eager": 1.40,
            "speedup": 5.61,
            "speedup_low": 5.404,
            "speedup_high": 5.82,
            "speedup_best_eager": 4.6,
            "relation": "faster",
            "rounds": 8,
            "calls_per_block": 50,
            "p90_ms": None,
            "p95_ms": None,
            "p99_ms": None,
            "p999_ms": None,
            "log_ratios": [],
            "processes": [],
            "distribution": None,
            "rounds_needed": None,
        },
    }
    assert engines[2]["accuracy"]["top1"] is None
    assert engines[2]["accuracy"]["drop_upper"] is None
    assert engines[3] == {
        "runtime": "tensorrt",
        "precision": "int8",
        "outcome": "unavailable",
        "reasons": [REASON],
        "accuracy": None,
        "latency": None,
    }


def test_the_baseline_line_is_eager_s() -> None:
    from resedge.artifacts import Accuracy, Latency, Verdict
    from resedge.benchmarks.report import baseline
    from resedge.benchmarks.verdict import unavailable

    missing = unavailable("tensorrt", "int8", "not here")
    latency = Latency(0.5, 2.125, 4.0, 3.5, 4.5, 3.0, "faster", 8, 100)
    labelled = Verdict(
        "a", "int8", "pass", (), Accuracy(10_000, 1.0, 0.0, 0.9, 0.92, 0.0, 0.0, 0, 0), latency
    )
    assert baseline("eager", (missing, labelled)) == (
        "eager: top-1 92.00%, p50 2.12 ms at batch 1, 10,000 test images"
    )
    unlabelled = Verdict("a", "int8", "pass", (), Accuracy(50, 1.0, 0.0), latency)
    assert baseline("eager", (unlabelled,)) == "eager: p50 2.12 ms at batch 1, 50 test images"
    assert baseline("eager", (missing,)) == ""


def test_circumstances_say_threads_versions_and_what_computes_in_what() -> None:
    from resedge.benchmarks.report import circumstances

    line = circumstances(
        {
            "threads": 2,
            "cpu": "AMD EPYC",
            "libraries": {"torch": "2.13.0", "openvino": "2026.4.1"},
            "computed": {"openvino:fp16": "FP16 weights, computed in FP32"},
        }
    )
    assert line == (
        "2 threads, AMD EPYC; torch 2.13.0, openvino 2026.4.1; openvino:fp16: FP16 weights, computed in FP32"
    )


@pytest.mark.parametrize(("engine", "said"), [("frames", True), ("prepared", False)])
def test_circumstances_say_what_each_side_is_given_where_that_differs(engine: str, said: bool) -> None:
    from resedge.benchmarks.report import circumstances

    given = {"eager": "prepared", "openvino:int8": engine}
    line = circumstances({"threads": 2, "cpu": "AMD EPYC", "given": given})
    assert line.endswith("; eager is given prepared; openvino:int8 is given frames") is said
    assert said or line == "2 threads, AMD EPYC"


@pytest.mark.parametrize(
    ("run", "lines"),
    [
        ({}, []),
        ({"partial": False, "stability": {"stable": True, "reasons": []}, "self_check": None}, []),
        ({"partial": True}, ["interrupted: of the rounds until then"]),
        ({"stability": {"stable": False, "reasons": ["a", "b"]}}, ["unstable: a; b"]),
        ({"self_check": {"relation": "equivalent", "alarm": False}}, []),
        (
            {"self_check": {"relation": "faster", "alarm": True}},
            ["alarm: eager is faster than itself, so no ratio of this run can be trusted"],
        ),
    ],
)
def test_what_was_wrong_with_a_run_is_a_line(run: dict[str, JsonValue], lines: list[str]) -> None:
    assert run_notes(run) == lines
