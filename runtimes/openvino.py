"""OpenVINO on the CPU: the engine is an IR, an .xml and a .bin."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from resedge.artifacts import Artifact, Engine, sha256_file
from resedge.errors import MachineFailure
from resedge.files import disk_errors
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

_KINDS = {"fp32": "onnx/fp32", "fp16": "onnx/fp32", "int8": "onnx/int8.cpu"}
_DEVICE = "CPU"
_TELEMETRY: Final = "openvino_telemetry"


class OpenVino:
    """Intel's OpenVINO with its CPU plugin."""

    name = "openvino"

    def probe(self) -> Probe:
        """Say which OpenVINO is here, on which CPU, and what it computes in.

        Raises:
            RuntimeUnavailable: It is not installed.
        """
        library = _library()
        core = library.Core()
        integers = "INT8" in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        return Probe(
            self.name,
            library.__version__,
            core.get_property(_DEVICE, "FULL_DEVICE_NAME"),
            {
                "fp32": "FP32 weights, computed in FP32",
                "fp16": "FP16 weights, computed in FP32",
                "int8": f"INT8 weights, computed in {'INT8' if integers else 'FP32'}",
            },
        )

    def build(self, model: Artifact, out: Path, options: BuildOptions) -> Engine:
        """Write `openvino-PRECISION.xml` and `.bin` into `out`; equal graphs give equal bytes.

        Args:
            model: "onnx/fp32" for fp32 and fp16, "onnx/int8.cpu" for int8.
            out: An existing folder.
            options: The precision. fp16 stores the weights in FP16; it is computed in FP32 all the same.

        Raises:
            RuntimeUnavailable: OpenVINO is not installed, or does not build the precision.
            BuildFailed: `model` is not the graph for this precision, or OpenVINO refuses it.
            StaleArtifact: The model's file has changed.
            MachineFailure: The disk is full or failing.
            InputRefused: `out` is not there or may not be written to.
        """
        demand_kind(self.name, model, options.precision, _KINDS)
        library = _library()
        with refusals(self.name, model.path, RuntimeError):
            graph = library.Core().read_model(model.read(), b"")
        _name_operations(graph)
        xml = out / f"{self.name}-{options.precision}.xml"
        weights = xml.with_suffix(".bin")
        _save(library, graph, xml, compress=options.precision == "fp16")
        return Engine(
            Artifact(
                xml.absolute(),
                sha256_file(xml),
                "openvino/xml",
                model.inputs,
                model.outputs,
                parents=(model.sha256,),
            ),
            self.name,
            library.__version__,
            _DEVICE,
            options.precision,
            (Artifact(weights.absolute(), sha256_file(weights), "openvino/bin"),),
        )

    @contextmanager
    def open(self, engine: Engine, options: RunOptions) -> Iterator[Runner]:
        """Compile the engine from its two files' bytes, checked as they are read.

        Raises:
            StaleArtifact: A file is not the one that was built.
            RuntimeUnavailable: OpenVINO is not installed.
            BuildFailed: OpenVINO refuses the files, or fails in a call of the runner.
        """
        check_options(options)
        spec = input_spec(engine.artifact, options)
        library = _library()
        compiled = _compiled(library, engine, options)
        with refusals(self.name, engine.artifact.path, RuntimeError):
            request = compiled.create_infer_request()
        shared = np.empty(0, spec.dtype)

        def infer(batch: Array) -> Float32Array:
            nonlocal shared
            # One request and one input tensor for all calls: a compiled model that is called with an array
            # makes both anew each time, 0.08 ms of a small model's 0.33.
            try:
                if shared.shape != batch.shape:
                    shared = np.empty_like(batch)
                    request.set_input_tensor(library.Tensor(shared, shared_memory=True))
                np.copyto(shared, batch)
                request.infer()
                logits: Float32Array = request.get_output_tensor().data.copy()
            except RuntimeError as error:
                raise run_failure(self.name, engine.artifact.path, error) from error
            return logits

        with runner(spec, infer) as run:
            yield run

    @contextmanager
    def watch(self, engine: Engine, tensors: Sequence[str], options: RunOptions) -> Iterator[Watched]:
        """Compile the engine as `open` does, with tensors as further outputs; the files stay.

        Raises:
            StaleArtifact: A file is not the one that was built.
            RuntimeUnavailable: OpenVINO is not installed.
            BuildFailed: OpenVINO refuses the files or a tensor's name, or fails in a call.
        """
        check_options(options)
        spec = input_spec(engine.artifact, options)
        compiled = _compiled(_library(), engine, options, tensors)
        with refusals(self.name, engine.artifact.path, RuntimeError):
            request = compiled.create_infer_request()

        def infer(batch: Array) -> tuple[Float32Array, Mapping[str, Array]]:
            try:
                request.infer([batch])
                logits, *rest = [request.get_output_tensor(i).data.copy() for i in range(1 + len(tensors))]
            except RuntimeError as error:
                raise run_failure(self.name, engine.artifact.path, error) from error
            return logits, dict(zip(tensors, rest, strict=True))

        with runner(spec, infer) as run:
            yield run


