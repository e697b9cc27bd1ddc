"""A double of the tensorrt module, in any version that there is a snapshot of.

Every name comes from the snapshot: one that the real version lacks is an AttributeError, and one that it has
and the double does not know is a NotImplementedError. The network, the parser, the builder and the runtime
behave as documented, failures included: they return False or None and log why. A plan computes through ONNX
Runtime, on the memory of the double of CUDA. What kernels a GPU would choose the double cannot know: the
layers that its inspector lists are told to it. `tests/runtimes/conftest.py` runs this file.
"""

from __future__ import annotations

import enum
import importlib
import json
import runpy
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

onnxruntime: Any = importlib.import_module("onnxruntime")

DATA = Path(__file__).with_name("data")
SNAPSHOTS = tuple(sorted(path.stem for path in DATA.glob("tensorrt*.json")))

_TYPE_NAMES = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.UINT8: "UINT8",
}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32}


@dataclass
class World:
    """What a test sets and looks at.

    `wide` are convolutions that come out in FP16 whatever the graph says; `refuse` maps a call to what it
    logs when it fails; `flags` are those of the last network, `limits` the last build's memory limits.
    """

    gpu: Any
    wide: frozenset[str] = frozenset()
    refuse: dict[str, str] = field(default_factory=dict)
    flags: int = 0
    limits: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


def tensorrt_module(snapshot: str, world: World) -> ModuleType:
    """Return the module of that snapshot, such as "tensorrt-10.3.0"."""
    known = json.loads((DATA / f"{snapshot}.json").read_text())
    module = ModuleType(snapshot.partition("-")[0])
    module.__version__ = known["version"]  # type: ignore[attr-defined]
    # The doubles' own, which no code may look at.
    module.world, module.say = world, _say  # type: ignore[attr-defined]
    for name, described in known["api"].items():
        if described is None:
            continue
        if "enum" in described:
            setattr(module, name, _Member(name, described["enum"]))  # type: ignore[call-arg]
        else:
            behaviour = _BEHAVIOURS.get(name, _Unknown)
            setattr(module, name, _restricted(name, behaviour, described["class"], module))
    module.nptype = lambda dtype: _NUMPY[dtype.name]  # type: ignore[attr-defined]
    return module


class _Member(enum.Enum):
    """A member of an enum: not equal to a number, and one only when asked."""

    def __int__(self) -> int:
        return int(self.value)


def _restricted(name: str, behaviour: type, names: list[str], module: ModuleType) -> type:
    """Return a class that has those names alone, as far as the double knows what they do."""
    known = frozenset(names)

    def get(self: Any, attribute: str) -> Any:  # noqa: ANN401
        if not attribute.startswith("_") and type(self) is made:
            if attribute not in known:
                raise AttributeError(f"'{name}' object has no attribute '{attribute}'")
            try:
                return object.__getattribute__(self, attribute)
            except AttributeError:
                raise NotImplementedError(f"the double does not know {name}.{attribute}") from None
        return object.__getattribute__(self, attribute)

    def put(self: Any, attribute: str, value: object) -> None:  # noqa: ANN401
        if not attribute.startswith("_") and type(self) is made and attribute not in known:
            raise AttributeError(f"'{name}' object has no attribute '{attribute}'")
        object.__setattr__(self, attribute, value)

    made = type(name, (behaviour,), {"__getattribute__": get, "__setattr__": put, "_trt": module})
    return made


class _Unknown:
    pass


class _ILogger:
    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: object, message: str) -> None:
        raise NotImplementedError


class _IProgressMonitor:
    def __init__(self) -> None:
        self._ready = True


def _say(owner: Any, severity: str, message: str) -> None:  # noqa: ANN401
    owner._logger.log(getattr(owner._trt.ILogger.Severity, severity), message)


class _Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


_ILogger.Severity = _Severity  # type: ignore[attr-defined]


class _Runtime:
    _trt: Any

    def __init__(self, logger: Any) -> None:  # noqa: ANN401
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> Any:  # noqa: ANN401
        assert self.engine_host_code_allowed is False
        numbers = bytes(([int(part) for part in self._trt.__version__.split(".")] + [26])[:4])
        if plan[:4] not in (b"ftrt", b"vtrt") or plan[24:28] != numbers:
            _say(self, "ERROR", "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Version tag)")
            return None
        (length,) = struct.unpack("<I", plan[28:32])
        engine = self._trt.ICudaEngine()
        engine._described = json.loads(plan[32 : 32 + length])
        engine._model = onnx.load_from_string(plan[32 + length :])
        engine._logger = self._logger
        return engine


