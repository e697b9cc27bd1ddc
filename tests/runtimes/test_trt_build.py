"""The build function on TensorRT for RTX, for real, and on the double of each TensorRT."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resedge.artifacts import Artifact
from resedge.errors import UsageError
from resedge.protocols import NoProgress
from resedge.runtimes.trt_build import BuildSettings, BuiltPlan, build_plan, parse_alone
from resedge.runtimes.trt_log import OutOfMemory, TensorRTError, listening, logger
from resedge.runtimes.trt_memory import MemoryPlan
from resedge.runtimes.trt_plans import read_header

SCRIPT = Path(__file__).with_name("rtx_build.py")
PLENTY = MemoryPlan(1 << 30, low=False)
SETTINGS = BuildSettings((1, 4, 8), PLENTY)

Rtx = Callable[..., dict[str, Any]]


@pytest.fixture
def rtx(typed: Mapping[str, Artifact], tmp_path: Path) -> Rtx:
    pytest.importorskip("tensorrt_rtx", minversion="1.7.1")

    def build(name: str, way: str = "plain") -> dict[str, Any]:
        command = [sys.executable, str(SCRIPT), str(typed[name].path), str(tmp_path / "rtx.plan"), way]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return build


@pytest.mark.parametrize(("name", "by_type"), [("fp16", {"fp16": 2}), ("int8", {"int8": 2})])
def test_rtx_builds_what_the_graph_says(rtx: Rtx, tmp_path: Path, name: str, by_type: dict[str, int]) -> None:
    answer = rtx(name)
    assert answer["summary"]["by_type"] == by_type
    assert answer["summary"]["fell_back"] == []
    assert answer["summary"]["layers"] > 3
    (label, total), *steps, last = answer["told"]
    assert label == "Building engine"
    assert last == ["finish", None]
    assert 1 <= len(steps) <= total
    header = read_header((tmp_path / "rtx.plan").read_bytes(), "rtx.plan")
    assert (header.runtime, header.version[:2]) == ("tensorrt_rtx", (1, 7))
    # Without a GPU it does not load, and TensorRT's own name for the error is told.
    assert "Runtime.deserialize_cuda_engine: IRuntime::deserializeCudaEngine: Error Code" in answer["loading"]


def test_rtx_builds_in_the_low_memory_way(rtx: Rtx) -> None:
    assert rtx("int8", "low")["summary"]["by_type"] == {"int8": 2}


def test_rtx_refuses_with_node_module_and_reason(rtx: Rtx) -> None:
    shifted = rtx("int8.shifted")["refused"]
    assert shifted.startswith("QuantizeLinear '1.in.q.node' of module 'layer.1.conv': INVALID_NODE: ")
    assert "Non-zero zero point is not supported" in shifted
    mixed = rtx("fp16.mixed")["refused"]
    assert mixed.startswith("Conv '1.out.node' of module 'layer.1.conv': INVALID_NODE: ")
    assert "must be of same type" in mixed


def test_rtx_parses_alone_and_refuses_as_a_build_does(rtx: Rtx) -> None:
    assert rtx("int8", "parsed") == {"parsed": True}
    assert rtx("fp16.mixed", "parsed") == rtx("fp16.mixed")


def test_rtx_build_can_be_interrupted(rtx: Rtx) -> None:
    assert rtx("fp16", "stopped") == {"stopped": True}


def built(
    trt: Any,  # noqa: ANN401
    graph: Artifact,
    settings: BuildSettings = SETTINGS,
    progress: NoProgress | None = None,
) -> BuiltPlan:
    return build_plan(trt, graph.read(), settings, progress or NoProgress())


@pytest.fixture
def trt(world: Any) -> Any:  # noqa: ANN401 - the double of the module
    return sys.modules["tensorrt"]


def test_strongly_typed_by_the_flag_of_the_version(trt: Any, typed: Mapping[str, Artifact]) -> None:  # noqa: ANN401
    built(trt, typed["fp16"])
    assert trt.world.flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert trt.world.flags == (1 if trt.__version__.startswith("11") else 2)


def test_configuration(trt: Any, typed: Mapping[str, Artifact]) -> None:  # noqa: ANN401
    built(trt, typed["fp16"])
    assert trt.world.limits == {"WORKSPACE": 1 << 30}
    assert trt.world.settings["profiling_verbosity"] == trt.ProfilingVerbosity.DETAILED
    assert trt.world.settings["_cleared"] == ["TF32"]
    assert "builder_optimization_level" not in trt.world.settings
    built(trt, typed["fp16"], replace(SETTINGS, optimization_level=5))
    assert trt.world.settings["builder_optimization_level"] == 5


@pytest.mark.parametrize(("asked", "used"), [(None, 2), (5, 2), (1, 1)])
def test_small_boards_build_with_less(
    trt: Any,  # noqa: ANN401
    typed: Mapping[str, Artifact],
    asked: int | None,
    used: int,
) -> None:
    built(
        trt, typed["fp16"], replace(SETTINGS, memory=MemoryPlan(1 << 26, low=True), optimization_level=asked)
    )
    assert trt.world.limits == {"WORKSPACE": 1 << 26, "TACTIC_DRAM": 1 << 26}
    found = [
        trt.world.settings[key] for key in ("builder_optimization_level", "max_aux_streams", "max_threads")
    ]
    assert found == [used, 0, 1]


def test_parsing_alone_builds_nothing(trt: Any, typed: Mapping[str, Artifact]) -> None:  # noqa: ANN401
    parse_alone(trt, typed["int8"].read())
    assert trt.world.flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert trt.world.limits == {}
    with pytest.raises(TensorRTError, match="shiftIsAllZeros"):
        parse_alone(trt, typed["int8.shifted"].read())


def test_every_parser_error_is_told(trt: Any, typed: Mapping[str, Artifact]) -> None:  # noqa: ANN401
    with pytest.raises(TensorRTError) as caught:
        built(trt, typed["int8.shifted"])
    assert str(caught.value) == (
        "QuantizeLinear '1.in.q.node' of module 'layer.1.conv': INVALID_NODE: "
        "Assertion failed: shiftIsAllZeros(zeroPoint) not supported"
    )


def test_nodes_without_a_module_and_several_errors(trt: Any) -> None:  # noqa: ANN401
    from onnx import TensorProto, helper

    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("input", "logits")]
    nodes = [
        helper.make_node("Erf", ["input"], ["a"], name="first"),
        helper.make_node("Det", ["a"], ["logits"], name="second"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "odd", info[:1], info[1:]))
    with pytest.raises(TensorRTError) as caught:
        build_plan(trt, model.SerializeToString(), SETTINGS, NoProgress())
    assert str(caught.value) == (
        "Erf 'first': UNSUPPORTED_NODE: No importer registered for op: Erf; "
        "Det 'second': UNSUPPORTED_NODE: No importer registered for op: Det"
    )


def test_file_that_is_no_graph(trt: Any) -> None:  # noqa: ANN401
    with pytest.raises(TensorRTError, match=r"^the file: MODEL_DESERIALIZE_FAILED: Failed to parse"):
        build_plan(trt, b"\xff not an ONNX file", SETTINGS, NoProgress())


def test_failed_build_says_why(trt: Any, typed: Mapping[str, Artifact]) -> None:  # noqa: ANN401
    trt.world.refuse["build_serialized_network"] = (
        "Error Code 10: Internal Error (Could not find any implementation)"
    )
    with pytest.raises(
        TensorRTError, match=r"^Builder.build_serialized_network: .*Error Code 10: Internal"
    ) as caught:
        built(trt, typed["fp16"])
    assert not isinstance(caught.value, OutOfMemory)
    trt.world.refuse["build_serialized_network"] = (
        "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)"
    )
    with pytest.raises(OutOfMemory, match="Requested size"):
        built(trt, typed["fp16"])


def test_profile_must_fit_a_fixed_batch(trt: Any, typed: Mapping[str, Artifact]) -> None:  # noqa: ANN401
    import onnx

    model = onnx.load_from_string(typed["fp16"].read())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    data = model.SerializeToString()
    with pytest.raises(UsageError, match=r"batch size 4 alone, not at \(1, 4, 8\)"):
        build_plan(trt, data, SETTINGS, NoProgress())
    build_plan(trt, data, replace(SETTINGS, batch_range=(4, 4, 4)), NoProgress())


def test_timing_cache_is_kept_and_read(trt: Any, typed: Mapping[str, Artifact]) -> None:  # noqa: ANN401
    assert built(trt, typed["fp16"]).timing_cache is None
    assert trt.world.settings["_cache"] is None
    first = built(trt, typed["fp16"], replace(SETTINGS, timing_cache=b""))
    assert (first.timing_cache, first.cache_was_used) == (b"|tactics", False)
    second = built(trt, typed["fp16"], replace(SETTINGS, timing_cache=first.timing_cache))
    assert (second.timing_cache, second.cache_was_used) == (b"|tactics|tactics", True)
    foreign = built(trt, typed["fp16"], replace(SETTINGS, timing_cache=b"of another GPU"))
    assert (foreign.timing_cache, foreign.cache_was_used) == (b"|tactics", False)


class Failing(NoProgress):
    def advance(self, units: int) -> None:
        raise OSError("the terminal is gone")


def test_failing_progress_stops_the_build_and_is_raised(trt: Any, typed: Mapping[str, Artifact]) -> None:  # noqa: ANN401
    with pytest.raises(OSError, match="the terminal is gone"):
        built(trt, typed["fp16"], progress=Failing())


def test_only_rtx_builds_for_a_gpu_that_is_not_here(
    trt: Any,  # noqa: ANN401
    typed: Mapping[str, Artifact],
    device: Callable[..., Any],
) -> None:
    with pytest.raises(UsageError, match="builds for the GPU that it runs on"):
        built(trt, typed["fp16"], replace(SETTINGS, compute_capability="8.6"))
    device("tensorrt_rtx-1.7.1")
    rtx = sys.modules["tensorrt_rtx"]
    built(rtx, typed["fp16"], replace(SETTINGS, compute_capability="8.6"))
    assert rtx.world.settings["_capabilities"] == ["SM86"]
    with pytest.raises(UsageError, match=r"does not build for compute capability 8\.7"):
        built(rtx, typed["fp16"], replace(SETTINGS, compute_capability="8.7"))


def test_double_refuses_what_the_version_lacks(trt: Any) -> None:  # noqa: ANN401
    """The double's own promise, on which the tests above stand."""
    builder = trt.Builder(logger(trt))
    config = builder.create_builder_config()
    is_eleven = trt.__version__.startswith("11")
    assert hasattr(trt.BuilderFlag, "FP16") is not is_eleven
    assert hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") is not is_eleven
    assert int(trt.BuilderFlag.STRIP_PLAN) == (18 if is_eleven else 19)
    with pytest.raises(AttributeError, match="max_workspace_size"):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError, match="build_engine"):
        builder.build_engine(None)
    with pytest.raises(NotImplementedError, match=r"Builder\.is_network_supported"):
        builder.is_network_supported(None, None)
    assert not isinstance(trt.BuilderFlag.TF32, int)
    network = builder.create_network(0)
    if not is_eleven:
        with listening(trt) as heard:
            assert builder.build_serialized_network(network, config) is None
        assert "weakly typed" in heard.errors[0]


def test_log_keeps_no_more_than_it_can_tell(trt: Any) -> None:  # noqa: ANN401
    with listening(trt) as heard:
        for index in range(1000):
            logger(trt).log(trt.ILogger.Severity.WARNING, f"warning {index}")
            logger(trt).log(trt.ILogger.Severity.VERBOSE, "chatter")
    assert len(heard.warnings) == 100
    logger(trt).log(trt.ILogger.Severity.ERROR, "nobody listens")
    assert heard.errors == []
    assert str(heard.failure("call")) == "call: it gives no reason"
