"""`resedge inspect FILE`: what each kind of file is called, and what of it is refused."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

from resedge import bundle as bundles
from resedge.errors import InputRefused, ResedgeError
from resedge.pipeline.building import build
from resedge.pipeline.local import engines_folder
from resedge.pipeline.options import BuildingOptions, select
from resedge.pipeline.recognising import recognise
from resedge.pipeline.reporting import Silent

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job

Device = Callable[..., Any]


def told(path: Path) -> dict[str, str]:
    return dict(recognise(path))


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("onnx/fp32.onnx", "an ONNX graph in FP32, opset ai.onnx 19", ("nodes", "Conv")),
        (
            "onnx/fp16.onnx",
            "an ONNX graph in FP16, opset ai.onnx 19",
            ("input", "input (batch, 3, 28, 28) float"),
        ),
        ("onnx/int8.cpu.onnx", "a Q/DQ ONNX graph with UINT8 activations", ("nodes", "QuantizeLinear")),
        ("onnx/int8.tensorrt.onnx", "a Q/DQ ONNX graph with INT8 activations", ("output", "(batch, 10)")),
        ("engines/openvino-fp32.xml", "an OpenVINO graph (IR version 11)", ("quantised", "a float graph")),
        ("engines/openvino-int8.xml", "an OpenVINO graph", ("weights", "bytes in openvino-int8.bin")),
        ("reference/weights.safetensors", "safetensors: ", ("tensors", " more")),
    ],
)
def test_each_file_of_a_bundle(job: Job, name: str, kind: str, more: tuple[str, str]) -> None:
    found = told(job.bundle / name)
    assert found["file"].startswith(kind)
    assert more[1] in found[more[0]]
    assert found["sha256"] == bundles.read(job.bundle).file(name).sha256


@pytest.mark.usefixtures("empty_home")
def test_a_plan_says_what_built_it_and_whether_that_is_here(job: Job, device: Device, tmp_path: Path) -> None:
    device("tensorrt-10.16.1.11")
    build(BuildingOptions(job.bundle, select(["tensorrt"], ("int8",))), Silent())
    plan = engines_folder(bundles.read(job.bundle)) / "tensorrt-int8.plan"
    found = told(plan)
    assert found["file"].startswith("a plan of TensorRT 10.16.1.11")
    assert found["record"] == "of this very plan"
    assert found["built for"].startswith("Orin, compute capability 8.7")
    assert "in int8" in found["layers"]
    assert found["here"].endswith("the plan's version")
    device("tensorrt-10.3.0")
    assert told(plan)["here"].endswith("another version: run `resedge build` on this device")
    alone = tmp_path / "model.engine"
    alone.write_bytes(plan.read_bytes())
    assert told(alone)["record"].startswith("none beside it")
    prefix = json.dumps({"description": "YOLO", "task": "classify"}).encode()
    alone.write_bytes(struct.pack("<I", len(prefix)) + prefix + plan.read_bytes())
    found = told(alone)
    assert "as Ultralytics writes it" in found["file"]
    assert found["prefix"] == "description YOLO, task classify"
    assert found["plan"].startswith("a plan of TensorRT 10.16.1.11")


def test_a_plan_where_no_tensorrt_is(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 26)) + bytes(100))
    found = told(plan)
    assert found["file"].startswith("a plan of TensorRT 10.3.0.26")
    assert "not installed" in found["here"]
    assert "JetPack" in found["here"]


def _zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


class Bomb:
    """Unpickled, it says so."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was run",)


def test_archives_and_pickles_are_not_loaded(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3), "bomb": Bomb()}, tmp_path / "model.pth")
    assert told(tmp_path / "model.pth")["file"].startswith("a checkpoint of torch, 1 storages of 12 bytes")
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(Bomb()))
    assert told(tmp_path / "old.pkl")["file"].startswith("a pickle, which runs code")
    _zip(tmp_path / "script.pt", "script/data.pkl", "script/constants.pkl", "script/code/__torch__.py")
    assert told(tmp_path / "script.pt")["file"].startswith("a TorchScript program")
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "program.pt2")
    assert told(tmp_path / "program.pt2")["file"].startswith("a program of torch.export")
    np.savez(tmp_path / "data.npz", images=np.zeros(2), labels=np.zeros(2))
    assert told(tmp_path / "data.npz")["file"] == "arrays of numpy (.npz): images.npy, labels.npy"


def _bomb(path: Path) -> None:
    """Write a valid graph of 175 bytes that has a runtime compute four gigabytes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"], "bomb"),
        helper.make_node("ReduceMean", ["c"], ["m"], keepdims=1),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    border = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, 1, 1]) for name in "xy"]
    size = numpy_helper.from_array(np.array([1, 1, 1 << 15, 1 << 15]), "s")
    graph = helper.make_graph(nodes, "g", border[:1], border[1:], [size])
    path.write_bytes(
        helper.make_model(
            graph, ir_version=10, opset_imports=[helper.make_opsetid("", 19)]
        ).SerializeToString()
    )


def test_what_the_gate_says_of_a_graph_is_told(job: Job, tmp_path: Path) -> None:
    for name in ("fp32", "fp16", "int8.cpu", "int8.tensorrt"):
        assert told(job.bundle / "onnx" / f"{name}.onnx")["gate"].startswith("passes: ")
    _bomb(tmp_path / "bomb.onnx")
    assert told(tmp_path / "bomb.onnx")["gate"] == (
        "does not pass: node 'bomb': is a ConstantOfShape, which no ResNet needs"
    )


def test_weights_are_told_by_content_and_not_by_suffix(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16)}, tmp_path / "weights.bin")
    assert told(tmp_path / "weights.bin")["file"] == "safetensors: 2 tensors, 10 numbers (1 F32, 1 F16)"


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "is no file that resedge knows"),
        (lambda path: path.write_text("hello"), "is no file that resedge knows"),
        (lambda path: path.write_bytes(b"\x08\xff\xff"), "is no ONNX file"),
        (lambda path: path.write_bytes(b"\x08\x07"), "one without nodes"),
        (lambda path: path.write_bytes(b"ftrt"), "is no TensorRT plan"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(60)), "is a damaged archive"),
        (lambda path: _zip(path, "a/photo.jpg"), "is an archive of no kind"),
        (lambda path: path.write_text("<html></html>"), "no OpenVINO graph: its root is 'html'"),
        (lambda path: path.write_text("<net"), "is damaged XML"),
        (lambda path: path.write_text('<!DOCTYPE x [<!ENTITY a "b">]><net/>'), "declares a document type"),
        (lambda path: path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}"), "its header claims"),
        (lambda path: path.write_bytes(struct.pack("<I", 2) + b"{}" + bytes(99)), "that is no plan"),
    ],
)
def test_what_is_nothing_known_or_damaged_is_refused(
    tmp_path: Path, write: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "file"
    write(path)
    with pytest.raises(ResedgeError, match=reason):
        recognise(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="cannot be read"):
        recognise(tmp_path / "nothing")
