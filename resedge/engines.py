"""The engines that there can be: their names, and the graph of a bundle that each is made from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

EngineName = tuple[str, str]  # (runtime, precision)

# Every engine that an export makes or prepares, and the graph of the bundle that it is made from.
GRAPHS: Final[Mapping[EngineName, str]] = MappingProxyType(
    {
        ("openvino", "fp32"): "onnx/fp32.onnx",
        ("openvino", "fp16"): "onnx/fp32.onnx",
        ("openvino", "int8"): "onnx/int8.cpu.onnx",
        ("onnxruntime", "fp32"): "onnx/fp32.onnx",
        ("onnxruntime", "int8"): "onnx/int8.cpu.onnx",
        ("tensorrt", "fp16"): "onnx/fp16.onnx",
        ("tensorrt", "int8"): "onnx/int8.tensorrt.onnx",
        ("tensorrt_rtx", "fp16"): "onnx/fp16.onnx",
        ("tensorrt_rtx", "int8"): "onnx/int8.tensorrt.onnx",
    }
)
# Their engines run on the machine that built them alone: no export makes them.
BUILT_ON_DEVICE: Final = ("tensorrt", "tensorrt_rtx")
