from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from resedge.artifacts import Artifact, TensorSpec, sha256_bytes, sha256_file
from resedge.errors import GraphRefused, StaleArtifact
from resedge.export.half import write_half
from resedge.protocols import Float32Array

HALF, FLOAT, INT8 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT8


def run(path: Path, images: Float32Array) -> Float32Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: Float32Array = session.run(["logits"], {"input": images})[0]
    return logits


def quantised(path: Path, scale: float = 0.02, bias: float = 0.5, opset: int = 19) -> Artifact:
    """input - Q - DQ - Gemm with an int8 weight behind a DQ - logits."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "x.scale": np.float32(scale).reshape(()),
        "x.zero": np.int8(0).reshape(()),
        "w": np.array([[127, -50, 3], [1, 2, -128]], np.int8),
        "w.scale": np.array([0.01, 0.02], np.float32),
        "w.zero": np.array([0, 0], np.int8),
        "bias": np.array([bias, 0.0], np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "x.scale", "x.zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x.scale", "x.zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["w.dq"], axis=0),
        helper.make_node("Gemm", ["dq", "w.dq", "bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return Artifact(
        path,
        sha256_bytes(path.read_bytes()),
        "onnx/int8.tensorrt",
        (TensorSpec("input", ("batch", 3), "float32"),),
        (TensorSpec("logits", ("batch", 2), "float32"),),
        meta={"scheme": "tensorrt"},
    )


@pytest.fixture(scope="module")
def notebook_half(notebook_onnx: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_half(notebook_onnx, tmp_path_factory.mktemp("half") / "fp16.onnx")


def test_the_artifact_says_what_the_file_is(notebook_half: Artifact, notebook_onnx: Artifact) -> None:
    assert notebook_half.kind == "onnx/fp16"
    assert notebook_half.sha256 == sha256_file(notebook_half.path)
    assert notebook_half.parents == (notebook_onnx.sha256,)
    assert (notebook_half.inputs, notebook_half.outputs) == (notebook_onnx.inputs, notebook_onnx.outputs)
    assert notebook_half.meta["nodes"] == 19


def test_everything_between_the_two_casts_is_half(notebook_half: Artifact) -> None:
    model = onnx.load(notebook_half.path)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert [entry.version for entry in model.opset_import] == [19]
    assert [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)] == [FLOAT, FLOAT]
    assert {value.type.tensor_type.elem_type for value in graph.value_info} == {HALF}
    assert {tensor.data_type for tensor in graph.initializer} == {HALF}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert casts == [graph.node[0], graph.node[-1]]
    assert [(list(node.input), list(node.output), node.attribute[0].i) for node in casts] == [
        (["input"], ["input.half"], HALF),
        (["logits.half"], ["logits"], FLOAT),
    ]
    assert all("input" not in node.input for node in graph.node[1:])


def test_inferred_types_agree_with_the_declared_ones(notebook_half: Artifact) -> None:
    model = onnx.load(notebook_half.path)
    declared = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    assert len(inferred) == 18
    assert all(declared[value.name] == value.type.tensor_type.elem_type for value in inferred)


def test_weights_are_rounded_to_nearest(notebook_half: Artifact, notebook_onnx: Artifact) -> None:
    wide = {t.name: numpy_helper.to_array(t) for t in onnx.load(notebook_onnx.path).graph.initializer}
    for tensor in onnx.load(notebook_half.path).graph.initializer:
        narrow, exact = numpy_helper.to_array(tensor).astype(np.float64), wide[tensor.name]
        # Half an ulp: 2^-11 of a normal number, 2^-25 below the normal ones.
        assert (np.abs(narrow - exact) <= np.maximum(np.abs(exact) * 2.0**-11, 2.0**-25)).all()


def test_the_logits_are_near_those_in_float32(
    notebook_half: Artifact, notebook_onnx: Artifact, images: Float32Array
) -> None:
    wide, narrow = run(notebook_onnx.path, images), run(notebook_half.path, images)
    assert narrow.dtype == np.float32
    error = np.abs(wide - narrow).max()
    assert 0 < error < 1e-2 * np.abs(wide).max()


def test_a_batchnorm_keeps_its_parameters_in_float32(
    small_onnx: Artifact, images: Float32Array, tmp_path: Path
) -> None:
    written = write_half(small_onnx, tmp_path / "h.onnx")
    types = {t.name: t.data_type for t in onnx.load(written.path).graph.initializer}
    assert {name for name, kind in types.items() if kind == FLOAT} == {
        "bn.weight",
        "bn.bias",
        "bn.mean",
        "bn.variance",
    }
    cropped = np.ascontiguousarray(images[:, :, :16, :16])
    wide, narrow = run(small_onnx.path, cropped), run(written.path, cropped)
    np.testing.assert_allclose(narrow, wide, atol=2e-3)


def test_a_qdq_graph_keeps_its_kind_and_its_integers(tmp_path: Path) -> None:
    written = write_half(quantised(tmp_path / "q.onnx"), tmp_path / "h.onnx")
    assert written.kind == "onnx/int8.tensorrt"
    assert written.meta["scheme"] == "tensorrt"
    graph = onnx.load(written.path).graph
    assert {t.name: t.data_type for t in graph.initializer} == {
        "x.scale": HALF,
        "x.zero": INT8,
        "w": INT8,
        "w.scale": HALF,
        "w.zero": INT8,
        "bias": HALF,
    }
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    assert (types["q"], types["dq"], types["w.dq"]) == (INT8, HALF, HALF)
    x = np.array([[1.0, -0.5, 0.25]], np.float32)
    # By hand: 0.02 steps give 1.0, -0.5, 0.24; the rows are 1.27 -0.5 0.03 and 0.02 0.04 -2.56.
    np.testing.assert_allclose(run(written.path, x), [[2.0272, -0.6144]], atol=4e-3)


def test_the_smallest_scale_passes_and_one_below_is_refused_by_name(tmp_path: Path) -> None:
    smallest = 2.0**-14
    write_half(quantised(tmp_path / "q.onnx", scale=smallest), tmp_path / "h.onnx")
    (tmp_path / "h.onnx").unlink()
    below = quantised(tmp_path / "q.onnx", scale=float(np.nextafter(np.float32(smallest), np.float32(0))))
    with pytest.raises(GraphRefused, match=r"^x\.scale: is a scale of 6\.104e-05"):
        write_half(below, tmp_path / "h.onnx")
    assert not (tmp_path / "h.onnx").exists()


@pytest.mark.parametrize("value", [65536.0, -1e30, float("inf"), float("nan")])
def test_a_value_beyond_half_is_refused_by_name(value: float, tmp_path: Path) -> None:
    with pytest.raises(GraphRefused, match=r"^bias: holds .*, FP16 ends at 65504"):
        write_half(quantised(tmp_path / "q.onnx", bias=value), tmp_path / "h.onnx")


def test_underflow_is_counted(tmp_path: Path) -> None:
    written = write_half(quantised(tmp_path / "q.onnx", bias=1e-9), tmp_path / "h.onnx")
    assert written.meta["underflowed"] == 1


def test_another_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphRefused, match="has opset 21, needed is 19"):
        write_half(quantised(tmp_path / "q.onnx", opset=21), tmp_path / "h.onnx")


def test_half_of_half_is_refused(notebook_half: Artifact, tmp_path: Path) -> None:
    with pytest.raises(GraphRefused, match="a Cast has no FP16 form here"):
        write_half(notebook_half, tmp_path / "h.onnx")


def test_a_changed_file_is_not_read(tmp_path: Path) -> None:
    model = dataclasses.replace(quantised(tmp_path / "q.onnx"), sha256="0" * 64)
    with pytest.raises(StaleArtifact):
        write_half(model, tmp_path / "h.onnx")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not here")
@pytest.mark.parametrize("graph", ["notebook", "small", "qdq"])
def test_tensorrt_rtx_builds_it(
    graph: str, notebook_half: Artifact, small_onnx: Artifact, tmp_path: Path
) -> None:
    if graph == "qdq":
        model = write_half(quantised(tmp_path / "q.onnx"), tmp_path / "h.onnx")
    else:
        model = notebook_half if graph == "notebook" else write_half(small_onnx, tmp_path / "h.onnx")
    script = Path(__file__).with_name("rtx_build.py")
    done = subprocess.run(
        [sys.executable, str(script), str(model.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
