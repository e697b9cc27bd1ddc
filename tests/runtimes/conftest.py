"""Small ONNX files made by hand: conv with bias - relu - global pool - flatten, and one that fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resedge.artifacts import Artifact, TensorSpec, sha256_file


@pytest.fixture(scope="session")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(6, 3, 3, 3)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "weight", "bias"], ["conv"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["relu"]),
            helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
            helper.make_node("Flatten", ["pool"], ["logits"]),
        ],
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path = tmp_path_factory.mktemp("small") / "fp32.onnx"
    onnx.save(model, path)
    return _artifact(path)


@pytest.fixture(scope="session")
def fives(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model that ONNX Runtime opens and that runs on 1 image or 5 and on no other number."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["input", "zeros"], ["sum"]),
            helper.make_node("Flatten", ["sum"], ["logits"]),
        ],
        "fives",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [5, 192])],
        [numpy_helper.from_array(np.zeros((5, 3, 8, 8), np.float32), "zeros")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path = tmp_path_factory.mktemp("fives") / "fives.onnx"
    onnx.save(model, path)
    return _artifact(path)


@pytest.fixture
def junk(tmp_path: Path) -> Artifact:
    """A file that is known by its digest and is no ONNX file."""
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"not an ONNX file")
    return _artifact(path)


def _artifact(path: Path) -> Artifact:
    return Artifact(
        path,
        sha256_file(path),
        "onnx/fp32",
        (TensorSpec("input", ("batch", 3, 8, 8), "float32"),),
        (TensorSpec("logits", ("batch", 6), "float32"),),
    )
