"""Our graph checker and NVIDIA's parser and builder side by side, on each way in which a pair can be wrong.

Ours refuses all that TensorRT for RTX refuses. Where it is stricter, the row says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resedge.artifacts import Artifact, sha256_bytes
from resedge.calibration.rules import check_qdq
from resedge.errors import GraphRefused
from resedge.runtimes.rtx_preflight import Preflight, preflight

CHANNELS = 16


@dataclass(frozen=True)
class Recipe:
    """A graph of one convolution in FP16 surroundings, the scheme `tensorrt` but for what is set."""

    zero_point: tuple[str, int] | None = ("int8", 0)
    scale: float = 0.03
    scale_a_channel: bool = False
    weight: str = "stored"
    weight_type: type[np.generic] = np.int8
    weight_zero_point: int = 0
    weight_axis: int = 0
    bias: str = "float16"
    opset: int = 19
    domain: str = ""


class Writer:
    """Collects nodes and constants."""

    def __init__(self, domain: str) -> None:
        self.domain = domain
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, numbers: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(numbers, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:  # noqa: ANN401
        domain = self.domain if "Linear" in kind else ""
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"{output}.node", domain=domain, **attributes)
        )
        return output


def graph_of(recipe: Recipe) -> bytes:
    write = Writer(recipe.domain)
    half = write.node("Cast", ["input"], "half", to=TensorProto.FLOAT16)
    shape, axis = ((CHANNELS,), {"axis": 1}) if recipe.scale_a_channel else ((), {})
    grid = [write.constant("x.scale", np.full(shape, recipe.scale, np.float16))]
    if recipe.zero_point is not None:
        kind, number = recipe.zero_point
        grid.append(write.constant("x.zero", np.full(shape, number, kind)))
    quantised = write.node("QuantizeLinear", [half, *grid], "x.q", **axis)
    inputs = [write.node("DequantizeLinear", [quantised, *grid], "x.dq", **axis), weight_of(recipe, write)]
    if recipe.bias == "int32":
        grid = [write.constant("b.scale", np.full((), 0.001, np.float16))]
        grid.append(write.constant("b.zero", np.zeros((), np.int32)))
        stored = write.constant("b.q", np.full(CHANNELS, 7, np.int32))
        inputs.append(write.node("DequantizeLinear", [stored, *grid], "b"))
    elif recipe.bias != "none":
        inputs.append(write.constant("b", np.full(CHANNELS, 0.1, recipe.bias)))
    write.node("Conv", inputs, "conv", kernel_shape=[3, 3], pads=[1] * 4)
    write.node("Relu", ["conv"], "relu")
    write.node("Cast", ["relu"], "logits", to=TensorProto.FLOAT)
    border = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", CHANNELS, 8, 8])
        for name in ("input", "logits")
    ]
    graph = helper.make_graph(write.nodes, "one", border[:1], border[1:], write.constants)
    opsets = [helper.make_opsetid("", recipe.opset)]
    opsets += [helper.make_opsetid(recipe.domain, 1)] if recipe.domain else []
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def weight_of(recipe: Recipe, write: Writer) -> str:
    integers = np.random.default_rng(0).integers(1, 127, (CHANNELS, CHANNELS, 3, 3))
    if recipe.weight == "float":
        return write.constant("w", (integers * 0.001).astype(np.float16))
    one = recipe.weight == "one scale"
    scales = np.array(0.001, np.float16) if one else np.full(CHANNELS, 0.001, np.float16)
    zeros = np.full(scales.shape, recipe.weight_zero_point, recipe.weight_type)
    grid = [write.constant("w.scale", scales), write.constant("w.zero", zeros)]
    axis = {} if one else {"axis": recipe.weight_axis}
    if recipe.weight == "pair":
        floats = write.constant("w", (integers * 0.001).astype(np.float16))
        stored = write.node("QuantizeLinear", [floats, *grid], "w.q", **axis)
    else:
        stored = write.constant("w.q", integers.astype(recipe.weight_type))
    return write.node("DequantizeLinear", [stored, *grid], "w.dq", **axis)


PLAIN = Recipe()
# What TensorRT for RTX makes of the convolution, or why it refuses; what ours says; why ours is stricter.
ROWS: dict[str, tuple[Recipe, str, str, str]] = {
    "as the scheme has it": (PLAIN, "int8", "", ""),
    "no bias": (replace(PLAIN, bias="none"), "int8", "", ""),
    "zero point 5": (replace(PLAIN, zero_point=("int8", 5)), "Non-zero zero point", "is not 0", ""),
    "uint8, 128": (replace(PLAIN, zero_point=("uint8", 128)), "Non-zero zero point", "uint8", ""),
    "uint8, 0": (
        replace(PLAIN, zero_point=("uint8", 0)),
        "int8",
        "zero point is uint8",
        "it reads the pair as INT8, and what is above 127 is cut off",
    ),
    "zero point left out": (
        replace(PLAIN, zero_point=None),
        "int8",
        "zero point is not a constant",
        "ONNX takes uint8 for it, TensorRT int8",
    ),
    "int16": (replace(PLAIN, zero_point=("int16", 0), opset=21), "Failed to import", "opset 21", ""),
    "int32 bias": (replace(PLAIN, bias="int32"), "type Int32 but", "zero point is int32", ""),
    "uint8 weights": (replace(PLAIN, weight_type=np.uint8), "UINT8", "zero point is uint8", ""),
    "weights' zero point 1": (replace(PLAIN, weight_zero_point=1), "Non-zero zero point", "is not 0", ""),
    "types mixed": (replace(PLAIN, bias="float32"), "must be of same type", "not valid ONNX", ""),
    "scale 0": (replace(PLAIN, scale=0), "must all be positive", "scale is not positive", ""),
    "scale below 0": (replace(PLAIN, scale=-0.03), "must all be positive", "scale is not positive", ""),
    "scale infinite": (
        replace(PLAIN, scale=np.inf),
        "int8",
        "scale is not positive",
        "it asks whether a scale is positive, and not whether it is a number",
    ),
    "scale subnormal": (
        replace(PLAIN, scale=3e-5),
        "int8",
        "scale is not positive",
        "a subnormal scale has lost digits",
    ),
    "a scale a channel": (
        replace(PLAIN, scale_a_channel=True),
        "fp16",
        "activation has one scale",
        "it computes the convolution in FP16",
    ),
    "FP16 scale, opset 17": (
        replace(PLAIN, opset=17),
        "int8",
        "opset 17",
        "ONNX has FP16 scales from opset 19",
    ),
    "opset 21": (replace(PLAIN, opset=21), "int8", "opset 21", "TensorRT 10.3 reads opsets up to 19"),
    "one scale for all weights": (
        replace(PLAIN, weight="one scale"),
        "int8",
        "one scale for each index",
        "a scale a channel costs nothing and keeps more",
    ),
    "scales along the inputs": (
        replace(PLAIN, weight_axis=1),
        "fp16",
        "axis 0",
        "it computes the convolution in FP16",
    ),
    "pair on float weights": (
        replace(PLAIN, weight="pair"),
        "int8",
        "activation has one scale",
        "weights are stored as integers, rounded once for every runtime",
    ),
    "float weights": (
        replace(PLAIN, weight="float"),
        "fp16",
        "weight is not quantised",
        "it computes the convolution in FP16",
    ),
    "another domain": (
        replace(PLAIN, domain="com.microsoft"),
        "int8",
        "foreign domain",
        "OpenVINO and TensorRT's documentation know ONNX's own operators alone",
    ),
}


@pytest.fixture
def theirs(tmp_path: Path) -> Callable[[bytes], Preflight]:
    pytest.importorskip("tensorrt_rtx", minversion="1.7.1")

    def look(data: bytes) -> Preflight:
        path = tmp_path / "graph.onnx"
        path.write_bytes(data)
        return preflight(Artifact(path, sha256_bytes(data), "onnx/int8.tensorrt"), (1, 8, 32))

    return look


@pytest.mark.parametrize("name", ROWS)
def test_ours_refuses_it(name: str) -> None:
    recipe, _, ours, _ = ROWS[name]
    if not ours:
        check_qdq(graph_of(recipe), "tensorrt")
        return
    with pytest.raises(GraphRefused, match=re.escape(ours)):
        check_qdq(graph_of(recipe), "tensorrt")


@pytest.mark.parametrize("name", ROWS)
def test_tensorrt_for_rtx_says(name: str, theirs: Callable[[bytes], Preflight]) -> None:
    recipe, expected, _, _ = ROWS[name]
    found = theirs(graph_of(recipe))
    if expected in ("int8", "fp16"):
        assert found.layers is not None, found.reasons
        assert found.layers.by_type == {expected: 1}
    else:
        assert found.layers is None
        assert expected in " ".join(found.reasons)


def test_ours_is_as_strict_and_says_why_it_is_stricter() -> None:
    for name, (_, expected, ours, why) in ROWS.items():
        accepted = expected in ("int8", "fp16")
        assert ours or expected == "int8", name
        assert bool(why) == (accepted and bool(ours)), name