class _ICudaEngine:
    _trt: Any
    _described: dict[str, Any]
    _model: Any
    _logger: Any

    @property
    def _tensors(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in (*self._model.graph.input, *self._model.graph.output)}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:  # noqa: ANN401
        mode = self._trt.TensorIOMode
        return mode.INPUT if name == self._model.graph.input[0].name else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:  # noqa: ANN401
        return self._trt.DataType[_TYPE_NAMES[self._tensors[name].type.tensor_type.elem_type]]

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:  # noqa: ANN401
        assert (name, profile) == (self._model.graph.input[0].name, 0), "of inputs alone"
        return [tuple(shape) for shape in self._described["profile"]]

    def create_execution_context(self) -> Any:  # noqa: ANN401
        if refusal := self._trt.world.refuse.get("create_execution_context"):
            _say(self, "ERROR", refusal)
            return None
        context = self._trt.IExecutionContext()
        context._logger = self._logger
        context._engine = self
        context._session = onnxruntime.InferenceSession(
            self._model.SerializeToString(),
            _session_options(),
            providers=["CPUExecutionProvider"],
        )
        return context

    def create_engine_inspector(self) -> Any:  # noqa: ANN401
        inspector = self._trt.EngineInspector()
        inspector._engine = self
        return inspector


def _session_options() -> Any:  # noqa: ANN401
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # ONNX Runtime rewrites a Q/DQ graph with FP16 scales into one that computes something else.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


class _EngineInspector:
    _trt: Any
    _engine: Any

    def get_engine_information(self, layer_format: Any) -> str:  # noqa: ANN401
        assert layer_format == self._trt.LayerInformationFormat.JSON
        described = self._engine._described
        if not described["detailed"]:
            return json.dumps({"Layers": [name for name, _, _ in described["convolutions"]], "Bindings": []})
        world, split = self._trt.world, int(self._trt.__version__.split(".")[0]) != 10

        def tensor(kind: str) -> dict[str, Any]:
            words = {"INT8": "Thirty-two wide channel vectorized row major Int8 format"}.get(
                kind, "Channel major FP16 format where channel % 8 == 0"
            )
            short = {"INT8": "Int8"}.get(kind, "Half")
            return (
                {"Name": "t", "DataType": short, "Format": words}
                if split
                else {"Name": "t", "Format/Datatype": words}
            )

        rows = [
            {
                "Name": f"{name} + a ReLU",
                "LayerType": "CaskConvolution",
                "Inputs": [tensor("INT8" if quantized and name not in world.wide else "HALF")],
                "Outputs": [tensor("HALF")],
                "Metadata": metadata,
            }
            for name, quantized, metadata in described["convolutions"]
        ]
        reformat = {
            "Name": "Reformatting CopyNode for Input Tensor 0",
            "LayerType": "Reformat",
            "Inputs": [tensor("HALF")],
            "Outputs": [tensor("INT8")],
        }
        border = "I/O Tensors" if split else "Bindings"
        return json.dumps({"Layers": [reformat, *rows], border: []})


class _IExecutionContext:
    _trt: Any
    _engine: Any
    _logger: Any
    _session: Any

    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None
        self._settled: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}

    @property
    def engine(self) -> Any:  # noqa: ANN401
        return self._engine

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine._described["profile"]
        if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            _say(self, "ERROR", "IExecutionContext::setInputShape: Error Code 3: API Usage Error (profile)")
            return False
        self._shape = tuple(shape)
        self._trt.world.shapes.append(self._shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [] if self._shape else ["input"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shape is not None
        (result,) = self._engine._model.graph.output
        assert name == result.name
        return (self._shape[0], *(d.dim_value for d in result.type.tensor_type.shape.dim[1:]))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert type(address) is int
        self._addresses[name] = address
        return name in self._engine._tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu, refusal = self._trt.world.gpu, self._trt.world.refuse.get("execute_async_v3")
        stream = gpu.stream(stream_handle)
        if set(self._addresses) != set(self._engine._tensors):
            refusal = "IExecutionContext::enqueueV3: Error Code 3: API Usage Error (address is not set)"
        elif stream.capturing is not None and self._settled != self._shape:
            refusal = (
                "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (a change of shape in a capture)"
            )
        if refusal:
            _say(self, "ERROR", refusal)
            return False
        self._settled = self._shape
        stream.give(self._step(gpu))
        return True

    def _step(self, gpu: Any) -> Callable[[], None]:  # noqa: ANN401
        shape = self._shape
        assert shape is not None
        ((given, source), (result, target)) = sorted(
            self._addresses.items(), key=lambda item: item[0] != self._engine._model.graph.input[0].name
        )

        def compute() -> None:
            gpu.clock += 2.0
            size = int(np.prod(shape)) * 4
            images = gpu.memory(source, size).view(np.float32).reshape(shape)
            (logits,) = self._session.run([result], {given: images})
            gpu.memory(target, logits.nbytes)[:] = np.ascontiguousarray(logits).view(np.uint8).ravel()

        return compute


_BEHAVIOURS: dict[str, type] = {
    **runpy.run_path(str(Path(__file__).with_name("trt_double_build.py")))["BEHAVIOURS"],
    "ILogger": _ILogger,
    "IProgressMonitor": _IProgressMonitor,
    "Runtime": _Runtime,
    "ICudaEngine": _ICudaEngine,
    "EngineInspector": _EngineInspector,
    "IExecutionContext": _IExecutionContext,
}
