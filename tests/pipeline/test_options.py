from __future__ import annotations

import pytest

from resedge.errors import UsageError
from resedge.pipeline.options import GRAPHS, select


def test_nothing_asked_for_is_everything_and_names_nobody() -> None:
    chosen = select([], [])
    assert chosen.engines == tuple(GRAPHS)
    assert chosen.named == frozenset()


@pytest.mark.parametrize(
    ("backends", "precisions", "engines"),
    [
        (["openvino"], [], [("openvino", "fp32"), ("openvino", "fp16"), ("openvino", "int8")]),
        (["openvino:int8"], [], [("openvino", "int8")]),
        (["onnxruntime", "openvino:fp16"], ["fp16", "int8"], [("openvino", "fp16"), ("onnxruntime", "int8")]),
        ([], ["fp16"], [("openvino", "fp16"), ("tensorrt", "fp16")]),
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
        (["onnxruntime"], ["fp16"], "no engine has"),
    ],
)
def test_what_is_not_known_is_refused(backends: list[str], precisions: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(backends, precisions)
    assert words in str(caught.value)
