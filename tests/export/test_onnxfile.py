from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn

from resedge.artifacts import Artifact, TensorSpec, sha256_file
from resedge.errors import InputRefused
from resedge.export.onnxfile import write_onnx
from resedge.export.trace import trace
from resedge.protocols import Float32Array

BLOCK = ["conv1", "relu", "conv2", "conv3", "add"]
SMALL = [
    ("BatchNormalization", "bn", "bn"),
    ("Conv", "conv", "conv"),
    ("MaxPool", "pool", "pool"),
    ("Conv", "layer.0.conv1", "layer.0.conv1"),
    ("Relu", "layer.0.relu", "layer.0.relu"),
    ("Conv", "layer.0.conv2", "layer.0.conv2"),
    ("Add", "layer.0.add", "layer.0"),
    ("Relu", "layer.0.relu@1", "layer.0.relu"),
    ("Conv", "layer.1.conv1", "layer.1.conv1"),
    ("Relu", "layer.1.relu", "layer.1.relu"),
    ("Conv", "layer.1.conv2", "layer.1.conv2"),
    ("Add", "layer.1.add", "layer.1"),
    ("Relu", "layer.1.relu@1", "layer.1.relu"),
    ("GlobalAveragePool", "average", "average"),
    ("Flatten", "flatten", ""),
    ("Gemm", "fc", "fc"),
]


def run(path: Path, images: Float32Array) -> Float32Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    logits: Float32Array = session.run(["logits"], {"input": images})[0]
    return logits


def module_of(node: onnx.NodeProto) -> str:
    (entry,) = node.metadata_props
    assert entry.key == "resedge.module"
    return str(entry.value)


def sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_artifact_says_what_the_file_is(notebook_onnx: Artifact) -> None:
    assert notebook_onnx.kind == "onnx/fp32"
    assert notebook_onnx.path.is_absolute()
    assert notebook_onnx.sha256 == sha256_file(notebook_onnx.path)
    assert notebook_onnx.inputs == (TensorSpec("input", ("batch", 3, 28, 28), "float32"),)
    assert notebook_onnx.outputs == (TensorSpec("logits", ("batch", 10), "float32"),)
    assert notebook_onnx.parents == ("ab", "cd")
    assert notebook_onnx.meta == {"opset": 19, "ir_version": 10, "nodes": 17}


def test_the_file_says_of_itself_what_it_should(notebook_onnx: Artifact) -> None:
    model = onnx.load(notebook_onnx.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 19)]
    assert model.ir_version == 10
    assert (model.producer_name, model.producer_version, model.doc_string) == ("resedge", "", "")
    assert not model.metadata_props
    assert not model.graph.metadata_props
    assert not model.functions
    assert [(value.name, sizes(value)) for value in model.graph.input] == [("input", ["batch", 3, 28, 28])]
    assert [(value.name, sizes(value)) for value in model.graph.output] == [("logits", ["batch", 10])]


def test_the_notebook_is_17_nodes_named_after_their_modules(notebook_onnx: Artifact) -> None:
    graph = onnx.load(notebook_onnx.path).graph
    nodes = [f"layer.{block}.{node}" for block in range(3) for node in BLOCK] + ["flatten", "linear"]
    assert [node.name for node in graph.node] == nodes
    assert [list(node.output) for node in graph.node] == [
        *([f"{name}.out"] for name in nodes[:-1]),
        ["logits"],
    ]
    assert [tensor.name for tensor in graph.initializer] == [
        f"{name}.{part}"
        for name in nodes
        if "conv" in name or name == "linear"
        for part in ("weight", "bias")
    ]
    shapes = {value.name: sizes(value) for value in graph.value_info}
    assert shapes["layer.0.conv1.out"] == ["batch", 64, 28, 28]
    assert shapes["flatten.out"] == ["batch", 50176]


