"""Graphs that take frames: the same logits as a float graph gives for images prepared outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto

from resedge import gate
from resedge.artifacts import Artifact, Channels, Preprocessing, TensorSpec
from resedge.errors import GraphRefused
from resedge.export.frames import take_frames
from resedge.export.half import write_half
from resedge.images import Frames, prepare
from resedge.protocols import Array, Float32Array

Make = Callable[..., Artifact]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CASES = (
    Preprocessing(10, 14, *IMAGENET),
    Preprocessing(10, 14, *IMAGENET, channels="BGR"),
    Preprocessing(10, 14, (*IMAGENET[0], 0.5), (*IMAGENET[1], 0.25), channels="RGBA"),
    Preprocessing(10, 14, (0.44,), (0.2,), channels="L"),
    Preprocessing(10, 14, (0.0,) * 3, (1.0,) * 3),
    Preprocessing(10, 14, (0.0,) * 3, (1 / 255,) * 3),
)


def case_name(taken: Preprocessing) -> str:
    return f"{taken.channels}, {taken.mean[0]:g}, {taken.std[0]:.2g}"


def run(graph: Artifact, given: Array) -> Float32Array:
    session = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"])
    logits: Float32Array = session.run(["logits"], {"input": given})[0]
    return logits


def frames_for(taken: Preprocessing) -> Frames:
    return np.random.default_rng(1).integers(0, 256, (3, *taken.frame_shape), np.uint8)


@pytest.mark.parametrize("taken", CASES, ids=case_name)
def test_frames_give_what_prepared_images_give(
    float_graph: Make, taken: Preprocessing, tmp_path: Path
) -> None:
    given = float_graph(taken, tmp_path / "float.onnx")
    made, frames = take_frames(given, taken, tmp_path / "frames.onnx"), frames_for(taken)
    assert made.inputs == (TensorSpec("input", ("batch", *taken.frame_shape), "uint8"),)
    assert (made.kind, made.outputs, made.parents) == (given.kind, given.outputs, given.parents)
    expected = run(given, prepare(frames, taken))
    np.testing.assert_allclose(run(made, frames), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    gate.check_onnx(made.read(), "the graph")


@pytest.mark.parametrize("taken", CASES, ids=case_name)
def test_a_cast_is_all_that_reads_bytes_and_nothing_is_computed_in_vain(
    float_graph: Make, taken: Preprocessing, tmp_path: Path
) -> None:
    made = take_frames(float_graph(taken, tmp_path / "float.onnx"), taken, tmp_path / "frames.onnx")
    graph = onnx.load(made.path).graph
    assert [node.op_type for node in graph.node if "input" in node.input] == ["Cast"]
    extra = [node.op_type for node in graph.node if node.name.startswith("frames.")]
    channels: dict[Channels, list[str]] = {
        "BGR": ["Gather"],
        "L": ["Mul", "ReduceSum", "Add", "Mul", "Floor"],
    }
    wanted = ["Sub"] * any(taken.mean) + ["Mul"] * (taken.std[0] != 1 / 255)
    assert extra == ["Cast", "Transpose", *channels.get(taken.channels, []), *wanted]


def test_the_luma_of_every_colour_is_pillows_to_the_last_bit(float_graph: Make, tmp_path: Path) -> None:
    taken = Preprocessing(16, 4096, (0.0,), (1 / 255,), channels="L")
    graph = float_graph(taken, tmp_path / "float.onnx", ("Flatten",))
    made = take_frames(graph, taken, tmp_path / "frames.onnx")
    green, blue = (part.reshape(16, 4096) for part in np.meshgrid(np.arange(256), np.arange(256)))
    for red in (0, 1, 77, 128, 254, 255):
        frame = np.stack([np.full_like(green, red), green, blue], axis=-1).astype(np.uint8)[None]
        np.testing.assert_array_equal(run(made, frame), np.rint(prepare(frame, taken)).reshape(1, -1))


@pytest.mark.parametrize("taken", CASES, ids=case_name)
def test_in_half_what_prepares_stays_float(float_graph: Make, taken: Preprocessing, tmp_path: Path) -> None:
    made = take_frames(float_graph(taken, tmp_path / "float.onnx"), taken, tmp_path / "frames.onnx")
    half, frames = write_half(made, tmp_path / "fp16.onnx"), frames_for(taken)
    assert (half.kind, half.inputs) == ("onnx/fp16", made.inputs)
    expected = run(made, frames)
    np.testing.assert_allclose(run(half, frames), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    graph = onnx.load(half.path).graph
    casts = [node.attribute[0].i for node in graph.node if node.op_type == "Cast"]
    assert casts == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT]
    float_constants = [c.name for c in graph.initializer if c.data_type == TensorProto.FLOAT]
    assert all(name.startswith("frames.") for name in float_constants)


def test_a_model_of_another_size_is_refused(float_graph: Make, tmp_path: Path) -> None:
    graph = float_graph(CASES[0], tmp_path / "float.onnx")
    with pytest.raises(GraphRefused, match=r"takes images of the shape \(3, 10, 14\)"):
        take_frames(graph, Preprocessing(14, 10, *IMAGENET), tmp_path / "frames.onnx")
    assert not (tmp_path / "frames.onnx").exists()