def _compiled(library: Any, engine: Engine, options: RunOptions, tensors: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """Return the CompiledModel of an engine's checked bytes, `tensors` given out behind the logits.

    Its batch is fixed where `options` fix it.
    """
    (weights,) = engine.companions
    core = library.Core()
    # The tensor copies: the compiled model goes on reading weights when this function has returned.
    stored = library.Tensor(np.frombuffer(weights.read(), np.uint8))
    with refusals(OpenVino.name, engine.artifact.path, RuntimeError):
        graph = core.read_model(engine.artifact.read(), stored)
        if options.batch is not None:
            graph.reshape([options.batch, *list(graph.input().get_partial_shape())[1:]])
        if tensors:
            graph.add_outputs(list(tensors))
        return core.compile_model(graph, _DEVICE, _settings(options))


def _settings(options: RunOptions) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        # Pinned threads stay on cores that a neighbour has taken, and were slower on a small model.
        "ENABLE_CPU_PINNING": False,
        # The default is the fastest that the CPU has, which is BF16 on some.
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _name_operations(graph: Any) -> None:  # noqa: ANN401
    """Name by their place what OpenVINO has named by a counter of the whole process.

    Its ONNX reader makes operations of its own (shapes, constants) without names; what it then calls them
    depends on how many were ever made before, and so would the bytes of the file.
    """
    for place, operation in enumerate(graph.get_ordered_ops()):
        if operation.get_friendly_name() == operation.get_name():
            operation.set_friendly_name(f"{operation.get_type_name()}#{place}")


def _save(library: Any, graph: Any, xml: Path, *, compress: bool) -> None:  # noqa: ANN401
    """Write the .xml and the .bin beside it, aside first, so that neither is ever there in part."""
    with disk_errors(xml), tempfile.TemporaryDirectory(dir=xml.parent, prefix=".openvino-") as aside:
        written = Path(aside, xml.name)
        try:
            library.save_model(graph, str(written), compress_to_fp16=compress)
        except RuntimeError as error:  # OpenVINO says of a full disk no more than "iostream error"
            raise MachineFailure(
                f"cannot be written ({error}).",
                where=str(xml),
                cure="See that its disk has space and run the same command again.",
            ) from error
        for part in (written.with_suffix(".bin"), written):
            part.replace(xml.parent / part.name)


def _library() -> Any:  # noqa: ANN401 - openvino
    """Return the openvino module, imported without its telemetry.

    Importing it sends an event to an analytics service and leaves an identifier in the home folder. It does
    neither where the package openvino_telemetry is missing, so that one is hidden while it is imported.
    """
    hidden = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the import system's "not there"
    try:
        return imported(OpenVino.name, "openvino", "Try: pip install 'resedge[openvino]'")
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
