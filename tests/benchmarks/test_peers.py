"""What the scripts that compare with peers compute themselves: rewritten networks, times, medians."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
import pytest
from onnx import helper, numpy_helper

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
HIDDEN = "blocks.0.main.1.out"


@pytest.fixture(scope="module")
def imbalance() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(PEERS / "imbalance.py")))


@pytest.fixture
def block() -> onnx.ModelProto:
    """A residual block, named as `resedge export` names ResNet-20's first, with shapes in the file."""
    random = np.random.default_rng(0)
    shapes = {"main.0.0": (6, 4, 3, 3), "main.2.0": (4, 6, 3, 3)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"blocks.0.{name}.weight"] = random.standard_normal(shape).astype(np.float32)
        tensors[f"blocks.0.{name}.bias"] = random.standard_normal(shape[0]).astype(np.float32)
    first, second = ([f"blocks.0.{name}.weight", f"blocks.0.{name}.bias"] for name in shapes)
    nodes = [
        helper.make_node("Conv", ["input", *first], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], [HIDDEN]),
        helper.make_node("Conv", [HIDDEN, *second], ["main"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["main", "input"], ["output"]),
    ]
    image: tuple[str | int, ...] = ("batch", 4, 5, 5)
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, image)],
        [numpy_helper.from_array(numbers, name) for name, numbers in tensors.items()],
        value_info=[helper.make_tensor_value_info("conv", onnx.TensorProto.FLOAT, ["batch", 6, 5, 5])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def run(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """Return what the block gives, and its hidden channels."""
    onnx.checker.check_model(model, full_check=True)
    seen = onnx.ModelProto.FromString(model.SerializeToString())
    seen.graph.output.append(helper.make_tensor_value_info(HIDDEN, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).standard_normal((8, 4, 5, 5)).astype(np.float32)
    output, hidden = session.run(None, {"input": images})
    return output, hidden


def largest_by_channel(hidden: np.ndarray) -> np.ndarray:
    found: np.ndarray = hidden.max(axis=(0, 2, 3))
    return found


def test_offsets_leave_a_tensor_far_from_zero_and_compute_the_same(
    imbalance: SimpleNamespace, block: onnx.ModelProto
) -> None:
    expected, before = run(block)
    imbalance.add_offsets(block, blocks=(0,), offset=100)
    output, hidden = run(block)
    np.testing.assert_allclose(output, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(hidden, before)
    block.graph.output.append(helper.make_tensor_value_info("blocks.0.lift", onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(block.SerializeToString(), providers=["CPUExecutionProvider"])
    lifted = session.run(["blocks.0.lift"], {"input": np.zeros((1, 4, 5, 5), np.float32)})[0]
    assert lifted.min() >= 100


def test_scaled_channels_differ_in_range_and_compute_the_same(
    imbalance: SimpleNamespace, block: onnx.ModelProto
) -> None:
    expected, before = run(block)
    imbalance.scale_channels(block, blocks=(0,), factor=30, seed=0)
    output, hidden = run(block)
    scales = largest_by_channel(hidden) / largest_by_channel(before)
    np.testing.assert_allclose(output, expected, atol=1e-4 * np.abs(expected).max())
    assert scales.max() / scales.min() > 30
    assert scales.min() > 1 / 30.1
    assert scales.max() < 30.1


def test_twins_are_large_and_cancel(imbalance: SimpleNamespace, block: onnx.ModelProto) -> None:
    expected, before = run(block)
    imbalance.add_cancelling_twins(block, blocks=(0,), factor=64)
    output, hidden = run(block)
    np.testing.assert_allclose(output, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(hidden[:, :6], before)
    np.testing.assert_array_equal(hidden[:, 6], hidden[:, 7])
    assert hidden[:, 6].max() > 10 * before.max()
    read = numpy_helper.to_array(block.graph.initializer[2])
    assert (np.abs(read[:, 6:]).max(axis=(1, 2, 3)) == 64 * np.abs(read[:, :6]).max(axis=(1, 2, 3))).all()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that is set by hand; processors work twice as long."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("time.monotonic", lambda: now.seconds)
    monkeypatch.setattr("time.process_time", lambda: 2 * now.seconds)
    return now


def test_a_stopwatch_adds_up_steps_and_what_lies_between(clock: SimpleNamespace) -> None:
    watch = SimpleNamespace(**runpy.run_path(str(PEERS / "stopwatch.py"))).Stopwatch()
    for label, seconds in (("pass", 5), ("score", 7), ("score", 11)):
        clock.seconds += 1
        watch.start(label, 0)
        clock.seconds += seconds
        watch.finish()
    clock.seconds += 3
    found = {step: (took.wall, took.cpu) for step, took in watch.read().items()}
    assert found == {
        "before the first step": (1, 2),
        "pass": (5, 10),
        "after pass": (1, 2),
        "score": (18, 36),
        "after score": (4, 8),
    }


def test_a_summary_has_medians_peaks_and_ratios() -> None:
    summary = runpy.run_path(str(PEERS / "calibration_cost.py"))["summary"]
    rows: list[dict[str, Any]] = [
        {"way": way, "seconds": seconds, "cpu_seconds": 2 * seconds, "peak_resident_mib": peak}
        for way, seconds, peak in (
            ("nncf", 10.0, 400.0),
            ("pass", 8.0, 900.0),
            ("nncf", 12.0, 500.0),
            ("pass", 3.0, 700.0),
            ("pass", 2.0, 800.0),
        )
    ]
    found = summary(rows)
    assert found["nncf"]["seconds"] == 11
    assert found["pass"]["seconds"] == 3
    assert found["pass"]["seconds_over_nncf"] == pytest.approx(3 / 11, abs=1e-3)
    assert found["pass"]["peak_resident_mib"] == 900
    assert "seconds_over_nncf" not in summary(rows[1:2])["pass"]
