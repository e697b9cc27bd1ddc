from __future__ import annotations

from pathlib import Path

import pytest

from resedge.artifacts import Artifact, TensorSpec
from resedge.errors import BuildFailed, UsageError
from resedge.runtimes.trtexec import trtexec_commands

INPUT = TensorSpec("input", ("batch", 3, 28, 28), "float32")
FP16 = Artifact(Path("/somewhere/fp16.onnx"), "0" * 64, "onnx/fp16", (INPUT,))
INT8 = Artifact(Path("/somewhere/int8.tensorrt.onnx"), "0" * 64, "onnx/int8.tensorrt", (INPUT,))


def test_trtexec_lines_for_fp16() -> None:
    shapes = "--minShapes=input:1x3x28x28 --optShapes=input:4x3x28x28 --maxShapes=input:16x3x28x28"
    common = f"trtexec --onnx=onnx/fp16.onnx {shapes} --saveEngine=../tensorrt-fp16.plan --skipInference"
    assert trtexec_commands(FP16, (1, 4, 16)) == {
        "TensorRT 10": f"{common} --stronglyTyped",
        "TensorRT 11": common,
    }


def test_trtexec_lines_for_int8_ask_for_no_precision() -> None:
    for line in trtexec_commands(INT8, (1, 1, 1)).values():
        assert "--onnx=onnx/int8.tensorrt.onnx " in line
        assert "--saveEngine=../tensorrt-int8.plan" in line
        assert "--int8" not in line
        assert "--fp16" not in line


@pytest.mark.parametrize("batch_range", [(0, 1, 2), (2, 1, 3), (1, 8, 4)])
def test_batch_range_is_ascending(batch_range: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="batch range"):
        trtexec_commands(FP16, batch_range)


def test_trtexec_of_another_graph_is_refused() -> None:
    other = Artifact(Path("int8.cpu.onnx"), "0" * 64, "onnx/int8.cpu", (INPUT,))
    with pytest.raises(BuildFailed, match=r"'onnx/int8\.cpu'.*onnx/fp16 or onnx/int8\.tensorrt"):
        trtexec_commands(other, (1, 8, 32))
