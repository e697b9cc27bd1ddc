from __future__ import annotations

from pathlib import Path

import pytest

from resedge.engines import GRAPHS
from resedge.errors import UsageError
from resedge.pipeline.options import BenchOptions, Measuring, Selection, select


def test_nothing_asked_for_is_everything_but_rtx_and_names_nobody() -> None:
    chosen = select([], [])
    assert chosen == Selection()
    assert set(GRAPHS) - set(chosen.engines) == {("tensorrt_rtx", "fp16"), ("tensorrt_rtx", "int8")}
    assert chosen.named == frozenset()


@pytest.mark.parametrize(
    ("backends", "precisions", "engines"),
    [
        (["openvino"], [], [("openvino", "fp32"), ("openvino", "fp16"), ("openvino", "int8")]),
        (["openvino:int8"], [], [("openvino", "int8")]),
        (["onnxruntime", "openvino:fp16"], ["fp16", "int8"], [("openvino", "fp16"), ("onnxruntime", "int8")]),
        (["openvino"], ["int8"], [("openvino", "int8")]),
        ([], ["fp16"], [("openvino", "fp16"), ("tensorrt", "fp16")]),
        (["tensorrt_rtx"], ["int8"], [("tensorrt_rtx", "int8")]),
        (["openvino:int8", "openvino:int8"], [], [("openvino", "int8")]),
    ],
)
def test_backends_and_precisions_select(
    backends: list[str], precisions: list[str], engines: list[tuple[str, str]]
) -> None:
    chosen = select(backends, precisions)
    assert list(chosen.engines) == engines
    assert chosen.named == {text.split(":")[0] for text in backends}


@pytest.mark.parametrize(
    ("backends", "precisions", "words"),
    [
        (["tensort"], [], "Did you mean tensorrt"),
        (["openvino:int4"], [], "unknown precision 'int4'"),
        ([], ["fp8"], "unknown precision 'fp8'"),
        (["tensorrt:fp32"], [], "tensorrt has no fp32 engine"),
        (["onnxruntime"], ["fp16"], "onnxruntime has no engine of precision fp16"),
        (["onnxruntime", "openvino:fp16"], ["int8"], "openvino:fp16 has no engine of precision int8"),
        (["openvino:"], [], "unknown precision ''"),
    ],
)
def test_what_is_not_known_is_refused(backends: list[str], precisions: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(backends, precisions)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"max_drop": 1.0}, "--max-drop"),
        ({"max_drop": float("nan")}, "--max-drop"),
        ({"min_speedup": float("inf")}, "--min-speedup"),
        ({"confidence": 0.5}, "--confidence"),
        ({"confidence": float("nan")}, "--confidence"),
        ({"threads": 0}, "--threads"),
    ],
)
def test_a_budget_that_nothing_could_meet_or_miss_is_refused(change: dict[str, float], option: str) -> None:
    with pytest.raises(UsageError, match=option):
        Measuring(**change)  # type: ignore[arg-type]  # floats and ints by name


@pytest.mark.parametrize(
    ("rounds", "processes", "option"),
    [(1, 1, "--rounds"), (4, 5, "--processes"), (4, 0, "--processes")],
)
def test_rounds_that_cannot_be_shared_are_refused(rounds: int, processes: int, option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option}: "):
        BenchOptions(Path("m.resedge"), rounds=rounds, processes=processes)


def test_one_round_a_process_is_possible() -> None:
    assert BenchOptions(Path("m.resedge"), rounds=3, processes=3).rounds == 3
