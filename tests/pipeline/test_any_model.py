"""Models that are code, from export to bench: run where they are named, never because a bundle says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import resedge
from resedge import images
from resedge.artifacts import InputType, TensorSpec
from resedge.errors import StaleArtifact, UsageError
from resedge.golden import read_golden
from resedge.pipeline.benching import bench
from resedge.pipeline.comparing import compare
from resedge.pipeline.exporting import Exported, export
from resedge.pipeline.options import BenchOptions, ExportOptions, ImageOptions, Measuring, Scenarios, select

CODE = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )
"""
QUICK = Measuring(max_drop=0.9, threads=1)
ONE = select(["openvino:fp32"], [])
IMAGES = ImageOptions(input_shape=(3, 10, 14), mean=(0.5,) * 3, std=(0.25,) * 3, resize=12)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of several sizes; the classes differ in their colour."""
    noise = np.random.default_rng(4)
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            image = noise.integers(0, 128, (16 + i, 24, 3), np.uint8)
            image[..., label] += 100
            Image.fromarray(image).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def exported(model: str, data: Path, out: Path, module: nn.Module | None = None) -> Exported:
    options = ExportOptions(
        model=model, images=IMAGES, data=data, selection=ONE, measuring=QUICK, out=out, thorough=False
    )
    return export(options, module=module)


def test_a_file_goes_all_the_way_and_runs_only_where_it_is_named(
    data: Path, tmp_path: Path, empty_home: Path
) -> None:
    file, out = tmp_path / "net.py", tmp_path / "net.resedge"
    file.write_text(CODE)
    model = f"{file}:make"
    first = exported(model, data, out)
    assert first.document["model"] == "net.py:make"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["labels"] == ["ant", "bee", "cat"]
    assert manifest["preprocessing"] == {
        **{"height": 10, "width": 14, "mean": [0.5] * 3, "std": [0.25] * 3, "channels": "RGB"},
        **{"resize": [12, 17], "interpolation": "bilinear"},
    }
    assert str(tmp_path) not in (out / "reference" / "source.json").read_text()
    assert exported(model, data, out).all_reused

    asked = BenchOptions(out, _others(data), ONE, QUICK, rounds=2, processes=1)
    with pytest.raises(UsageError, match="runs only where you name it"):
        bench(asked)
    named = replace(asked, model=model)
    benched = bench(named)
    assert benched.verdicts[0].accuracy is not None
    assert benched.verdicts[0].accuracy.agreement == 1.0
    assert benched.verdicts[0].latency is not None

    file.write_text(CODE.replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(StaleArtifact, match="is another file than the model was exported from"):
        bench(named)
    assert not exported(model, data, out).all_reused


def _others(data: Path) -> Path:
    """The same folder once more, its images brighter: none has served calibration."""
    folder = data.with_name("others")
    for path in sorted(data.rglob("*.png")):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        brighter = np.asarray(Image.open(path)) + np.uint8(9)
        Image.fromarray(brighter).save(folder / path.parent.name / path.name)
    return folder


def test_a_module_of_python_goes_in_as_it_is(data: Path, tmp_path: Path, empty_home: Path) -> None:
    torch.manual_seed(3)
    names: dict[str, object] = {}
    exec(CODE, names)
    make: Any = names["make"]
    module: nn.Module = make()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first = exported("notebook", data, tmp_path / "a.resedge", module)
    assert first.document["model"] == "python:Sequential"
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    verdict = first.verdicts[0]
    assert verdict.accuracy is not None
    assert verdict.accuracy.agreement == 1.0
    with torch.no_grad():
        module[5].bias += 1.0  # type: ignore[index]
    assert not exported("notebook", data, tmp_path / "a.resedge", module).all_reused


@pytest.mark.parametrize(
    ("channels", "depth", "given"),
    [
        *(("L", 1, "float32"), ("BGR", 3, "float32"), ("RGBA", 4, "float32")),
        *(("L", 1, "uint8"), ("RGBA", 4, "uint8")),
    ],
)
def test_models_of_other_channels_see_the_same_pictures(
    channels: Literal["L", "BGR", "RGBA"],
    depth: int,
    given: InputType,
    data: Path,
    tmp_path: Path,
    empty_home: Path,
) -> None:
    torch.manual_seed(5)
    module = nn.Sequential(
        nn.Conv2d(depth, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()
    options = ExportOptions(
        images=ImageOptions((depth, 10, 14), resize=12, channels=channels, value_range=255),
        data=data,
        selection=select(["onnxruntime:int8", "openvino:fp32"], []),
        measuring=QUICK,
        out=tmp_path / "a.resedge",
        thorough=False,
        input=given,
    )
    found = export(options, module=module)
    assert found.published.bundle.manifest.model.input.dtype == given
    assert [verdict.accuracy is not None for verdict in found.verdicts] == [True, True]
    taken = found.published.bundle.manifest.preprocessing
    frames = images.read(data, (10, 14), images.decoding_of(taken)).decode([0, 1])
    assert frames.shape[-1] == max(3, depth)
    raw = {"L": frames, "BGR": frames[..., ::-1], "RGBA": frames}[channels].astype(np.float32)
    if channels == "L":
        raw = np.stack([np.asarray(Image.fromarray(frame).convert("L"), np.float32) for frame in frames])[
            ..., None
        ]
    with torch.inference_mode():
        expected = module(torch.from_numpy(raw.transpose(0, 3, 1, 2).copy())).numpy()
    with resedge.open(tmp_path / "a.resedge", "openvino:fp32") as session:
        np.testing.assert_allclose(session.predict(frames).logits, expected, rtol=1e-4, atol=1e-3)


STEM = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )
"""


