"""A bundle of a small convolutional network with weights drawn at random, for devices on loopback.

Its golden logits are what ONNX Runtime computes; a `spoiled` one claims others, as an export that went wrong.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from resedge import bundle as bundles
from resedge.artifacts import (
    FORMAT_VERSION,
    Artifact,
    Engine,
    Preprocessing,
    TensorSpec,
    canonical_json,
    sha256_bytes,
)
from resedge.bundle import Bundle, Manifest, ModelInfo, Target

CLASSES, SIDE, IMAGES = 4, 8, 16

_INPUT = TensorSpec("input", ("batch", 3, SIDE, SIDE), "float32")
_OUTPUT = TensorSpec("logits", ("batch", CLASSES), "float32")
_GRAPH = "onnx/fp32.onnx"


def write(
    out: Path, *, seed: int = 0, channels: int = 16, spoiled: bool = False, jetpack: str | None = None
) -> Bundle:
    """Write an unsigned bundle whose weights are drawn from `seed`; a bundle that stands there is replaced.

    `channels` sets its size: their square times 36 bytes, and little more. `jetpack`: for that alone.
    """
    graph = network(seed, channels)
    images = np.random.default_rng(seed).standard_normal((IMAGES, 3, SIDE, SIDE), np.float32)
    logits = _logits(graph, images)
    golden = {"input": images, "logits": -logits if spoiled else logits}
    trial = canonical_json({"format_version": 1, "images": IMAGES, "min_agreement": 1.0})
    contents = {
        "golden/golden.safetensors": (save(golden), "golden"),
        "golden/trial.json": (trial.encode(), "golden/trial"),
        _GRAPH: (graph, "onnx/fp32"),
    }
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: Path(folder, str(number)) for number, name in enumerate(contents)}
        for name, source in sources.items():
            source.write_bytes(contents[name][0])
        files = tuple(
            Artifact(Path(name), sha256_bytes(data), kind, (_INPUT,), (_OUTPUT,))
            for name, (data, kind) in contents.items()
        )
        return bundles.publish(_manifest(files, jetpack), sources, out).bundle


def _manifest(files: tuple[Artifact, ...], jetpack: str | None) -> Manifest:
    (graph,) = (file for file in files if file.path.as_posix() == _GRAPH)
    return Manifest(
        format_version=FORMAT_VERSION,
        counter=0,
        expires=None,
        signing=None,
        signed_at=None,
        model=ModelInfo("small", "eager, as drawn", "keep", _INPUT, _OUTPUT),
        preprocessing=Preprocessing(SIDE, SIDE, (0.5,) * 3, (0.25,) * 3),
        labels=tuple(f"class {number}" for number in range(CLASSES)),
        target=Target(("onnxruntime",), jetpack=jetpack),
        files=files,
        engines=(Engine(graph, "onnxruntime", onnxruntime.__version__, "CPU", "fp32"),),
        toolchain={},
        parents={},
        trtexec={},
    )


def network(seed: int, channels: int) -> bytes:
    """Return the graph: two convolutions with ReLU, the mean over the image, and a linear layer."""
    draw = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return numpy_helper.from_array(draw.standard_normal(shape, np.float32) * np.float32(scale), name)

    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(_INPUT.shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, list(_OUTPUT.shape))],
        [
            weights("w1", channels, 3, 3, 3),
            weights("w2", channels, channels, 3, 3),
            weights("w3", CLASSES, channels),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _logits(graph: bytes, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images})
    found: npt.NDArray[np.float32] = logits
    return found
