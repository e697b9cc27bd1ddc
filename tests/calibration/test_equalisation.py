from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resedge.artifacts import Artifact, Ranges, sha256_bytes
from resedge.calibration.emulation import emulated
from resedge.calibration.equalisation import equalise
from resedge.calibration.placement import place
from resedge.protocols import Float32Array

Networks = dict[str, Artifact]
Images = Callable[..., Float32Array]


@pytest.mark.parametrize("name", ["notebook", "basic", "bottleneck"])
def test_the_equalised_graph_computes_what_the_original_does(
    name: str, networks: Networks, images_for: Images, tmp_path: Path
) -> None:
    model = networks[name]
    equalised = equalise(model, images_for(model, 8, seed=1), tmp_path / "equalised.onnx")
    assert equalised is not None
    assert equalised.sha256 != model.sha256
    assert equalised.parents == (model.sha256,)
    unseen = images_for(model, 8, seed=2)
    expected, given = emulated(model, 1)(unseen), emulated(equalised, 1)(unseen)
    np.testing.assert_allclose(given, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
def test_channels_of_unequal_size_are_repaired(
    scheme: str,
    networks: Networks,
    images_for: Images,
    ranges_of: Callable[[Artifact], Ranges],
    tmp_path: Path,
) -> None:
    unequal = _with_unequal_channels(networks["basic"], tmp_path / "unequal.onnx")
    images = images_for(unequal, 16, seed=1)
    equalised = equalise(unequal, images, tmp_path / "equalised.onnx")
    assert equalised is not None
    expected = emulated(unequal, 1)(images)
    np.testing.assert_allclose(
        expected, emulated(networks["basic"], 1)(images), atol=1e-4 * np.abs(expected).max()
    )
    before, after = (
        np.square(
            emulated(place(model, ranges_of(model), scheme, tmp_path / "int8.onnx"), 1)(images) - expected
        ).mean()
        for model in (unequal, equalised)
    )
    assert after < before / 10


def test_a_residual_stream_is_scaled_as_a_whole(
    networks: Networks, images_for: Images, tmp_path: Path
) -> None:
    """Both writers of an addition get one factor, as the tensor behind it has."""
    model = networks["basic"]
    equalised = equalise(model, images_for(model, 4), tmp_path / "equalised.onnx")
    assert equalised is not None
    before, after = _weights(model), _weights(equalised)
    ratios = [
        np.abs(after[f"layer2.{name}.bias"] / before[f"layer2.{name}.bias"])
        for name in ("conv2", "downsample")
    ]
    assert np.ptp(ratios[0]) > 0.1
    np.testing.assert_allclose(ratios[0], ratios[1], rtol=1e-5)


def test_the_order_of_the_images_changes_nothing(
    networks: Networks, images_for: Images, tmp_path: Path
) -> None:
    model = networks["notebook"]
    images = images_for(model, 8)
    made = [equalise(model, x, tmp_path / f"{i}.onnx") for i, x in enumerate((images, images[::-1]))]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].sha256 == made[1].sha256


def test_nothing_is_written_where_no_tensor_could_be_scaled(
    network: Callable[[], Any], images_for: Images, tmp_path: Path
) -> None:
    net = network()
    x = net.op("Sigmoid", [net.conv("input", "conv", 3, 4, 3)], "sigmoid")
    pooled = net.op("GlobalAveragePool", [x], "pool")
    model = net.save(
        tmp_path / "model.onnx", net.gemm(net.op("Flatten", [pooled], "flatten"), "fc", 4, 10), 8
    )
    # Behind the Sigmoid the pooled features have a reader, and no writer that could take the inverse.
    assert equalise(model, images_for(model, 2), tmp_path / "equalised.onnx") is None
    assert not (tmp_path / "equalised.onnx").exists()


def _with_unequal_channels(model: Artifact, path: Path) -> Artifact:
    """Scale the channels between both convolutions of each block by 1/30 to 30, and undo it behind."""
    parsed = onnx.load(model.path)
    tensors = {tensor.name: tensor for tensor in parsed.graph.initializer}
    random = np.random.default_rng(3)
    for block in ("layer1", "layer2"):
        numbers = {
            name: numpy_helper.to_array(tensors[f"{block}.{name}"])
            for name in ("conv1.weight", "conv1.bias", "conv2.weight")
        }
        factors = np.exp(random.uniform(-np.log(30), np.log(30), len(numbers["conv1.bias"])))
        scaled = {
            "conv1.weight": numbers["conv1.weight"] * factors[:, None, None, None],
            "conv1.bias": numbers["conv1.bias"] * factors,
            "conv2.weight": numbers["conv2.weight"] / factors[None, :, None, None],
        }
        for name, values in scaled.items():
            tensor = tensors[f"{block}.{name}"]
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return _written(parsed, model, path)


def _written(parsed: onnx.ModelProto, model: Artifact, path: Path) -> Artifact:
    data = parsed.SerializeToString(deterministic=True)
    path.write_bytes(data)
    return Artifact(path, sha256_bytes(data), model.kind, model.inputs, model.outputs)


def _weights(model: Artifact) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model.path).graph.initializer}
