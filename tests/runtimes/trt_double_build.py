"""The builder's side of `trt_double.py`, which runs this file: network, parser, configuration, plan.

A plan of the double is a header as TensorRT writes it, what the runtime's side must know as JSON, and the
graph.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import onnx

_LAYER_TYPES = {
    "Conv": "CONVOLUTION",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Relu": "ACTIVATION",
    "Cast": "CAST",
    "MaxPool": "POOLING",
    "Add": "ELEMENTWISE",
    "GlobalAveragePool": "REDUCE",
    "Flatten": "SHUFFLE",
    "Gemm": "MATRIX_MULTIPLY",
}


class _Builder:
    _trt: Any

    def __init__(self, logger: Any) -> None:  # noqa: ANN401
        assert isinstance(logger, self._trt.ILogger)
        assert logger._ready
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:  # noqa: ANN401
        known = [int(flag) for flag in self._trt.NetworkDefinitionCreationFlag]
        assert flags < 1 << (max(known) + 1), "a flag that this version does not have"
        self._trt.world.flags = flags
        network = self._trt.INetworkDefinition()
        network._typed = self._trt.__version__[:3] != "10." or bool(
            flags >> int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1
        )
        return network

    def create_builder_config(self) -> Any:  # noqa: ANN401
        return self._trt.IBuilderConfig()

    def create_optimization_profile(self) -> Any:  # noqa: ANN401
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:  # noqa: ANN401
        world = self._trt.world
        refusal = world.refuse.get("build_serialized_network")
        if not network._typed:
            refusal = "Error Code 4: API Usage Error (a weakly typed network)"
        elif network._layers == []:
            refusal = "Error Code 4: API Usage Error (Network must have at least one output.)"
        elif not config._profiles:
            refusal = (
                "Error Code 4: Internal Error (Network has dynamic or shape inputs, but no optimization "
                "profile has been defined.)"
            )
        if refusal:
            self._trt.say(self, "ERROR", f"IBuilder::buildSerializedNetwork: {refusal}")
            return None
        if not self._tell(config.__dict__.get("progress_monitor")):
            return None
        world.limits = dict(config._limits)
        world.settings = {**config.__dict__, "max_threads": self.__dict__.get("max_threads")}
        if config._cache is not None:
            config._cache._data += b"|tactics"
        self._trt.say(self, "WARNING", "a warning of the build")
        memory = self._trt.IHostMemory()
        memory._data = _plan_bytes(self._trt, network, config)
        return memory

    @staticmethod
    def _tell(monitor: Any) -> bool:  # noqa: ANN401
        if monitor is None:
            return True
        assert monitor._ready
        monitor.phase_start("Building engine", None, 3)
        monitor.phase_start("Tactics", "Building engine", 5)
        monitor.step_complete("Tactics", 0)
        monitor.phase_finish("Tactics")
        for step in range(3):
            if not monitor.step_complete("Building engine", step):
                return False
        monitor.phase_finish("Building engine")
        return True


def _plan_bytes(trt: Any, network: Any, config: Any) -> bytes:  # noqa: ANN401
    numbers = [int(part) for part in trt.__version__.split(".")]
    tag = b"vtrt" if trt.__name__ == "tensorrt_rtx" else b"ftrt"
    header = tag + struct.pack("<I16x", 0) + bytes([*numbers, 26][:4])
    described = {
        "profile": config._profiles[0]._shapes,
        "detailed": config.profiling_verbosity.name == "DETAILED",
        "convolutions": [
            (layer.name, layer._inputs[0] in network._dequantized, layer.metadata)
            for layer in network._layers
            if layer.type.name == "CONVOLUTION"
        ],
    }
    text = json.dumps(described).encode()
    graph: bytes = network._graph
    return header + struct.pack("<I", len(text)) + text + graph


class _IHostMemory:
    _data: bytes

    @property
    def nbytes(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data


class _ITensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


class _ILayer:
    _trt: Any

    def __init__(self, node: Any) -> None:  # noqa: ANN401
        self.name = node.name
        self.type = self._trt.LayerType[_LAYER_TYPES[node.op_type]]
        self.metadata = f"[ONNX Layer: {node.name}]"
        self._inputs, self._outputs = list(node.input), list(node.output)

    def get_input(self, index: int) -> Any:  # noqa: ANN401
        return self._trt.ITensor(self._inputs[index], (-1,))

    def get_output(self, index: int) -> Any:  # noqa: ANN401
        return self._trt.ITensor(self._outputs[index], (-1,))


class _INetworkDefinition:
    _typed: bool

    def __init__(self) -> None:
        self._layers: list[Any] = []
        self._inputs: list[Any] = []
        self._graph = b""

    @property
    def _dequantized(self) -> set[str]:
        return {layer._outputs[0] for layer in self._layers if layer.type.name == "DEQUANTIZE"}

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> Any:  # noqa: ANN401
        return self._layers[index]

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> Any:  # noqa: ANN401
        return self._inputs[index]


class _ParserError:
    def __init__(self, code: Any, node: Any, desc: str) -> None:  # noqa: ANN401
        self._code, self._node, self._desc = code, node, desc

    def code(self) -> Any:  # noqa: ANN401
        return self._code

    def desc(self) -> str:
        return self._desc

    def node_name(self) -> str:
        return "" if self._node is None else str(self._node.name)

    def node_operator(self) -> str:
        return "" if self._node is None else str(self._node.op_type)


class _OnnxParser:
    _trt: Any

    def __init__(self, network: Any, logger: Any) -> None:  # noqa: ANN401
        self._network, self._logger = network, logger
        self._errors: list[Any] = []

    def parse(self, data: bytes) -> bool:
        try:
            model = onnx.load_from_string(data)
        except Exception:  # noqa: BLE001 - protobuf's own, of whichever backend
            self._fail("MODEL_DESERIALIZE_FAILED", None, "Failed to parse the ONNX model.")
            return False
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type not in _LAYER_TYPES:
                self._fail("UNSUPPORTED_NODE", node, f"No importer registered for op: {node.op_type}")
            elif node.op_type == "QuantizeLinear" and constants[node.input[2]].any():
                self._fail(
                    "INVALID_NODE", node, "Assertion failed: shiftIsAllZeros(zeroPoint)\nnot supported"
                )
            else:
                self._network._layers.append(self._trt.ILayer(node))
        (given,) = model.graph.input
        sizes = tuple(
            d.dim_value if d.HasField("dim_value") else -1 for d in given.type.tensor_type.shape.dim
        )
        self._network._inputs.append(self._trt.ITensor(given.name, sizes))
        self._network._graph = data
        return not self._errors

    def _fail(self, code: str, node: Any, desc: str) -> None:  # noqa: ANN401
        self._errors.append(self._trt.ParserError(self._trt.ErrorCode[code], node, desc))

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:  # noqa: ANN401
        return self._errors[index]


class _IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: list[list[int]] = []

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:  # noqa: ANN401
        self._shapes = [list(low), list(best), list(high)]


class _IBuilderConfig:
    num_compute_capabilities = 0
    _trt: Any

    def __init__(self) -> None:
        self._profiles: list[Any] = []
        self._limits: dict[str, int] = {}
        self._cache: Any = None
        self._cleared: list[str] = []
        self._capabilities: list[str] = []
        self.profiling_verbosity = self._trt.ProfilingVerbosity.LAYER_NAMES_ONLY

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:  # noqa: ANN401
        assert isinstance(pool, self._trt.MemoryPoolType)
        self._limits[pool.name] = size

    def clear_flag(self, flag: Any) -> None:  # noqa: ANN401
        assert isinstance(flag, self._trt.BuilderFlag)
        self._cleared.append(flag.name)

    def add_optimization_profile(self, profile: Any) -> int:  # noqa: ANN401
        if not profile._shapes[0][0] <= profile._shapes[1][0] <= profile._shapes[2][0]:
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:  # noqa: ANN401
        cache = self._trt.ITimingCache()
        cache._data = data
        return cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:  # noqa: ANN401
        assert not ignore_mismatch
        if cache._data and not cache._data.startswith(b"|tactics"):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:  # noqa: ANN401
        return self._cache

    def set_compute_capability(self, capability: Any, index: int) -> bool:  # noqa: ANN401
        self._capabilities.append(capability.name)
        return index == 0


class _ITimingCache:
    _data: bytes
    _trt: Any

    def serialize(self) -> Any:  # noqa: ANN401
        memory = self._trt.IHostMemory()
        memory._data = self._data
        return memory


BEHAVIOURS: dict[str, type] = {
    "Builder": _Builder,
    "IHostMemory": _IHostMemory,
    "ITensor": _ITensor,
    "ILayer": _ILayer,
    "INetworkDefinition": _INetworkDefinition,
    "ParserError": _ParserError,
    "OnnxParser": _OnnxParser,
    "IOptimizationProfile": _IOptimizationProfile,
    "IBuilderConfig": _IBuilderConfig,
    "ITimingCache": _ITimingCache,
}
