"""Small FP32 networks of the shapes that folded ResNets have, made without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resedge.artifacts import Artifact, Ranges, TensorSpec, sha256_bytes
from resedge.calibration.histograms import collect
from resedge.calibration.placement import place
from resedge.calibration.ranges import minmax
from resedge.protocols import Float32Array, NoProgress


class Network:
    """Collects nodes and seeded weights; every method returns the name of the tensor it made."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, numbers: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(numbers, name))
        return name

    def op(self, op_type: str, inputs: list[str], name: str, **attributes: int | list[int]) -> str:
        node = helper.make_node(op_type, inputs, [f"{name}.out"], name=name)
        node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
        node.metadata_props.add(key="resedge.module", value=name)
        self.nodes.append(node)
        return f"{name}.out"

    def weights(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        numbers = self.random.standard_normal(shape) * np.sqrt(2 / fan_in)
        return self.constant(name, numbers.astype(np.float32))

    def conv(self, x: str, name: str, cin: int, cout: int, kernel: int, stride: int = 1) -> str:
        weight = self.weights(f"{name}.weight", (cout, cin, kernel, kernel), cin * kernel**2)
        bias = self.weights(f"{name}.bias", (cout,), 100)
        pads = [kernel // 2] * 4
        return self.op("Conv", [x, weight, bias], name, strides=[stride] * 2, pads=pads)

    def relu(self, x: str, name: str) -> str:
        return self.op("Relu", [x], name)

    def add(self, x: str, y: str, name: str) -> str:
        return self.op("Add", [x, y], name)

    def gemm(self, x: str, name: str, cin: int, cout: int, transposed: bool = True) -> str:
        shape = (cout, cin) if transposed else (cin, cout)
        weight = self.weights(f"{name}.weight", shape, cin)
        bias = self.weights(f"{name}.bias", (cout,), 100)
        return self.op("Gemm", [x, weight, bias], name, transB=int(transposed))

    def save(self, path: Path, logits: str, size: int, classes: int = 10) -> Artifact:
        self.nodes[-1].output[0] = "logits"
        assert logits == f"{self.nodes[-1].name}.out"
        graph = helper.make_graph(
            self.nodes,
            "main",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        data = model.SerializeToString(deterministic=True)
        path.write_bytes(data)
        return Artifact(
            path,
            sha256_bytes(data),
            "onnx/fp32",
            (TensorSpec("input", ("batch", 3, size, size), "float32"),),
            (TensorSpec("logits", ("batch", classes), "float32"),),
        )


def notebook(path: Path, width: int = 16, size: int = 12) -> Artifact:
    """Three blocks without a Relu after the addition, a 1x1 Conv on every shortcut, no pooling."""
    net, x, cin = Network(), "input", 3
    for i in range(3):
        block = f"layer.{i}"
        main = net.relu(net.conv(x, f"{block}.conv1", cin, width, 3), f"{block}.relu")
        main = net.conv(main, f"{block}.conv2", width, width, 3)
        x = net.add(main, net.conv(x, f"{block}.conv3", cin, width, 1), f"{block}.add")
        cin = width
    flat = net.op("Flatten", [x], "flatten")
    return net.save(path, net.gemm(flat, "linear", width * size**2, 10), size)


def basic(path: Path) -> Artifact:
    """A stem with MaxPool, an identity block, a block with a downsample Conv, pooling and a Gemm."""
    net = Network()
    x = _stem(net)
    main = net.relu(net.conv(x, "layer1.conv1", 16, 16, 3), "layer1.relu1")
    main = net.conv(main, "layer1.conv2", 16, 16, 3)
    x = net.relu(net.add(main, x, "layer1.add"), "layer1.relu2")
    main = net.relu(net.conv(x, "layer2.conv1", 16, 32, 3, 2), "layer2.relu1")
    main = net.conv(main, "layer2.conv2", 32, 32, 3)
    side = net.conv(x, "layer2.downsample", 16, 32, 1, 2)
    x = net.relu(net.add(main, side, "layer2.add"), "layer2.relu2")
    return _head(net, x, path)


def bottleneck(path: Path) -> Artifact:
    """The same with bottleneck blocks; the second Add has its shortcut first."""
    net = Network()
    x = _stem(net)
    for name, cin, swapped in (("layer1", 16, False), ("layer2", 32, True)):
        main = net.relu(net.conv(x, f"{name}.conv1", cin, 8, 1), f"{name}.relu1")
        main = net.relu(net.conv(main, f"{name}.conv2", 8, 8, 3), f"{name}.relu2")
        main = net.conv(main, f"{name}.conv3", 8, 32, 1)
        side = x if cin == 32 else net.conv(x, f"{name}.downsample", cin, 32, 1)
        both = (side, main) if swapped else (main, side)
        x = net.relu(net.add(*both, f"{name}.add"), f"{name}.relu3")
    return _head(net, x, path)


def _stem(net: Network) -> str:
    x = net.relu(net.conv("input", "conv1", 3, 16, 7, 2), "relu")
    return net.op("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)


def _head(net: Network, x: str, path: Path) -> Artifact:
    pooled = net.op("GlobalAveragePool", [x], "avgpool")
    return net.save(path, net.gemm(net.op("Flatten", [pooled], "flatten"), "fc", 32, 10), 32)


NETWORKS: dict[str, Callable[[Path], Artifact]] = {
    "notebook": notebook,
    "basic": basic,
    "bottleneck": bottleneck,
}


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("networks")
    return {name: make(folder / f"{name}.onnx") for name, make in NETWORKS.items()}


@pytest.fixture(scope="session")
def calibrated(networks: dict[str, Artifact]) -> dict[str, Ranges]:
    return {name: _ranges_of(model) for name, model in networks.items()}


@pytest.fixture(scope="session")
def placed(
    networks: dict[str, Artifact],
    calibrated: dict[str, Ranges],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], Artifact]:
    """Every network in every scheme, with pair-safe weights: exact on any CPU."""
    folder = tmp_path_factory.mktemp("placed")
    return {
        (name, scheme): place(
            model, calibrated[name], scheme, folder / f"{name}.{scheme}.onnx", pair_safe=True
        )
        for name, model in networks.items()
        for scheme in ("cpu", "tensorrt")
    }


@pytest.fixture(scope="session")
def ranges_of() -> Callable[[Artifact], Ranges]:
    return _ranges_of


@pytest.fixture(scope="session")
def images_for() -> Callable[..., Float32Array]:
    return _images_for


@pytest.fixture(scope="session")
def run() -> Callable[[Artifact, Float32Array], Float32Array]:
    return _run


@pytest.fixture(scope="session")
def network() -> type[Network]:
    return Network


def _ranges_of(model: Artifact, images: int = 24) -> Ranges:
    histograms = collect(model, [_images_for(model, images)], NoProgress(), 2)
    return minmax(histograms, graph_sha256=model.sha256, dataset_sha256="0" * 64, images=images)


def _run(model: Artifact, images: Float32Array) -> Float32Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model.path), options)
    logits: Float32Array = session.run(["logits"], {"input": images})[0]
    return logits


def _images_for(model: Artifact, number: int, seed: int = 1, loud: bool = False) -> Float32Array:
    """Return (number, C, H, W) float32 images; `loud` makes every fifth ten times the others."""
    random = np.random.default_rng(seed)
    images = random.standard_normal((number, *_size(model))).astype(np.float32)
    images[::5] *= 10 if loud else 1
    return images


def _size(model: Artifact) -> tuple[int, ...]:
    return tuple(int(length) for length in model.inputs[0].shape[1:])
