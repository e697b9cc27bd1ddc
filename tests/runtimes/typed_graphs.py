"""Two convolutions, pooling and a linear layer as TensorRT wants them: every tensor of a stated type.

`graph` returns "fp16"; "int8" with Q/DQ pairs in FP16 surroundings; and two that TensorRT refuses:
"fp16.mixed", whose second convolution has float32 weights, and "int8.shifted", with a zero point that is
not 0. `tests/runtimes/conftest.py` runs this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CHANNELS = ((3, 16), (16, 16))
CLASSES = 6


class Writer:
    """Collects nodes, each with the module that it is from, and constants."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, value: Any) -> str:  # noqa: ANN401 - what numpy takes
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, module: str, **attributes: Any) -> str:  # noqa: ANN401
        node = helper.make_node(kind, inputs, [output], name=f"{output}.node", **attributes)
        entry = node.metadata_props.add()
        entry.key, entry.value = "resedge.module", module
        self.nodes.append(node)
        return output

    def pair(self, x: str, name: str, module: str, zero_point: int) -> str:
        """Quantise a tensor and back."""
        scale = self.constant(f"{name}.scale", np.float16(0.03))
        zero = self.constant(f"{name}.zero", np.int8(zero_point))
        quantised = self.node("QuantizeLinear", [x, scale, zero], f"{name}.q", module)
        return self.node("DequantizeLinear", [quantised, scale, zero], f"{name}.dq", module)

    def int8_weight(self, weight: Any, name: str, module: str) -> str:  # noqa: ANN401 - float64 array
        scale = np.abs(weight).max((1, 2, 3)) / 127
        integers = np.clip(np.round(weight / scale[:, None, None, None]), -127, 127).astype(np.int8)
        inputs = [
            self.constant(f"{name}.q", integers),
            self.constant(f"{name}.scale", scale.astype(np.float16)),
            self.constant(f"{name}.zero", np.zeros(len(scale), np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}.dq", module, axis=0)


def graph(name: str) -> ModelProto:
    precision, _, fault = name.partition(".")
    rng, write = np.random.default_rng(0), Writer()
    x = write.node("Cast", ["input"], "input.half", "", to=TensorProto.FLOAT16)
    for index, (inputs, outputs) in enumerate(CHANNELS):
        module, last = f"layer.{index}.conv", index == len(CHANNELS) - 1
        weight = rng.standard_normal((outputs, inputs, 3, 3)) * 0.2
        bias = write.constant(f"{index}.bias", (rng.standard_normal(outputs) * 0.1).astype(np.float16))
        if precision == "int8":
            x = write.pair(x, f"{index}.in", module, 5 if fault == "shifted" and last else 0)
            weights = write.int8_weight(weight, f"{index}.weight", module)
        else:
            dtype = np.float32 if fault == "mixed" and last else np.float16
            weights = write.constant(f"{index}.weight", weight.astype(dtype))
        x = write.node("Conv", [x, weights, bias], f"{index}.out", module, pads=[1] * 4, kernel_shape=[3, 3])
        x = write.node("Relu", [x], f"{index}.relu", f"layer.{index}.relu")
    x = write.node("Flatten", [write.node("GlobalAveragePool", [x], "pool", "pool")], "flat", "")
    linear = (rng.standard_normal((CLASSES, CHANNELS[-1][1])) * 0.5).astype(np.float16)
    constants = [
        write.constant("fc.weight", linear),
        write.constant("fc.bias", np.zeros(CLASSES, np.float16)),
    ]
    x = write.node("Gemm", [x, *constants], "fc.out", "fc", transB=1)
    write.node("Cast", [x], "logits", "", to=TensorProto.FLOAT)
    border = (
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
    )
    made = helper.make_graph(write.nodes, "typed", *border, write.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
