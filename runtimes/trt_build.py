"""A plan from an ONNX graph, by one path for TensorRT 10.3 to 11.4 and TensorRT for RTX.

The network is strongly typed: TensorRT computes each tensor in the type that the graph gives it. That is
all that TensorRT 11 knows and what TensorRT 10 has to be asked for. The module is an argument, and what not
every version has stands behind a test for it. A variable that holds an object of TensorRT has the name that
the contract test knows it by (builder, network, parser, config, profile, engine and so on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from resedge.errors import UsageError
from resedge.protocols import Progress
from resedge.runtimes.onnx_names import modules_of
from resedge.runtimes.trt_log import Heard, TensorRTError, listening, logger, one_line
from resedge.runtimes.trt_memory import MemoryPlan

THIS_GPU: Final = "current"
_LEVEL_OF_SMALL_BOARDS = 2  # of 0 to 5, 3 being the default: what takes most memory is tried above it


@dataclass(frozen=True)
class BuildSettings:
    """What decides a plan beside its graph.

    `optimization_level` None is TensorRT's default, or less where memory is short. `timing_cache` None keeps
    none; b"" starts one. `compute_capability` is that of a GPU that is not here, such as "8.6", or THIS_GPU,
    which TensorRT for RTX has to be told.
    """

    batch_range: tuple[int, int, int]
    memory: MemoryPlan
    optimization_level: int | None = None
    timing_cache: bytes | None = None
    compute_capability: str | None = None


@dataclass(frozen=True)
class Convolution:
    """A convolution of the parsed network; `quantized` says that it reads a DequantizeLinear."""

    name: str
    quantized: bool


@dataclass(frozen=True)
class BuiltPlan:
    """A serialised engine and what is known from its making.

    `cache_was_used` is False where the timing cache that was given is one of another device or version.
    `table` is the list of layers that the builder logs, "" where it logs none.
    """

    data: bytes
    convolutions: tuple[Convolution, ...]
    timing_cache: bytes | None
    cache_was_used: bool
    warnings: tuple[str, ...]
    table: str


def build_plan(trt: Any, graph: bytes, settings: BuildSettings, progress: Progress) -> BuiltPlan:  # noqa: ANN401
    """Parse a graph and build its plan.

    Args:
        trt: The module tensorrt or tensorrt_rtx.
        graph: An ONNX file with one input whose first dimension is the batch.
        settings: What else decides the plan.
        progress: Told of the build's phases.

    Raises:
        TensorRTError: The graph is refused, with every reason by node and torch module, or the build failed.
        UsageError: The settings do not fit the graph or this TensorRT.
        KeyboardInterrupt: The user stopped the build.
    """
    with listening(trt) as heard:
        builder = trt.Builder(logger(trt))
        network = _new_network(trt, builder)
        _parse(trt, network, graph, heard)
        config = builder.create_builder_config()
        _limit(trt, builder, config, settings)
        _aim(trt, config, settings.compute_capability)
        _add_profile(builder, network, config, settings.batch_range, heard)
        cache_was_used = _set_timing_cache(config, settings.timing_cache)
        monitor = _monitor(trt, progress)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor.stopped_by is not None:
            raise monitor.stopped_by
        if plan is None:
            raise heard.failure("Builder.build_serialized_network")
        return BuiltPlan(
            bytes(plan),
            _convolutions(trt, network),
            None if settings.timing_cache is None else _serialized_cache(config),
            cache_was_used,
            tuple(dict.fromkeys(one_line(warning) for warning in heard.warnings)),
            "\n".join(heard.tables),
        )


def parse_alone(trt: Any, graph: bytes) -> None:  # noqa: ANN401
    """Parse a graph and build nothing.

    Args:
        trt: The module tensorrt or tensorrt_rtx.
        graph: An ONNX file.

    Raises:
        TensorRTError: The graph is refused, with every reason by node and torch module.
    """
    with listening(trt) as heard:
        builder = trt.Builder(logger(trt))
        _parse(trt, _new_network(trt, builder), graph, heard)


def _new_network(trt: Any, builder: Any) -> Any:  # noqa: ANN401
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def _parse(trt: Any, network: Any, graph: bytes, heard: Heard) -> None:  # noqa: ANN401
    """Read the graph into the network, or say of every node why not."""
    parser = trt.OnnxParser(network, logger(trt))
    if parser.parse(graph):
        return
    reasons = [_reason(parser.get_error(index), _modules(graph)) for index in range(parser.num_errors)]
    if not reasons:
        raise heard.failure("OnnxParser.parse")
    raise TensorRTError(*dict.fromkeys(reasons))


def _reason(refusal: Any, modules: dict[str, str]) -> str:  # noqa: ANN401 - ParserError
    """Return one sentence: which node, of which module of the model, and the parser's reason."""
    name, kind = refusal.node_name(), refusal.node_operator()
    reason = f"{refusal.code().name}: {one_line(refusal.desc())}"
    if not name:
        return f"the file: {reason}"
    module = f" of module '{modules[name]}'" if name in modules else ""
    return f"{kind} '{name}'{module}: {reason}"


