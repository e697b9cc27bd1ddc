from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from resedge.artifacts import Artifact, TensorSpec, sha256_bytes, sha256_file
from resedge.errors import GraphRefused, StaleArtifact, UsageError
from resedge.export.fold import fold
from resedge.export.half import WIDE_KEY, write_half
from resedge.export.onnxfile import write_onnx
from resedge.export.trace import trace
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
        helper.make_node("Gemm", ["dq", "w.dq", "bias"], ["logits"], name="fc", transB=1),
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
    assert notebook_half.parents == (*notebook_onnx.parents, notebook_onnx.sha256)
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


def shared(path: Path) -> Artifact:
    """One pair, one int8 weight and one bias that two Gemms read; their results are added."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "x.scale": np.float32(0.02).reshape(()),
        "x.zero": np.int8(0).reshape(()),
        "w": np.array([[127, -50, 3], [1, 2, -128]], np.int8),
        "w.scale": np.array([0.01, 0.02], np.float32),
        "w.zero": np.array([0, 0], np.int8),
        "bias": np.array([0.5, 0.0], np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "x.scale", "x.zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "x.scale", "x.zero"], ["dq"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["w.dq"], name="w.dq", axis=0),
        helper.make_node("Gemm", ["dq", "w.dq", "bias"], ["a.out"], name="a", transB=1),
        helper.make_node("Gemm", ["dq", "w.dq", "bias"], ["b.out"], name="b", transB=1),
        helper.make_node("Add", ["a.out", "b.out"], ["logits"], name="sum"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        value_info=[helper.make_tensor_value_info(name, FLOAT, ["batch", 2]) for name in ("a.out", "b.out")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return dataclasses.replace(
        quantised(path.with_suffix(".spec")), path=path, sha256=sha256_bytes(path.read_bytes())
    )


def nodes_of(path: Path) -> list[tuple[str, list[str], list[str]]]:
    return [(node.op_type, list(node.input), list(node.output)) for node in onnx.load(path).graph.node]


def test_a_wide_node_is_float_and_its_neighbours_get_one_cast_each(
    small_onnx: Artifact, tmp_path: Path
) -> None:
    wide = {"layer.0.conv1", "layer.0.relu", "layer.0.conv2"}
    written = write_half(small_onnx, tmp_path / "h.onnx", wide)
    assert written.meta["wide"] == sorted(wide)
    model = onnx.load(written.path)
    assert {entry.key: json.loads(entry.value) for entry in model.metadata_props} == {WIDE_KEY: sorted(wide)}
    casts = [(inputs, outputs) for kind, inputs, outputs in nodes_of(written.path) if kind == "Cast"]
    assert casts == [
        (["input"], ["input.half"]),
        (["pool.out"], ["pool.out.float"]),
        (["layer.0.conv2.out"], ["layer.0.conv2.out.half"]),
        (["logits.half"], ["logits"]),
    ]
    readers = {node.name: list(node.input) for node in model.graph.node}
    assert readers["layer.0.conv1"][0] == "pool.out.float"
    assert readers["layer.0.relu"] == ["layer.0.conv1.out"]
    assert readers["layer.0.add"] == ["layer.0.conv2.out.half", "pool.out"]
    assert {tensor.name for tensor in model.graph.initializer if tensor.data_type == FLOAT} == {
        *(f"layer.0.conv{index}.{part}" for index in (1, 2) for part in ("weight", "bias")),
        *(f"bn.{part}" for part in ("weight", "bias", "mean", "variance")),
    }


def test_wide_ends_read_the_input_and_write_the_logits_themselves(
    small_onnx: Artifact, tmp_path: Path
) -> None:
    written = write_half(small_onnx, tmp_path / "h.onnx", {"bn", "fc"})
    nodes = nodes_of(written.path)
    assert nodes[0][0] == "BatchNormalization"
    assert nodes[0][1][0] == "input"
    assert nodes[-1][0] == "Gemm"
    assert nodes[-1][2] == ["logits"]
    # The Flatten before a wide Gemm is wide with it: nothing may stand between the two in a Q/DQ graph.
    assert written.meta["wide"] == ["bn", "fc", "flatten"]
    casts = [(inputs, outputs) for kind, inputs, outputs in nodes if kind == "Cast"]
    assert casts == [(["bn.out"], ["bn.out.half"]), (["average.out"], ["average.out.float"])]


def test_everything_wide_is_the_float_graph(small_onnx: Artifact, tmp_path: Path) -> None:
    names = {node.name for node in onnx.load(small_onnx.path).graph.node}
    written = write_half(small_onnx, tmp_path / "h.onnx", names)
    assert nodes_of(written.path) == nodes_of(small_onnx.path)
    assert onnx.load(written.path).graph.initializer[:] == onnx.load(small_onnx.path).graph.initializer[:]


def test_a_pair_and_constants_that_both_precisions_read_become_two(tmp_path: Path) -> None:
    model = shared(tmp_path / "q.onnx")
    written = write_half(model, tmp_path / "h.onnx", {"b"})
    assert sorted(nodes_of(written.path)) == sorted(
        [
            ("Cast", ["input"], ["input.half"]),
            ("QuantizeLinear", ["input.half", "x.scale.half", "x.zero"], ["q"]),
            ("QuantizeLinear", ["input", "x.scale", "x.zero"], ["q.float"]),
            ("DequantizeLinear", ["q", "x.scale.half", "x.zero"], ["dq"]),
            ("DequantizeLinear", ["q.float", "x.scale", "x.zero"], ["dq.float"]),
            ("DequantizeLinear", ["w", "w.scale.half", "w.zero"], ["w.dq"]),
            ("DequantizeLinear", ["w", "w.scale", "w.zero"], ["w.dq.float"]),
            ("Gemm", ["dq", "w.dq", "bias.half"], ["a.out"]),
            ("Gemm", ["dq.float", "w.dq.float", "bias"], ["b.out"]),
            ("Cast", ["b.out"], ["b.out.half"]),
            ("Add", ["a.out", "b.out.half"], ["logits.half"]),
            ("Cast", ["logits.half"], ["logits"]),
        ]
    )
    axes = [
        [attribute.i for attribute in node.attribute]
        for node in onnx.load(written.path).graph.node
        if node.output[0].startswith("w.dq")
    ]
    assert axes == [[0], [0]]
    x = np.array([[1.0, -0.5, 0.25]], np.float32)
    np.testing.assert_allclose(run(written.path, x), [[2 * 2.0272, -2 * 0.6144]], atol=8e-3)


def test_a_pair_has_the_precision_of_its_readers(tmp_path: Path) -> None:
    written = write_half(quantised(tmp_path / "q.onnx", scale=1e5, bias=1e5), tmp_path / "h.onnx", {"fc"})
    graph = onnx.load(written.path).graph
    assert not [node for node in graph.node if node.op_type == "Cast"]
    assert {tensor.data_type for tensor in graph.initializer} == {FLOAT, INT8}
    assert written.meta["wide"] == ["fc"]  # the pairs follow, so that they are not listed


@pytest.mark.parametrize("name", ["no.such.node", "dq"])
def test_a_name_that_cannot_stay_wide_is_a_wrong_use(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{name}: no node is called so that can stay float32"):
        write_half(shared(tmp_path / "q.onnx"), tmp_path / "h.onnx", {"a", name})
    assert not (tmp_path / "h.onnx").exists()


def written_by_export(module: nn.Module, path: Path) -> Artifact:
    torch.manual_seed(0)
    shape = (3, 16, 16)
    sample = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
    return write_onnx(fold(trace(module.eval(), shape), sample).graph, shape, path)


def between(*middle: nn.Module) -> nn.Module:
    ends = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle, *ends)


def kinds_of(model: Artifact) -> dict[str, int]:
    """Return the element type of every tensor that strict inference finds."""
    parsed = onnx.load(model.path)
    del parsed.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(parsed, strict_mode=True).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in parsed.graph.initializer
    }


GROUP_NORM = {  # every node of it
    "1.reshape",
    "1.instancenormalization",
    "1.shape",
    "1.reshape@1",
    "1.castlike",
    "1.mul",
    "1.castlike@1",
    "1.add",
}


@pytest.mark.parametrize("wide", [set(), {"1.add"}, {"0"}, GROUP_NORM], ids=["none", "add", "before", "all"])
def test_a_group_normalisation_takes_either_precision(
    wide: set[str], images: Float32Array, tmp_path: Path
) -> None:
    model = written_by_export(between(nn.GroupNorm(2, 8), nn.ReLU()), tmp_path / "fp32.onnx")
    assert {node.name for node in onnx.load(model.path).graph.node} >= GROUP_NORM
    written = write_half(model, tmp_path / "h.onnx", wide)
    kinds, nodes = kinds_of(written), onnx.load(written.path).graph.node
    assert not [node for node in nodes if node.op_type == "CastLike"]
    for name, constant in (("1.mul", "1.castlike.const.0"), ("1.add", "1.castlike@1.const.0")):
        (reader,) = (node for node in nodes if node.name == name)
        assert reader.input[1] == constant
        assert kinds[constant] == kinds[reader.output[0]] == (FLOAT if name in wide else HALF)
    # The shape is read of whatever the convolution wrote, without a Cast of its own.
    (shape,) = (node for node in nodes if node.op_type == "Shape")
    assert shape.input[0] == "0.out"
    cropped = np.ascontiguousarray(images[:, :, :16, :16])
    np.testing.assert_allclose(run(written.path, cropped), run(model.path, cropped), atol=5e-3)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_the_scales_of_a_resize_stay_float32(mode: str, images: Float32Array, tmp_path: Path) -> None:
    model = written_by_export(between(nn.Upsample(scale_factor=2, mode=mode)), tmp_path / "fp32.onnx")
    written = write_half(model, tmp_path / "h.onnx")
    kinds = kinds_of(written)
    (resize,) = (node for node in onnx.load(written.path).graph.node if node.op_type == "Resize")
    assert [kinds[name] for name in (resize.input[0], resize.input[2], resize.output[0])] == [
        HALF,
        FLOAT,
        HALF,
    ]
    cropped = np.ascontiguousarray(images[:, :, :16, :16])
    np.testing.assert_allclose(run(written.path, cropped), run(model.path, cropped), atol=5e-3)


def test_a_castlike_of_what_is_computed_is_refused(tmp_path: Path) -> None:
    model = onnx.load(shared(tmp_path / "q.onnx").path)
    (total,) = (node for node in model.graph.node if node.name == "sum")
    total.input[1] = "cast"
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node("CastLike", ["b.out", "a.out"], ["cast"], name="c")
    )
    path = tmp_path / "cast.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    computed = dataclasses.replace(shared(tmp_path / "q.onnx"), path=path, sha256=sha256_file(path))
    with pytest.raises(GraphRefused, match=r"^c: a CastLike has no FP16 form here"):
        write_half(computed, tmp_path / "h.onnx")


def test_a_flatten_that_both_precisions_read_becomes_two(small_onnx: Artifact, tmp_path: Path) -> None:
    model = onnx.load(small_onnx.path)
    twice = [
        helper.make_node(
            "Gemm", ["flatten.out", "fc.weight", "fc.bias"], ["again.out"], name="again", transB=1
        ),
        helper.make_node("Add", ["fc.out", "again.out"], ["logits"], name="sum"),
    ]
    model.graph.node[-1].output[0] = "fc.out"
    model.graph.node.extend(twice)
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, FLOAT, ["batch", 5]) for name in ("fc.out", "again.out")
    )
    path = tmp_path / "twice.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    written = write_half(
        dataclasses.replace(small_onnx, path=path, sha256=sha256_file(path)), tmp_path / "h.onnx", {"again"}
    )
    assert written.meta["wide"] == ["again", "flatten.float"]
    assert nodes_of(written.path)[-8:] == [
        ("Cast", ["average.out"], ["average.out.float"]),
        ("Flatten", ["average.out"], ["flatten.out"]),
        ("Flatten", ["average.out.float"], ["flatten.out.float"]),
        ("Gemm", ["flatten.out", "fc.weight.half", "fc.bias.half"], ["fc.out"]),
        ("Gemm", ["flatten.out.float", "fc.weight", "fc.bias"], ["again.out"]),
        ("Cast", ["again.out"], ["again.out.half"]),
        ("Add", ["fc.out", "again.out.half"], ["logits.half"]),
        ("Cast", ["logits.half"], ["logits"]),
    ]


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
