"""The model that every runtime is held against: a tiny seeded ResNet, its reference folder and its graphs."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from resedge.artifacts import Artifact, Preprocessing, TensorSpec, sha256_file
from resedge.calibration.histograms import collect
from resedge.calibration.placement import place
from resedge.calibration.ranges import minmax
from resedge.export.fold import fold
from resedge.export.frames import take_frames
from resedge.export.half import write_half
from resedge.export.onnxfile import write_onnx
from resedge.export.pixels import fold_pixels
from resedge.export.trace import trace
from resedge.images import Frames, prepare
from resedge.protocols import Float32Array, NoProgress
from resedge.runtimes.table import runtime

INPUTS = (TensorSpec("input", ("batch", 3, 16, 16), "float32"),)
OUTPUTS = (TensorSpec("logits", ("batch", 5), "float32"),)
PREPROCESSING = Preprocessing(16, 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "BGR")


class TinyResNet(nn.Module):
    """conv - relu - maxpool - (conv - relu - conv, plus shortcut) - relu - global pool - linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.stem(x)))
        x = self.relu(x + self.conv2(self.relu(self.conv1(x))))
        logits: Tensor = self.linear(torch.flatten(self.gap(x), 1))
        return logits


@pytest.fixture(scope="session")
def load_reference() -> Callable[[Path], nn.Module]:
    """What the export room gives to eager, in small."""

    def load(folder: Path) -> nn.Module:
        module = TinyResNet()
        module.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
        return module.eval()

    return load


@pytest.fixture(scope="session")
def images() -> Float32Array:
    return np.random.default_rng(0).normal(size=(64, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="session")
def expected(images: Float32Array) -> Float32Array:
    """Eager's logits, computed here without any runtime."""
    with torch.inference_mode():
        logits: Float32Array = _module()(torch.from_numpy(images)).numpy().copy()
    return logits


@pytest.fixture(scope="session")
def sources(images: Float32Array, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    """What engines are built from, by kind."""
    folder = tmp_path_factory.mktemp("sources")
    fp32 = _exported(_module(), folder / "fp32.onnx")
    int8 = _quantized(fp32, images, folder / "int8.cpu.onnx")
    graphs = (_reference(_module(), folder), fp32, int8, *_strongly_typed(images, folder))
    return {source.kind: source for source in graphs}


@pytest.fixture(scope="session")
def frames() -> Frames:
    """What a camera gives; eager is given the same, prepared."""
    return np.random.default_rng(5).integers(0, 256, (16, 16, 16, 3), np.uint8)


@pytest.fixture(scope="session")
def expected_of_frames(frames: Frames) -> Float32Array:
    """Eager's logits of the frames."""
    with torch.inference_mode():
        logits: Float32Array = _module()(torch.from_numpy(prepare(frames, PREPROCESSING))).numpy().copy()
    return logits


@pytest.fixture(scope="session", params=["by operators", "by the first convolution"])
def frame_sources(
    request: pytest.FixtureRequest, frames: Frames, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Artifact]:
    """Graphs that take frames, by kind; in INT8 they are normalised in either way."""
    folder = tmp_path_factory.mktemp("frames")
    folded = fold(trace(_module(), (3, 16, 16)), prepare(frames[:8], PREPROCESSING)).graph
    plain = write_onnx(folded, (3, 16, 16), folder / "float.onnx")
    fp32 = take_frames(plain, PREPROCESSING, folder / "fp32.onnx")
    model: Artifact | None = fp32
    if request.param == "by the first convolution":
        model = fold_pixels(fp32, PREPROCESSING, frames, folder / "pixels.onnx").graph
    assert model is not None
    histograms = collect(model, [frames], NoProgress(), 1)
    ranges = minmax(histograms, graph_sha256=model.sha256, dataset_sha256="0" * 64, images=len(frames))
    cpu = place(model, ranges, "cpu", folder / "int8.cpu.onnx", pair_safe=True)
    placed = place(model, ranges, "tensorrt", folder / "placed.onnx")
    halves = write_half(fp32, folder / "fp16.onnx"), write_half(placed, folder / "int8.tensorrt.onnx")
    return {graph.kind: graph for graph in (fp32, cpu, *halves)}


def _module() -> nn.Module:
    torch.manual_seed(7)
    module = TinyResNet().eval()
    with torch.no_grad():
        module.linear.weight.mul_(8)  # logits far enough apart that their order means something
    return module


def _strongly_typed(images: Float32Array, folder: Path) -> tuple[Artifact, Artifact]:
    """Return the graphs that a GPU is given, all precision in them, by the rooms that write them."""
    graph = fold(trace(_module(), (3, 16, 16)), images[:8]).graph
    plain = write_onnx(graph, (3, 16, 16), folder / "folded.onnx")
    histograms = collect(plain, [images], NoProgress(), 1)
    ranges = minmax(histograms, graph_sha256=plain.sha256, dataset_sha256="0" * 64, images=len(images))
    placed = place(plain, ranges, "tensorrt", folder / "placed.onnx")
    return write_half(plain, folder / "fp16.onnx"), write_half(placed, folder / "int8.tensorrt.onnx")


def _reference(module: nn.Module, folder: Path) -> Artifact:
    weights, source = folder / "weights.safetensors", folder / "source.json"
    safetensors.torch.save_file(module.state_dict(), weights)
    source.write_text(json.dumps({"name": "tiny"}))
    return Artifact(source, sha256_file(source), "reference/source", INPUTS, OUTPUTS, (sha256_file(weights),))


def _exported(module: nn.Module, path: Path) -> Artifact:
    with warnings.catch_warnings():
        # torch.export calls a function of torch's own that torch has deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, 16, 16),),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return Artifact(path, sha256_file(path), "onnx/fp32", INPUTS, OUTPUTS)


def _quantized(fp32: Artifact, images: Float32Array, path: Path) -> Artifact:
    runtime("onnxruntime").probe()  # imports the library in its quiet way, before anything else does
    quantization = importlib.import_module("onnxruntime.quantization")

    class Reader:
        def __init__(self) -> None:
            self.batches: Iterator[Float32Array] = iter(np.split(images, 4))

        def get_next(self) -> dict[str, Float32Array] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"input": batch}

    quantization.quantize_static(
        str(fp32.path),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # without VNNI, sums of 8-bit products saturate
    )
    return Artifact(path, sha256_file(path), "onnx/int8.cpu", INPUTS, OUTPUTS, (fp32.sha256,))
