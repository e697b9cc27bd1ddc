"""TensorRT: plans built on the device that runs them, from strongly typed graphs, all precision in the graph.

A plan is what TensorRT wrote and nothing else. What resedge knows of it is the record beside it, and both are
the engine. Before a plan is loaded its bytes are checked by digest, then that it was built for what is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from resedge import files
from resedge.artifacts import Artifact, Engine, TensorSpec, sha256_bytes
from resedge.errors import BuildFailed, MachineFailure, RuntimeUnavailable, StaleArtifact, UsageError
from resedge.protocols import Array, BuildOptions, Float32Array, Probe, Runner, RunOptions
from resedge.runtimes.border import (
    check_options,
    demand_kind,
    imported,
    input_spec,
    run_failure,
    runner,
)
from resedge.runtimes.cuda import Cuda, CudaError, Device, find_device, load_cuda
from resedge.runtimes.trt_build import BuildSettings, BuiltPlan, build_plan, parse_alone
from resedge.runtimes.trt_layers import inspect_engine, summarize
from resedge.runtimes.trt_log import OutOfMemory, TensorRTError
from resedge.runtimes.trt_memory import plan_memory
from resedge.runtimes.trt_plans import (
    REBUILD,
    RECORD_VERSION,
    PlanRecord,
    check_fit,
    engine_of,
    read_header,
    read_record,
    record_path,
)
from resedge.runtimes.trt_run import Execution, TimedCalls, load_engine, loaded

GRAPH_KINDS: Final = {"fp16": "onnx/fp16", "int8": "onnx/int8.tensorrt"}
_COMPUTED: Final = {
    "fp16": "FP16 weights, computed in FP16",
    "int8": "INT8 weights and activations, computed in INT8, FP16 between them",
}
_LEVELS: Final = range(6)
_WARM_CALLS: Final = 5


class TensorRT:
    """NVIDIA's TensorRT on the first GPU.

    Another library with the same interface is a subclass with its own `name`, `library` and `cure`, and a
    `target` where it has to be told the GPU.
    """

    name = "tensorrt"
    library: ClassVar[str] = "tensorrt"
    cure: ClassVar[str] = "It comes with JetPack on a Jetson; elsewhere try: pip install 'resedge[tensorrt]'"
    target: ClassVar[str | None] = None

    def probe(self) -> Probe:
        """Say which TensorRT is here and which GPU.

        Raises:
            RuntimeUnavailable: TensorRT or cuda-python is not installed or not loadable, or there is no GPU.
        """
        trt, _, device = self._here()
        return Probe(self.name, str(trt.__version__), device.name, dict(_COMPUTED))

    def build(self, model: Artifact, out: Path, options: BuildOptions) -> Engine:
        """Write `tensorrt-PRECISION.plan` and its record, `.json`, into `out`.

        Args:
            model: "onnx/fp16" for fp16, "onnx/int8.tensorrt" for int8.
            out: An existing folder.
            options: All of them count.

        Raises:
            RuntimeUnavailable: TensorRT, cuda-python or the GPU is not there, or does not build that.
            UsageError: The batch sizes or the optimisation level are impossible.
            BuildFailed: `model` is not the graph for this precision, or TensorRT refuses it; every reason
                is given by node and torch module.
            StaleArtifact: The model's file has changed.
            MachineFailure: There is too little memory, or the disk is full or failing.
            InputRefused: `out` is not there or may not be written to.
        """
        demand_kind(self.name, model, options.precision, GRAPH_KINDS)
        check_batch_range(options.batch_range)
        if options.optimization_level is not None and options.optimization_level not in _LEVELS:
            raise UsageError(f"the optimisation level {options.optimization_level} is not one of 0 to 5.")
        if options.dla:
            raise _no_dla(self.name)
        trt, cuda, device = self._here()
        graph = model.read()
        cache = _cache_file(options.timing_caches, self.name, str(trt.__version__), device)
        with self._failures(model.path):
            settings = BuildSettings(
                options.batch_range,
                plan_memory(
                    cuda.free_bytes(device), device.memory_bytes, len(graph), shared=device.integrated
                ),
                options.optimization_level,
                _read_cache(cache),
                self.target,
            )
            built = build_plan(trt, graph, settings, options.progress)
            record = self._record(trt, device, model, options.precision, settings, built)
        plan = out / f"{self.name}-{options.precision}.plan"
        if cache is not None and built.timing_cache is not None:
            files.write_bytes(cache, built.timing_cache)
        files.write_bytes(plan, built.data)
        files.write_bytes(record_path(plan), record.to_bytes())
        return engine_of(record, plan)

    def parse(self, graph: Artifact) -> None:
        """Have TensorRT's parser read a graph, and nothing more; it takes no GPU's time.

        Raises:
            RuntimeUnavailable: TensorRT is not there.
            BuildFailed: It refuses the graph.
            StaleArtifact: The file has changed.
        """
        trt, data = self._module(), graph.read()
        with self._failures(graph.path):
            parse_alone(trt, data)

    @contextmanager
    def open(self, engine: Engine, options: RunOptions) -> Iterator[Runner]:
        """Load a plan, its bytes checked, and that it was built for what is here.

        Raises:
            StaleArtifact: The plan or its record is not the file that was built.
            RuntimeUnavailable: TensorRT, cuda-python or the GPU is not there.
            BuildFailed: The plan was built for something else or for other batch sizes, TensorRT refuses it,
                or a call fails.
        """
        with self._opened(engine, options) as (execution, spec):

            def infer(batch: Array) -> Float32Array:
                try:
                    return execution.run(batch)
                except (TensorRTError, CudaError) as error:
                    raise run_failure(self.name, engine.artifact.path, error) from error

            with runner(spec, infer) as run:
                yield run

    def time(self, engine: Engine, options: RunOptions, batch: Array, calls: int) -> TimedCalls:
        """Time calls with one batch, host to device, GPU and device to host each by itself.

        Raises:
            ValueError: The batch's shape or dtype is not the engine's.
            ResedgeError: As `open`.
        """
        with self._opened(engine, options) as (execution, spec):
            with runner(spec, execution.run) as run:
                for _ in range(_WARM_CALLS):
                    run(batch)
            timed = tuple(execution.time(batch) for _ in range(calls))
        return TimedCalls(timed, len(batch), options.cuda_graph)

    @contextmanager
    def _opened(self, engine: Engine, options: RunOptions) -> Iterator[tuple[Execution, TensorSpec]]:
        check_options(options)
        spec = input_spec(engine.artifact, options)
        plan, record = _checked_files(engine)
        where = str(engine.artifact.path)
        header = read_header(plan, where)
        low, _, high = record.batch_range
        if options.batch is not None and not low <= options.batch <= high:
            raise BuildFailed(
                f"was built for {low} to {high} images at once, and {options.batch} were asked for.",
                where=where,
                cure="Build it with another --batch-range.",
            )
        trt, cuda, device = self._here()
        check_fit(record, header, str(trt.__version__), device, where)
        border = (record.inputs[0], record.outputs[0])
        with self._failures(engine.artifact.path), ExitStack() as stack:
            yield (
                stack.enter_context(loaded(trt, cuda, plan, border, cuda_graph=options.cuda_graph)),
                spec,
            )

    def _here(self) -> tuple[Any, Cuda, Device]:
        """Return TensorRT, CUDA, and the GPU."""
        trt = self._module()
        cuda = load_cuda(self.name)
        return trt, cuda, find_device(cuda, self.name)

    def _module(self) -> Any:  # noqa: ANN401 - a module
        return imported(self.name, self.library, self.cure)

    def _record(
        self,
        trt: Any,  # noqa: ANN401
        device: Device,
        model: Artifact,
        precision: str,
        settings: BuildSettings,
        built: BuiltPlan,
    ) -> PlanRecord:
        """Return what is known of a new plan; loading it for its layers shows that it loads."""
        engine, runtime = load_engine(trt, built.data)
        layers = summarize(inspect_engine(trt, engine), built.convolutions)
        del engine, runtime
        return PlanRecord(
            record_version=RECORD_VERSION,
            runtime=self.name,
            precision=precision,
            version=str(trt.__version__),
            device=device,
            plan_sha256=sha256_bytes(built.data),
            graph_sha256=model.sha256,
            inputs=model.inputs,
            outputs=model.outputs,
            batch_range=settings.batch_range,
            optimization_level=settings.optimization_level,
            workspace_bytes=settings.memory.workspace_bytes,
            low_memory=settings.memory.low,
            timing_cache_read=_digest(settings.timing_cache if built.cache_was_used else None),
            timing_cache_kept=_digest(built.timing_cache),
            layers=layers,
            warnings=built.warnings,
        )

    @contextmanager
    def _failures(self, where: Path) -> Iterator[None]:
        """Translate the errors of TensorRT and CUDA inside the block."""
        try:
            yield
        except OutOfMemory as error:
            raise MachineFailure(
                f"{self.name} is out of memory: {error}.",
                where=str(where),
                cure="Build with a smaller --batch-range, close other programs, or add swap.",
            ) from error
        except (TensorRTError, CudaError) as error:
            raise BuildFailed(f"{self.name} refuses it: {error}", where=str(where)) from error


def check_batch_range(batch_range: tuple[int, int, int]) -> None:
    """Refuse batch sizes that are not in ascending order from 1 up.

    Raises:
        UsageError: They are not.
    """
    if not 1 <= batch_range[0] <= batch_range[1] <= batch_range[2]:
        raise UsageError(f"the batch range {batch_range} is not smallest, usual, largest.")


def _no_dla(runtime: str) -> RuntimeUnavailable:
    return RuntimeUnavailable(
        f"{runtime} plans for the deep learning accelerator (DLA) are not built yet.",
        cure="It is in Jetson AGX Orin and Orin NX, not in Thor. TensorRT builds for it up to 10.7 "
        "(JetPack 6), from graphs without Q/DQ, and from 11.4.1 on AGX Orin (JetPack 7.2.2), strongly "
        "typed; the versions between do not. Build for the GPU.",
    )


def _checked_files(engine: Engine) -> tuple[bytes, PlanRecord]:
    """Return a plan's bytes and its record, both as their digests name them."""
    path = engine.artifact.path
    if len(engine.companions) != 1:
        raise BuildFailed("has no record beside it.", where=str(path), cure=REBUILD)
    (companion,) = engine.companions
    plan = engine.artifact.read()
    record = read_record(companion.read(), str(companion.path))
    if record.plan_sha256 != engine.artifact.sha256 or not record.inputs or not record.outputs:
        raise StaleArtifact("is not the record of this plan.", where=str(companion.path), cure=REBUILD)
    return plan, record


def _cache_file(folder: Path | None, runtime: str, version: str, device: Device) -> Path | None:
    """Return where tactics measured with this library on this GPU under this driver are kept."""
    if folder is None:
        return None
    gpu = f"{device.name} {device.compute_capability} {device.multiprocessors}"
    key = f"{runtime} {version} {gpu} {device.driver}"
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', key)}.timing"


def _read_cache(file: Path | None) -> bytes | None:
    if file is None:
        return None
    with files.disk_errors(file, "cannot be read"):
        return file.read_bytes() if file.exists() else b""


def _digest(data: bytes | None) -> str | None:
    return sha256_bytes(data) if data else None