def test_frames_go_all_the_way(data: Path, tmp_path: Path, empty_home: Path) -> None:
    file, out = tmp_path / "net.py", tmp_path / "net.resedge"
    file.write_text(STEM)
    engines = select(["onnxruntime:int8", "openvino:fp32"], [])
    options = ExportOptions(
        model=f"{file}:make",
        images=IMAGES,
        data=data,
        selection=engines,
        measuring=QUICK,
        out=out,
        thorough=False,
        input="uint8",
    )
    exported = export(options)
    bundle = exported.published.bundle
    spec = TensorSpec("input", ("batch", 10, 14, 3), "uint8")
    assert bundle.manifest.model.input == spec
    graphs = [artifact for artifact in bundle.manifest.files if artifact.kind.startswith("onnx/")]
    assert sorted(graph.path.name for graph in graphs) == [
        *("fp16.onnx", "fp32.onnx", "int8.cpu.onnx", "int8.tensorrt.onnx")
    ]
    assert {graph.inputs for graph in graphs} == {(spec,)}
    given, logits = read_golden(bundle.file("golden/golden.safetensors"))
    assert given.dtype == np.uint8
    assert "pixels" in bundle.file("onnx/int8.cpu.onnx").meta
    frames = given.astype(np.uint8)
    assert frames.shape[1:] == (10, 14, 3)
    with resedge.open(out, "openvino:fp32") as session:
        np.testing.assert_allclose(session.predict(frames).logits, logits, rtol=1e-4, atol=1e-5)

    scenarios = Scenarios(("end-to-end",), seconds=0.1)
    asked = BenchOptions(
        out, _others(data), engines, QUICK, rounds=2, processes=1, model=options.model, scenarios=scenarios
    )
    benched = bench(asked)
    assert [verdict.accuracy is not None for verdict in benched.verdicts] == [True, True]
    conditions: Any = benched.document["conditions"]
    assert conditions["given"] == {
        "eager": "(1, 3, 10, 14) float32, prepared outside",
        "onnxruntime:int8": "(1, 10, 14, 3) uint8, frames",
        "openvino:fp32": "(1, 10, 14, 3) uint8, frames",
    }
    looked_into = compare(out, "onnxruntime:int8", threads=1)
    assert looked_into.changed == 0
    assert looked_into.agreement >= 0.9
