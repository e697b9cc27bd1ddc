from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from resedge.artifacts import Artifact, Preprocessing, TensorSpec, sha256_file
from resedge.export.fold import fold
from resedge.export.notebook import ResNet
from resedge.export.onnxfile import write_onnx
from resedge.export.trace import trace
from resedge.protocols import Float32Array


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two cores are shared with whatever else runs; a test's result must not depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _randomise(module: nn.Module, seed: int = 7) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)

    def uniform(size: int, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    with torch.no_grad():
        for parameter in module.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                size = part.num_features
                part.running_mean.copy_(uniform(size, -1, 1))
                part.running_var.copy_(uniform(size, 0.2, 3))  # type: ignore[union-attr]
                if part.affine:
                    part.weight.copy_(uniform(size, -1.5, 1.5))
                    part.bias.copy_(uniform(size, -1, 1))
    return module.eval()


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Seeded weights, and BatchNorm statistics that are neither 0 nor 1."""
    return _randomise


@pytest.fixture(scope="session")
def notebook() -> nn.Module:
    return _randomise(ResNet())


@pytest.fixture(scope="session")
def images() -> Float32Array:
    return np.random.default_rng(3).standard_normal((4, 3, 28, 28)).astype(np.float32)


@pytest.fixture(scope="session")
def write_small() -> dict[str, Any]:
    """What the script `write_small.py` defines: it also runs in a process of its own."""
    return runpy.run_path(str(Path(__file__).with_name("write_small.py")))


@pytest.fixture(scope="session")
def small_onnx(write_small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    written: Artifact = write_small["main"](tmp_path_factory.mktemp("small") / "fp32.onnx")
    return written


@pytest.fixture(scope="session")
def notebook_onnx(
    notebook: nn.Module, images: Float32Array, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    graph = fold(trace(notebook, (3, 28, 28)), images).graph
    return write_onnx(graph, (3, 28, 28), tmp_path_factory.mktemp("notebook") / "fp32.onnx", ("ab", "cd"))


def _float_graph(
    taken: Preprocessing,
    path: Path,
    op_types: tuple[str, ...] = ("Conv", "Relu", "GlobalAveragePool", "Flatten"),
    kernel: tuple[int, int] = (3, 3),
    *,
    bias: bool = False,
    **conv: Any,  # noqa: ANN401 - attributes of ONNX
) -> Artifact:
    """Write nodes one after the other, as `write_onnx` would; a Conv has seeded weights."""
    noise = np.random.default_rng(2)
    channels = len(taken.channels) // conv.get("group", 1)
    constants = {"w": noise.normal(size=(12, channels, *kernel)).astype(np.float32)}
    if bias:
        constants["b"] = noise.normal(size=12).astype(np.float32)
    tensors = ["input", *(f"{number}.out" for number in range(len(op_types) - 1)), "logits"]
    nodes = [
        helper.make_node(op_type, [given, *constants], [made], op_type.lower(), **conv)
        if op_type == "Conv"
        else helper.make_node(op_type, [given], [made], op_type.lower())
        for op_type, given, made in zip(op_types, tensors[:-1], tensors[1:], strict=True)
    ]
    stored = [numpy_helper.from_array(numbers, name) for name, numbers in constants.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *taken.input_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])],
        stored if "Conv" in op_types else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    inputs = (TensorSpec("input", ("batch", *taken.input_shape), "float32"),)
    outputs = (TensorSpec("logits", ("batch", 12), "float32"),)
    return Artifact(path, sha256_file(path), "onnx/fp32", inputs, outputs, ("ab",))


@pytest.fixture(scope="session")
def float_graph() -> Callable[..., Artifact]:
    """Small graphs that take prepared images, made without torch."""
    return _float_graph