def test_pooling_flatten_second_calls_and_a_refused_batchnorm(small_onnx: Artifact) -> None:
    graph = onnx.load(small_onnx.path).graph
    assert [(node.op_type, node.name, module_of(node)) for node in graph.node] == SMALL
    norm = graph.node[0]
    assert list(norm.input) == ["input", "bn.weight", "bn.bias", "bn.mean", "bn.variance"]


def test_nothing_of_the_machine_is_in_the_bytes(small_onnx: Artifact) -> None:
    model = onnx.load(small_onnx.path)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # any byte may be in a number
    text = str(model)
    assert "layer.0.conv1" in text
    for trace_of_it in ("File ", ".py", "pkg.torch", "aten.", "/"):
        assert trace_of_it not in text, trace_of_it


def test_the_same_bytes_from_another_process_in_another_folder(small_onnx: Artifact, tmp_path: Path) -> None:
    script = Path(__file__).with_name("write_small.py")
    again = tmp_path / "elsewhere.onnx"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(again)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert again.read_bytes() == small_onnx.path.read_bytes()
    assert (done.stdout, done.stderr) == (b"", b"")  # the exporter's own noise stays inside


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_gives_the_notebooks_logits(
    notebook_onnx: Artifact, notebook: nn.Module, images: Float32Array, batch: int
) -> None:
    with torch.no_grad():
        expected = notebook(torch.tensor(images[:batch])).numpy()
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(run(notebook_onnx.path, images[:batch]), expected, atol=1e-3, rtol=0)


def test_onnx_runtime_gives_the_small_networks_logits(
    small_onnx: Artifact, write_small: dict[str, Any], images: Float32Array
) -> None:
    cropped = np.ascontiguousarray(images[:, :, :16, :16])
    with torch.no_grad():
        expected = write_small["small"]()(torch.tensor(cropped)).numpy()
    np.testing.assert_allclose(run(small_onnx.path, cropped), expected, atol=1e-5, rtol=0)


class Reshaped(nn.Module):
    """A module with two operators of its own, and a reshape that is not a flatten."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (x.reshape(x.shape[0], 2, 6).mean(2) * 2.0) + x[:, :2]
        return out


def test_a_reshape_keeps_its_batch_free(tmp_path: Path) -> None:
    written = write_onnx(trace(Reshaped().eval(), (12,)).graph, (12,), tmp_path / "r.onnx")
    graph = onnx.load(written.path).graph
    assert {node.op_type for node in graph.node} == {"Reshape", "ReduceMean", "Mul", "Add", "Slice"}
    (shape,) = (
        onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if "reshape" in tensor.name
    )
    assert shape.tolist() == [0, 2, 6]
    x = np.arange(36, dtype=np.float32).reshape(3, 12)
    with torch.no_grad():
        expected = Reshaped()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(run(written.path, x), expected, rtol=1e-6)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.special.i1(x)  # ONNX has no Bessel function
        return out


def test_an_operator_that_onnx_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"the traced graph: has no ONNX form: .*i1"):
        write_onnx(trace(Unknown(), (4,)).graph, (4,), tmp_path / "u.onnx")
    assert list(tmp_path.iterdir()) == []


class MeanHead(nn.Module):
    """Pools by a mean over height and width, as many networks write it."""

    def __init__(self, keepdim: bool) -> None:
        super().__init__()
        self.conv, self.fc, self.keepdim = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), keepdim

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).mean((-1, 2), keepdim=self.keepdim)
        out: Tensor = self.fc(pooled.flatten(1))
        return out


@pytest.mark.parametrize("keepdim", [True, False])
def test_a_mean_over_the_image_is_a_global_pool(keepdim: bool, tmp_path: Path) -> None:
    module = MeanHead(keepdim).eval()
    write_onnx(trace(module, (3, 8, 6)).graph, (3, 8, 6), tmp_path / "a.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert kinds == ["Conv", "GlobalAveragePool", "Flatten", "Gemm"]
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 6)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(tmp_path / "a.onnx", images), expected, rtol=1e-5, atol=1e-6)
