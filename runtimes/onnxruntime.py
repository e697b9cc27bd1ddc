"""ONNX Runtime on the CPU: the engine is the ONNX file itself, known by its digest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resedge.artifacts import Artifact, Engine
from resedge.errors import RuntimeUnavailable
from resedge.protocols import Array, BuildOptions, Float32Array, Probe, Runner, RunOptions, Watched
from resedge.runtimes.border import (
    check_options,
    demand_kind,
    imported,
    input_spec,
    refusals,
    run_failure,
    runner,
)

_KINDS = {"fp32": "onnx/fp32", "int8": "onnx/int8.cpu"}
_COMPUTED = {
    "fp32": "FP32 weights, computed in FP32",
    "int8": "INT8 weights and activations, computed in INT8",
}
_PROVIDER = "CPUExecutionProvider"
_ERRORS_ONLY = 3
_GRAPH_OF_MODEL, _OUTPUT_OF_GRAPH, _NAME_OF_VALUE = 7, 12, 1  # field numbers of onnx.proto


class OnnxRuntime:
    """Microsoft's ONNX Runtime with its CPU provider and no other."""

    name = "onnxruntime"

    def probe(self) -> Probe:
        """Say which ONNX Runtime is here.

        Raises:
            RuntimeUnavailable: It is not installed.
        """
        return Probe(self.name, _library().__version__, "CPU", dict(_COMPUTED))

    def build(self, model: Artifact, out: Path, options: BuildOptions) -> Engine:
        """Return the engine that the ONNX file is, once ONNX Runtime has accepted it; nothing is written.

        Args:
            model: "onnx/fp32" for fp32, "onnx/int8.cpu" for int8.
            out: Not used.
            options: The precision.

        Raises:
            RuntimeUnavailable: ONNX Runtime is not installed, or does not build the precision.
            BuildFailed: `model` is not the graph for this precision, or ONNX Runtime refuses it.
            StaleArtifact: The file has changed.
        """
        if options.precision == "fp16":
            raise RuntimeUnavailable(
                "runtime 'onnxruntime' does not build fp16: its CPU provider computes an FP16 graph "
                "in FP32 with casts around every step, so there is nothing to gain.",
                cure="Ask for fp32 or int8 here, or for openvino:fp16.",
            )
        demand_kind(self.name, model, options.precision, _KINDS)
        library = _library()
        _session(library, model, RunOptions(threads=1))
        return Engine(model, self.name, library.__version__, "CPU", options.precision)

    @contextmanager
    def open(self, engine: Engine, options: RunOptions) -> Iterator[Runner]:
        """Make a session from the engine's bytes, checked as they are read.

        Raises:
            StaleArtifact: The file is not the one that was built.
            RuntimeUnavailable: ONNX Runtime is not installed.
            BuildFailed: ONNX Runtime refuses the file, or fails in a call of the runner.
        """
        check_options(options)
        spec = input_spec(engine.artifact, options)
        library = _library()
        session = _session(library, engine.artifact, options)
        errors = _errors_of(library)
        (output,) = [tensor.name for tensor in session.get_outputs()]

        def infer(batch: Array) -> Float32Array:
            try:
                logits: Float32Array = session.run([output], {spec.name: batch})[0]
            except errors as error:
                raise run_failure(self.name, engine.artifact.path, error) from error
            return logits

        with runner(spec, infer) as run:
            yield run

    @contextmanager
    def watch(self, engine: Engine, tensors: Sequence[str], options: RunOptions) -> Iterator[Watched]:
        """Make a session as `open` does, of the engine with tensors as further outputs; the file stays.

        Raises:
            StaleArtifact: The file is not the one that was built.
            RuntimeUnavailable: ONNX Runtime is not installed.
            BuildFailed: ONNX Runtime refuses the file or a tensor's name, or fails in a call.
        """
        check_options(options)
        spec = input_spec(engine.artifact, options)
        library = _library()
        session = _session(library, engine.artifact, options, tensors)
        errors = _errors_of(library)
        (output,) = {tensor.name for tensor in session.get_outputs()} - set(tensors)

        def infer(batch: Array) -> tuple[Float32Array, Mapping[str, Array]]:
            try:
                logits, *rest = session.run([output, *tensors], {spec.name: batch})
            except errors as error:
                raise run_failure(self.name, engine.artifact.path, error) from error
            return logits, dict(zip(tensors, rest, strict=True))

        with runner(spec, infer) as run:
            yield run


def _session(library: Any, model: Artifact, options: RunOptions, tensors: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """Return an InferenceSession over the artifact's checked bytes, `tensors` given out beside its outputs.

    The session keeps the bytes alive.
    """
    settings = library.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = _ERRORS_ONLY
    # Within a call waiting threads spin, which keeps p50 low; between calls they would go on doing so and
    # slow down whatever is measured next.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    with refusals(OnnxRuntime.name, model.path, *_errors_of(library)):
        data = model.read() + _further_outputs(tensors)
        return library.InferenceSession(data, settings, providers=[_PROVIDER])


def _further_outputs(tensors: Sequence[str]) -> bytes:
    """Return what to append to an ONNX file's bytes for its graph to give out `tensors`, too.

    Messages of Protocol Buffers that stand one after the other are read as one: repeated fields, such as a
    graph's outputs, are concatenated. So this needs no parser, and not a byte of the engine changes.
    """
    outputs = [_field(_OUTPUT_OF_GRAPH, _field(_NAME_OF_VALUE, name.encode())) for name in tensors]
    return _field(_GRAPH_OF_MODEL, b"".join(outputs)) if outputs else b""


def _field(number: int, content: bytes) -> bytes:
    """Return a field of a message of Protocol Buffers whose content is text or a message itself."""
    of_a_length = 2
    return _varint(number << 3 | of_a_length) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first, each but the last marked by its high bit."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _library() -> Any:  # noqa: ANN401 - onnxruntime
    # Official builds from 1.29 on report each session to their maker, unless this is set before the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return imported(OnnxRuntime.name, "onnxruntime", "Try: pip install 'resedge[onnxruntime]'")


def _errors_of(library: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401
    names = (
        "EPFail",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(library.capi.onnxruntime_pybind11_state, name) for name in names)
