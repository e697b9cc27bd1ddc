"""Tensors of a spoilt network, given as if an engine had held them: whose error is it?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import helper, numpy_helper

from resedge.artifacts import Artifact, sha256_file
from resedge.calibration.blame import LayerComparison, LayerError
from resedge.calibration.watchpoints import watchpoints
from resedge.errors import GraphRefused
from resedge.protocols import Array, Float32Array

Images = Callable[..., Float32Array]


def held(graph: Artifact, images: Float32Array) -> dict[str, Array]:
    """Compute a graph as it is written, with all that is to be watched given out beside the logits."""
    names = [point.name for point in watchpoints(graph)]
    proto = onnx.load(graph.path)
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return dict(zip(("logits", *names), session.run(None, {"input": images}), strict=True))


def blamed(
    model: Artifact, graph: Artifact, *batches: tuple[Float32Array, dict[str, Array]]
) -> dict[str, LayerError]:
    comparison = LayerComparison(model, graph, watchpoints(graph), threads=1)
    for images, tensors in batches:
        logits = np.asarray(tensors["logits"], np.float32)
        watched = {name: tensor for name, tensor in tensors.items() if name != "logits"}
        comparison.add(images, watched, logits)
    return {layer.name: layer for layer in comparison.layers()}


def spoilt(model: Artifact, initialiser: str, factor: float, out: Path) -> Artifact:
    proto = onnx.load(model.path)
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == initialiser)
    numbers = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((numbers * factor).astype(numbers.dtype), tensor.name))
    onnx.save(proto, out)
    return Artifact(out, sha256_file(out), model.kind, model.inputs, model.outputs)


@pytest.mark.parametrize(
    ("network", "weight", "layer"),
    [
        ("notebook", "layer.0.conv1", "layer.0.conv1 + layer.0.relu"),
        ("notebook", "layer.1.conv3", "layer.1.conv3"),
        ("basic", "conv1", "conv1 + relu"),
        ("basic", "layer2.downsample", "layer2.downsample"),
        ("bottleneck", "layer2.conv2", "layer2.conv2 + layer2.relu2"),
        ("bottleneck", "fc", "fc"),
    ],
)
def test_an_error_is_that_of_the_layer_which_makes_it(
    networks: dict[str, Artifact], images_for: Images, tmp_path: Path, network: str, weight: str, layer: str
) -> None:
    model = networks[network]
    images = images_for(model, 4)
    engine = spoilt(model, f"{weight}.weight", 0.7, tmp_path / "spoilt.onnx")
    halves = [(half, held(engine, half)) for half in (images[:2], images[2:])]
    found = blamed(model, model, *halves)
    alone = {name: entry.alone for name, entry in found.items()}
    assert alone.pop(layer) == pytest.approx(-20 * np.log10(0.3), abs=2.5)  # a bias is not spoilt
    assert all(ratio is not None and ratio > 90 for ratio in alone.values())
    before = list(found)[: list(found).index(layer)]
    assert all((found[name].sqnr or 0) > 90 for name in before)
    after = found["linear" if network == "notebook" else "fc"]
    assert after.sqnr is not None
    assert after.sqnr < 40
    assert all(entry.cause == "layer" and entry.keep == () for entry in found.values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_has_no_ratio(
    networks: dict[str, Artifact], images_for: Images, value: float
) -> None:
    model = networks["basic"]
    images = images_for(model, 4)
    tensors = held(model, images)
    broken = {name: np.array(tensor) for name, tensor in tensors.items()}
    broken["layer1.relu1.out"][0, 0, 0, 0] = value
    found = blamed(model, model, (images, tensors), (images, broken))
    bad = next(layer for layer in found.values() if layer.sqnr is None)
    assert (bad.name, bad.alone, bad.cause) == ("layer1.conv1 + layer1.relu1", None, "not finite")
    assert (found["maxpool"].sqnr or 0) > 90


@pytest.mark.parametrize(
    ("factor", "cause"), [(1 / 50, "range"), (50, "steps")], ids=["too short", "too coarse"]
)
def test_a_grid_that_does_not_fit_is_told_from_a_bad_weight(
    networks: dict[str, Artifact],
    placed: dict[tuple[str, str], Artifact],
    images_for: Images,
    tmp_path: Path,
    factor: float,
    cause: str,
) -> None:
    model, graph = networks["bottleneck"], placed["bottleneck", "cpu"]
    images = images_for(model, 4)
    engine = spoilt(graph, "layer1.relu2.out.scale", factor, tmp_path / "spoilt.onnx")
    found = blamed(model, engine, (images, held(engine, images)))
    (bad,) = (layer for layer in found.values() if layer.alone is None or layer.alone < 20)
    assert (bad.name, bad.cause) == ("layer1.conv2 + layer1.relu2", cause)
    assert bad.weighted == ("layer1.conv2",)
    assert bad.keep == bad.readers == ("layer1.conv3",)


def test_no_layer_to_keep_where_an_addition_reads_the_integers(
    networks: dict[str, Artifact], placed: dict[tuple[str, str], Artifact], images_for: Images
) -> None:
    model, graph = networks["bottleneck"], placed["bottleneck", "cpu"]
    images = images_for(model, 4)
    found = blamed(model, graph, (images, held(graph, images)))
    assert found["layer1.conv3"].readers == ()
    assert found["input"].readers == ("conv1",)
    assert found["fc"].weighted == ("fc",)
    assert found["fc"].rounding is None


def test_another_networks_graph_is_refused(networks: dict[str, Artifact]) -> None:
    with pytest.raises(GraphRefused, match="is not in the graph that the engine was built from"):
        LayerComparison(networks["basic"], networks["notebook"], (), threads=1)


def test_what_cannot_be_seen_is_named_once(networks: dict[str, Artifact], images_for: Images) -> None:
    """As of a runtime that adds the shortcut in place: the tensors between the blocks are never there."""
    model = networks["bottleneck"]
    images, hidden = images_for(model, 2), ("layer1.conv3.out", "layer1.relu3.out", "layer2.conv3.out")
    tensors = held(model, images)
    seen = [point for point in watchpoints(model) if point.name not in hidden]
    comparison = LayerComparison(model, model, seen, threads=1)
    comparison.add(images, {point.name: tensors[point.name] for point in seen}, images[:, 0, 0, :10])
    assert [layer.name for layer in comparison.layers()] == [
        *("conv1 + relu", "maxpool", "layer1.conv1 + layer1.relu1", "layer1.conv2 + layer1.relu2"),
        *("layer1.downsample", "layer1.conv3 + layer1.add + layer1.relu3 + layer2.conv1 + layer2.relu1"),
        *("layer2.conv2 + layer2.relu2", "layer2.conv3 + layer2.add + layer2.relu3", "avgpool", "fc"),
    ]
