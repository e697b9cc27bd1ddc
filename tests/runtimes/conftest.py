"""Small ONNX files made by hand: conv with bias - relu - global pool - flatten, and one that fails.

For TensorRT strongly typed ones, and each kind of device that has TensorRT, all of it doubles.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resedge.artifacts import Artifact, Engine, TensorSpec, sha256_file
from resedge.protocols import BuildOptions
from resedge.runtimes.table import runtime

HERE = Path(__file__).parent
DATA = HERE / "data"
# Each TensorRT with the cuda-python that goes with it.
WORLDS = (
    ("tensorrt-10.3.0", "12.2.1"),
    ("tensorrt-10.3.0", "12.6.2"),
    ("tensorrt-10.13.3.9", "13.5.0"),
    ("tensorrt-10.16.1.11", "13.5.0"),
    ("tensorrt-11.4.0.106", "13.5.0"),
)


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


def _artifact(path: Path, kind: str = "onnx/fp32") -> Artifact:
    return Artifact(
        path,
        sha256_file(path),
        kind,
        (TensorSpec("input", ("batch", 3, 8, 8), "float32"),),
        (TensorSpec("logits", ("batch", 6), "float32"),),
    )


@pytest.fixture(scope="session")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    """Strongly typed graphs by precision; two refused ones, "int8.shifted" and "fp16.mixed", beside them."""
    folder = tmp_path_factory.mktemp("typed")
    definition = runpy.run_path(str(HERE / "typed_graphs.py"))
    graphs: dict[str, Artifact] = {}
    for name in ("fp16", "int8", "fp16.mixed", "int8.shifted"):
        path = folder / f"{name}.onnx"
        onnx.save(definition["graph"](name), path)
        graphs[name] = _artifact(path, "onnx/fp16" if name.startswith("fp16") else "onnx/int8.tensorrt")
    return graphs


@pytest.fixture(params=WORLDS, ids="-".join)
def world(request: pytest.FixtureRequest, device: Callable[..., Any]) -> Any:  # noqa: ANN401
    """A device of every kind, one after the other."""
    return device(*request.param)


@pytest.fixture
def build(typed: Mapping[str, Artifact], tmp_path: Path) -> Callable[..., Engine]:
    """Build a plan of one of the typed graphs, whatever TensorRT is there."""

    def make(precision: str = "fp16", **options: Any) -> Engine:  # noqa: ANN401
        return runtime("tensorrt").build(typed[precision], tmp_path, BuildOptions(precision, **options))

    return make


@pytest.fixture(scope="session")
def snapshots() -> Mapping[str, Any]:
    """The names of every TensorRT and CUDA module that there is a snapshot of, by file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DATA.glob("*.json"))}