def _modules(graph: bytes) -> dict[str, str]:
    try:
        return modules_of(graph)
    except ValueError:  # which the parser has found too, and says
        return {}


def _limit(trt: Any, builder: Any, config: Any, settings: BuildSettings) -> None:  # noqa: ANN401
    """Set what the build may use, and that the plan names its layers."""
    memory, level = settings.memory, settings.optimization_level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, memory.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # A node stays float32 for its numbers' sake; TF32 would round its inputs like FP16.
    config.clear_flag(trt.BuilderFlag.TF32)
    if memory.low:
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, memory.workspace_bytes)
        config.max_aux_streams = 0
        builder.max_threads = 1
        level = min(_LEVEL_OF_SMALL_BOARDS, 5 if level is None else level)
    if level is not None:
        config.builder_optimization_level = level


def _aim(trt: Any, config: Any, compute_capability: str | None) -> None:  # noqa: ANN401
    """Say which GPU the plan is for, which TensorRT for RTX alone can be told."""
    if compute_capability is None:
        return
    if not (
        hasattr(trt, "ComputeCapability")
        and hasattr(config, "num_compute_capabilities")
        and hasattr(config, "set_compute_capability")
    ):
        raise UsageError(
            f"TensorRT {trt.__version__} builds for the GPU that it runs on and for no other.",
            cure="Build on the device, or with TensorRT for RTX.",
        )
    name = "CURRENT" if compute_capability == THIS_GPU else f"SM{compute_capability.replace('.', '')}"
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = 1
    if name not in known or not config.set_compute_capability(known[name], 0):
        raise UsageError(f"this TensorRT does not build for compute capability {compute_capability}.")


def _add_profile(
    builder: Any,  # noqa: ANN401
    network: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    batch_range: tuple[int, int, int],
    heard: Heard,
) -> None:
    """State the smallest, the usual and the largest batch size of the one input."""
    if network.num_inputs != 1:
        raise TensorRTError(f"the graph has {network.num_inputs} inputs, expected is one")
    tensor = network.get_input(0)
    batch, *sample = tuple(tensor.shape)
    if batch != -1 and set(batch_range) != {batch}:
        raise UsageError(f"the graph runs at batch size {batch} alone, not at {batch_range}.")
    profile = builder.create_optimization_profile()
    low, best, high = ((size, *sample) for size in batch_range)
    profile.set_shape(tensor.name, low, best, high)
    if config.add_optimization_profile(profile) < 0:
        raise heard.failure("IBuilderConfig.add_optimization_profile")


def _set_timing_cache(config: Any, data: bytes | None) -> bool:  # noqa: ANN401
    """Give the build what tactics were measured to cost; return whether that was of use.

    A cache of another device or version is not taken in its place, and a new one is begun.
    """
    if data is None:
        return False
    cache = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, False):
        return bool(data)
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return False


def _serialized_cache(config: Any) -> bytes | None:  # noqa: ANN401
    cache = config.get_timing_cache()
    return None if cache is None else bytes(cache.serialize())


def _convolutions(trt: Any, network: Any) -> tuple[Convolution, ...]:  # noqa: ANN401
    dequantized: set[str] = set()
    found: list[Convolution] = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.DEQUANTIZE:
            tensor = layer.get_output(0)
            dequantized.add(tensor.name)
        elif layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION):
            tensor = layer.get_input(0)
            found.append(Convolution(layer.name, tensor.name in dequantized))
    return tuple(found)


def _monitor(trt: Any, progress: Progress) -> Any:  # noqa: ANN401 - IProgressMonitor
    """Return what shows the outermost phase of a build, and stops it when an exception comes up.

    TensorRT calls it, from its own threads too, and no exception may reach TensorRT: what comes up here,
    an interrupt above all, is kept in `stopped_by` for the caller to raise.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outermost: str | None = None
            self.stopped_by: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None and self.outermost is None:
                self.outermost = phase_name
                self._report(progress.start, phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self.outermost:
                self._report(progress.advance, 1)
            return self.stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self.outermost:
                self.outermost = None
                self._report(progress.finish)

        def _report(self, tell: Callable[..., None], *arguments: object) -> None:
            try:
                tell(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised again by the caller of the build
                self.stopped_by = self.stopped_by or error

    return Monitor()
