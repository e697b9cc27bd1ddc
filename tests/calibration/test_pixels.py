"""Pixels that are integers themselves: their grid, bytes that a DequantizeLinear reads, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resedge.artifacts import Artifact, JsonValue, Ranges, TensorSpec, sha256_file
from resedge.calibration.emulation import emulated
from resedge.calibration.pixels import Pixels, pixels_of, with_range_of_pixels
from resedge.calibration.placement import place
from resedge.calibration.rules import check_qdq
from resedge.calibration.schemes import SCHEMES
from resedge.errors import GraphRefused
from resedge.protocols import Array

STEP = 2.0**-6
PLAIN = ("Cast", "Transpose", "Sub", "Mul")
PADDED = (*PLAIN, "Pad")
WEIGHT = ("DequantizeLinear",)
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3), np.uint8)
FRAMES.flat[:2] = (0, 255)


def pixel_graph(path: Path, chain: Sequence[str] = PADDED) -> tuple[Artifact, Ranges]:
    """Write input - chain - Conv - Relu - GlobalAveragePool - Flatten, and ranges for it."""
    channels = 4 if "Pad" in chain else 3
    constants: dict[str, Array] = {
        "centre": np.array(128, np.float32),
        "step": np.array(STEP, np.float32),
        "pads": np.array([0, 0, 0, 0, 0, 1, 0, 0]),
        "filling": np.array(100 * STEP, np.float32),
        "w": np.random.default_rng(1).normal(size=(5, channels, 3, 3)).astype(np.float32),
    }
    read = {"Sub": ["centre"], "Mul": ["step"], "Pad": ["pads", "filling"]}
    settings: dict[str, dict[str, Any]] = {
        "Cast": {"to": TensorProto.FLOAT},
        "Transpose": {"perm": [0, 3, 1, 2]},
    }
    nodes, given = [], "input"
    for op_type in chain:
        name = f"frames.{op_type.lower()}"
        made = f"{name}.out"
        node = helper.make_node(
            op_type, [given, *read.get(op_type, [])], [made], name, **settings.get(op_type, {})
        )
        node.metadata_props.add(key="resedge.prepares", value="frames")
        nodes.append(node)
        given = made
    nodes += [
        helper.make_node("Conv", [given, "w"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["logits"], "flatten"),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, ["batch", 6, 7, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(np.asarray(c), name) for name, c in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    meta: dict[str, JsonValue] = {"pixels": {"tensor": given, "step": STEP}}
    inputs = (TensorSpec("input", ("batch", 6, 7, 3), "uint8"),)
    written = Artifact(path, sha256_file(path), "onnx/fp32", inputs, meta=meta)
    table = {given: (-0.5, 0.5), "relu": (0.0, 30.0)}  # the first is much too narrow, and must not matter
    return written, Ranges(table, "minmax", written.sha256, "0" * 64, 2)


def operators(graph: Artifact) -> list[str]:
    return [node.op_type for node in onnx.load(graph.path).graph.node]


@pytest.mark.parametrize(("scheme", "zero_point"), [("cpu", 128), ("tensorrt", 0)])
def test_all_pixels_are_on_their_grid(scheme: str, zero_point: int) -> None:
    grid = Pixels("x", STEP).grid(SCHEMES[scheme])
    assert grid.scale == np.float32(STEP)
    assert grid.zero_point == zero_point
    integers = np.arange(256) - 128 + zero_point
    ends = np.iinfo(SCHEMES[scheme].dtype)
    assert (integers.min(), integers.max()) == (ends.min, ends.max)


def test_the_range_of_pixels_is_that_of_all_there_can_be(tmp_path: Path) -> None:
    model, ranges = pixel_graph(tmp_path / "fp32.onnx")
    found = with_range_of_pixels(ranges, model)
    assert found.table == {"frames.pad.out": (-2.0, 127 / 64), "relu": (0.0, 30.0)}
    plain = replace(model, meta={})
    assert with_range_of_pixels(ranges, plain) is ranges


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
@pytest.mark.parametrize("chain", [PADDED, PLAIN], ids="-".join)
def test_quantising_pixels_rounds_nothing(scheme: str, chain: tuple[str, ...], tmp_path: Path) -> None:
    model, ranges = pixel_graph(tmp_path / "fp32.onnx", chain)
    placed = place(model, ranges, scheme, tmp_path / "int8.onnx")
    assert pixels_of(placed) == pixels_of(model)
    # With float weights what is left is the rounding of activations: of pixels nothing, so all is the Relu's.
    found = emulated(placed, 1, weights=model)(FRAMES)
    expected = emulated(model, 1)(FRAMES)
    levels = 255 if scheme == "cpu" else 127
    assert np.abs(found - expected).max() < 30.0 / levels / 4


@pytest.mark.parametrize("chain", [PADDED, PLAIN], ids="-".join)
def test_on_a_cpu_bytes_are_read_and_no_float_is_made_of_them(chain: tuple[str, ...], tmp_path: Path) -> None:
    model, ranges = pixel_graph(tmp_path / "fp32.onnx", chain)
    cpu, nvidia = (place(model, ranges, scheme, tmp_path / scheme) for scheme in ("cpu", "tensorrt"))
    by_bytes = (
        ["Transpose", "Pad", "DequantizeLinear"] if "Pad" in chain else ["DequantizeLinear", "Transpose"]
    )
    assert operators(cpu)[: len(by_bytes)] == by_bytes
    assert operators(nvidia)[: len(chain) + 2] == [*chain, "QuantizeLinear", "DequantizeLinear"]
    graph = onnx.load(cpu.path).graph
    assert not {"centre", "step"} & {constant.name for constant in graph.initializer}
    if "Pad" in chain:
        (filling,) = (c for c in graph.initializer if c.name == "filling")
        assert numpy_helper.to_array(filling) == np.uint8(228)


def test_what_is_computed_from_frames_is_quantised_as_any_tensor(tmp_path: Path) -> None:
    model, ranges = pixel_graph(tmp_path / "fp32.onnx", ("Cast", "Transpose", "Floor", "Sub", "Mul"))
    placed = place(model, ranges, "cpu", tmp_path / "int8.onnx")
    assert operators(placed)[:5] == ["Cast", "Transpose", "Floor", "Sub", "Mul"]


def test_a_first_convolution_that_stays_float_reads_floats(tmp_path: Path) -> None:
    model, ranges = pixel_graph(tmp_path / "fp32.onnx")
    placed = place(model, ranges, "cpu", tmp_path / "int8.onnx", kept=frozenset({"conv"}))
    assert operators(placed)[:6] == [*PADDED, "Conv"]


def test_what_is_no_frame_is_no_integer_either(tmp_path: Path) -> None:
    model, ranges = pixel_graph(tmp_path / "fp32.onnx")
    broken = onnx.load(place(model, ranges, "cpu", tmp_path / "int8.onnx").path)
    transpose = broken.graph.node[0]
    negated = helper.make_node("Max", ["input", "input"], ["other"], "max")
    transpose.input[0] = "other"
    broken.graph.node.insert(0, negated)
    with pytest.raises(GraphRefused, match="reads what no QuantizeLinear wrote"):
        check_qdq(broken.SerializeToString(), "cpu")
