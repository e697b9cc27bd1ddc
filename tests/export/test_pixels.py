"""The normalisation in the first convolution: the same answers, pixels exact, refused where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import numpy_helper

from resedge import gate
from resedge.artifacts import Artifact, Preprocessing
from resedge.calibration.pixels import pixels_of
from resedge.export import pixels
from resedge.export.frames import take_frames
from resedge.export.pixels import fold_again, fold_pixels
from resedge.images import Frames
from resedge.protocols import Float32Array

Make = Callable[..., Artifact]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CHANNELS = (
    Preprocessing(13, 18, *IMAGENET),
    Preprocessing(13, 18, *IMAGENET, channels="BGR"),
    Preprocessing(13, 18, (*IMAGENET[0], 0.1), (*IMAGENET[1], 0.5), channels="RGBA"),
    Preprocessing(13, 18, (0.0,) * 3, (1 / 255,) * 3),
)
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "7x7, stride 2, padding 3": {"kernel": (7, 7), "pads": [3, 3, 3, 3], "strides": [2, 2]},
    "3x3, padding 1": {"pads": [1, 1, 1, 1], "bias": True},
    "no padding": {},
    "no padding, bias": {"bias": True, "strides": [2, 1]},
    "one side padded": {"kernel": (2, 4), "pads": [0, 1, 2, 0], "dilations": [2, 1], "bias": True},
}


def frames_for(taken: Preprocessing) -> Frames:
    return np.random.default_rng(1).integers(0, 256, (3, *taken.frame_shape), np.uint8)


def run(graph: Artifact, frames: Frames, output: str = "logits") -> Float32Array:
    model = onnx.load(graph.path)
    if output != "logits":
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Float32Array = session.run([output], {"input": frames})[0]
    return found


@pytest.mark.parametrize("taken", CHANNELS, ids=lambda taken: f"{taken.channels} {taken.mean[0]:g}")
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_folded_and_unfolded_agree_to_the_border(
    float_graph: Make, convolution: str, taken: Preprocessing, tmp_path: Path
) -> None:
    plain = float_graph(taken, tmp_path / "float.onnx", **CONVOLUTIONS[convolution])
    model = take_frames(plain, taken, tmp_path / "frames.onnx")
    frames = frames_for(taken)
    folded = fold_pixels(model, taken, frames, tmp_path / "pixels.onnx")
    if taken.channels == "RGBA" and "pads" in CONVOLUTIONS[convolution]:
        assert (folded.graph, folded.reason) == (None, "its padding would take a channel beside 4")
        return
    assert folded.graph is not None
    assert folded.residual < 1e-12
    assert (folded.graph.kind, folded.graph.inputs) == (model.kind, model.inputs)
    expected, found = (run(graph, frames, "0.out") for graph in (model, folded.graph))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    gate.check_onnx(folded.graph.read(), "the graph")
    held = pixels_of(folded.graph)
    assert held is not None
    x = run(folded.graph, frames, held.tensor)
    integers = x / np.float32(held.step)
    np.testing.assert_array_equal(integers, np.rint(integers))
    assert integers.min() >= -128
    assert integers.max() <= 127
    again = fold_again(model, taken, tmp_path / "again.onnx")
    assert again is not None
    assert again.sha256 == folded.graph.sha256


def test_weights_stay_about_as_large_as_they_were(float_graph: Make, tmp_path: Path) -> None:
    taken = CHANNELS[0]
    model = take_frames(
        float_graph(taken, tmp_path / "float.onnx", pads=[1] * 4), taken, tmp_path / "frames.onnx"
    )
    folded = fold_pixels(model, taken, frames_for(taken), tmp_path / "pixels.onnx").graph
    assert folded is not None
    before, after = (
        next(numpy_helper.to_array(c) for c in onnx.load(graph.path).graph.initializer if c.name == "w")
        for graph in (model, folded)
    )
    largest = [np.abs(weight).reshape(12, -1).max(axis=1) for weight in (before, after)]
    assert ((largest[1] > 0.5 * largest[0]) & (largest[1] < 2 * largest[0])).all()


def test_grey_is_no_byte_of_a_frame(float_graph: Make, tmp_path: Path) -> None:
    taken = Preprocessing(13, 18, (0.44,), (0.2,), channels="L")
    model = take_frames(float_graph(taken, tmp_path / "float.onnx"), taken, tmp_path / "frames.onnx")
    found = fold_pixels(model, taken, frames_for(taken), tmp_path / "pixels.onnx")
    assert (found.graph, found.reason) == (None, "grey is computed from a frame's colours")


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ({"op_types": ("Relu", "Flatten")}, "images are read by Relu"),
        ({"group": 3}, "the first convolution is grouped"),
        ({"auto_pad": "SAME_UPPER"}, "the first convolution's padding is left to the runtime"),
    ],
)
def test_what_does_not_begin_with_a_plain_convolution_is_left(
    float_graph: Make, network: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    taken = CHANNELS[0]
    plain = float_graph(taken, tmp_path / "float.onnx", **network)
    model = take_frames(plain, taken, tmp_path / "frames.onnx")
    found = fold_pixels(model, taken, frames_for(taken), tmp_path / "pixels.onnx")
    assert (found.graph, found.reason) == (None, reason)
    assert fold_again(model, taken, tmp_path / "again.onnx") is None
    assert not (tmp_path / "pixels.onnx").exists()


def test_without_the_further_channel_the_proof_fails(
    float_graph: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = CHANNELS[0]
    plain = float_graph(taken, tmp_path / "float.onnx", pads=[1] * 4)
    model = take_frames(plain, taken, tmp_path / "frames.onnx")
    whole = pixels._folded

    def forgetful(first: Any, preprocessing: Preprocessing) -> Any:  # noqa: ANN401
        found = whole(first, preprocessing)
        within = found.weight[:, -1].sum(axis=(1, 2)) * found.inside  # as if nothing were padded
        weight = np.concatenate([found.weight[:, :-1], 0 * found.weight[:, -1:]], axis=1)
        return replace(found, weight=weight, bias=found.bias + within)

    monkeypatch.setattr(pixels, "_folded", forgetful)
    found = fold_pixels(model, taken, frames_for(taken), tmp_path / "pixels.onnx")
    assert found.graph is None
    assert found.residual > 1e-3
    assert "differs by" in found.reason
