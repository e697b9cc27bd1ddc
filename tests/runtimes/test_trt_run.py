"""Plans opened and run on doubles of TensorRT, of CUDA and of a GPU: no speed, and no kernel's numbers."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resedge.artifacts import Artifact, Engine, sha256_file
from resedge.errors import BuildFailed, MachineFailure, StaleArtifact
from resedge.protocols import Float32Array, RunOptions
from resedge.runtimes.tensorrt import TensorRT

RUNTIME = TensorRT()
IMAGES = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
ONE = RunOptions(threads=1)


@pytest.fixture(scope="module")
def expected(typed: Mapping[str, Artifact]) -> dict[str, Float32Array]:
    """The logits of each graph, by ONNX Runtime alone."""
    onnxruntime = importlib.import_module("onnxruntime")

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return {
        precision: onnxruntime.InferenceSession(typed[precision].read(), options).run(
            None, {"input": IMAGES}
        )[0]
        for precision in ("fp16", "int8")
    }


# --- opening -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["plan", "record"])
@pytest.mark.usefixtures("world")
def test_changed_file_is_not_opened(build: Callable[..., Engine], change: str) -> None:
    engine = build()
    file = engine.artifact if change == "plan" else engine.companions[0]
    file.path.write_bytes(file.path.read_bytes() + b" ")
    with pytest.raises(StaleArtifact, match=file.path.name), RUNTIME.open(engine, ONE):
        pytest.fail("the block was entered")


@pytest.mark.usefixtures("world")
def test_record_of_another_plan_is_not_believed(build: Callable[..., Engine]) -> None:
    fp16, int8 = build("fp16"), build("int8")
    with (
        pytest.raises(StaleArtifact, match="is not the record of this plan"),
        RUNTIME.open(replace(fp16, companions=int8.companions), ONE),
    ):
        pytest.fail("the block was entered")
    with (
        pytest.raises(BuildFailed, match="has no record beside it"),
        RUNTIME.open(replace(fp16, companions=()), ONE),
    ):
        pytest.fail("the block was entered")


@pytest.mark.parametrize(
    ("snapshot", "gpu", "found"),
    [
        ("tensorrt-10.3.0", {}, "this device has tensorrt 10.3.0."),
        ("tensorrt-10.16.1.11", {"name": "Thor", "major": 11, "minor": 0}, "this device has Thor"),
        ("tensorrt-10.16.1.11", {"multiprocessors": 8}, "this device has Orin (compute capability 8.7, 8 "),
    ],
)
def test_plan_of_elsewhere_is_refused_before_it_is_loaded(
    device: Callable[..., Any], build: Callable[..., Engine], snapshot: str, gpu: dict[str, Any], found: str
) -> None:
    device("tensorrt-10.16.1.11")
    engine = build()
    device(snapshot, **gpu)
    sys.modules["tensorrt"].Runtime = None  # type: ignore[attr-defined]  # nothing may be loaded
    with pytest.raises(BuildFailed) as caught, RUNTIME.open(engine, ONE):
        pytest.fail("the block was entered")
    assert caught.value.what.startswith("built with tensorrt 10.16.1.11 for Orin (")
    assert found in caught.value.what
    assert "resedge build" in caught.value.cure


def test_moved_plan_opens(world: Any, build: Callable[..., Engine], tmp_path: Path) -> None:  # noqa: ANN401
    engine = build()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = [file.path.rename(elsewhere / file.path.name) for file in (engine.artifact, *engine.companions)]
    there = replace(
        engine,
        artifact=replace(engine.artifact, path=moved[0]),
        companions=(replace(engine.companions[0], path=moved[1]),),
    )
    with RUNTIME.open(there, ONE) as run:
        assert run(IMAGES[:2]).shape == (2, 6)
    assert not world.gpu.live


@pytest.mark.usefixtures("world")
def test_plan_with_other_tensors_is_refused(build: Callable[..., Engine]) -> None:
    engine = build()
    path = engine.companions[0].path
    document = json.loads(path.read_text())
    document["inputs"][0]["dtype"] = "uint8"
    path.write_text(json.dumps(document))
    changed = replace(engine, companions=(replace(engine.companions[0], sha256=sha256_file(path)),))
    with (
        pytest.raises(
            BuildFailed, match=r"other tensors than its record: in 'input' float32, out 'logits' float32"
        ),
        RUNTIME.open(changed, ONE),
    ):
        pytest.fail("the block was entered")


# --- running -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["stream", "graph"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_logits_are_the_graphs(
    world: Any,  # noqa: ANN401
    build: Callable[..., Engine],
    expected: Mapping[str, Float32Array],
    cuda_graph: bool,
    precision: str,
) -> None:
    with RUNTIME.open(build(precision), RunOptions(1, cuda_graph=cuda_graph)) as run:
        for start, size in ((0, 3), (3, 3), (6, 1), (0, 32), (7, 3)):
            logits = run(IMAGES[start : start + size])
            assert (logits.shape, str(logits.dtype)) == ((size, 6), "float32")
            np.testing.assert_allclose(logits, expected[precision][start : start + size], rtol=0, atol=2e-3)
    assert not world.gpu.live
    assert ("cudaGraphLaunch" in world.gpu.calls) is cuda_graph


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_output_belongs_to_the_caller(world: Any, build: Callable[..., Engine], cuda_graph: bool) -> None:  # noqa: ANN401
    with RUNTIME.open(build(), RunOptions(1, batch=2, cuda_graph=cuda_graph)) as run:
        first = run(IMAGES[:2])
        kept = first.copy()
        second = run(IMAGES[2:4])
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
        np.testing.assert_array_equal(run(IMAGES[2:4]), second)
    np.testing.assert_array_equal(first, 0)
    assert not world.gpu.live


@pytest.mark.usefixtures("world")
def test_memory_is_as_large_as_the_profile_needs_and_no_larger(
    build: Callable[..., Engine],
    world: Any,  # noqa: ANN401
) -> None:
    with RUNTIME.open(build(batch_range=(1, 2, 4)), ONE):
        sizes = sorted(
            world.gpu.live[address].nbytes for address in world.gpu.device_memory | world.gpu.pinned
        )
        assert sizes == [4 * 6 * 4] * 2 + [4 * 3 * 8 * 8 * 4] * 2
        assert world.shapes[0] == (4, 3, 8, 8)


@pytest.mark.usefixtures("world")
def test_batch_outside_the_profile(build: Callable[..., Engine]) -> None:
    engine = build(batch_range=(2, 2, 4))
    with RUNTIME.open(engine, ONE) as run:
        for size in (1, 5):
            with pytest.raises(
                ValueError, match=rf"takes 2 to 4 images at once, and {size} were given.*--batch-range"
            ):
                run(IMAGES[:size])
        assert run(IMAGES[:3]).shape == (3, 6)
    for batch in (1, 5):
        with (
            pytest.raises(BuildFailed, match=f"built for 2 to 4 images at once, and {batch} were asked for"),
            RUNTIME.open(engine, RunOptions(1, batch=batch)),
        ):
            pytest.fail("the block was entered")


@pytest.mark.usefixtures("world")
def test_wrong_shape_and_dtype(build: Callable[..., Engine]) -> None:
    with RUNTIME.open(build(), ONE) as run:
        for wrong in (IMAGES[0], IMAGES[:, :2], IMAGES.astype(np.float64), IMAGES[:0]):
            with pytest.raises(ValueError, match=r"'input' expects \(batch, 3, 8, 8\) float32, and"):
                run(wrong)
        turned = np.moveaxis(np.ascontiguousarray(np.moveaxis(IMAGES[:2], 1, 3)), 3, 1)
        np.testing.assert_array_equal(run(turned), run(IMAGES[:2]))


@pytest.mark.usefixtures("world")
def test_closed_runner(build: Callable[..., Engine]) -> None:
    with RUNTIME.open(build(), ONE) as run:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        run(IMAGES[:1])


def test_failures_in_a_call_have_their_names(world: Any, build: Callable[..., Engine]) -> None:  # noqa: ANN401
    with RUNTIME.open(build(), ONE) as run:
        before = run(IMAGES[:2])
        world.refuse["execute_async_v3"] = (
            "IExecutionContext::enqueueV3: Error Code 1: Cask (Cask convolution execution)"
        )
        with pytest.raises(
            BuildFailed, match=r"tensorrt-fp16\.plan: tensorrt could not run it: .*Error Code 1: Cask"
        ):
            run(IMAGES[:2])
        world.refuse["execute_async_v3"] = "IExecutionContext::enqueueV3: Error Code 7: Internal Error"
        with pytest.raises(BuildFailed, match=r"execute_async_v3: [^;]*Error Code 7[^;]*$"):
            run(IMAGES[:2])
        del world.refuse["execute_async_v3"]
        world.gpu.fail["cudaStreamSynchronize"] = "cudaErrorIllegalAddress"
        with pytest.raises(BuildFailed, match="cudaStreamSynchronize: cudaErrorIllegalAddress"):
            run(IMAGES[:2])
        world.gpu.fail.clear()
        np.testing.assert_array_equal(run(IMAGES[:2]), before)
    assert not world.gpu.live


@pytest.mark.parametrize(
    "call", ["cudaMalloc", "cudaMallocHost", "cudaStreamCreateWithFlags", "cudaEventCreate"]
)
def test_failure_while_opening_gives_everything_back(
    world: Any,  # noqa: ANN401
    build: Callable[..., Engine],
    call: str,
) -> None:
    engine = build()
    world.gpu.fail[call] = "cudaErrorMemoryAllocation"
    with (
        pytest.raises(BuildFailed, match=rf"tensorrt refuses it: {call}: cudaErrorMemoryAllocation"),
        RUNTIME.open(engine, ONE),
    ):
        pytest.fail("the block was entered")
    assert not world.gpu.live


def test_context_that_cannot_be_made(world: Any, build: Callable[..., Engine]) -> None:  # noqa: ANN401
    engine = build()
    world.refuse["create_execution_context"] = "Error Code 2: OutOfMemory (no room)"
    with (
        pytest.raises(MachineFailure, match=r"create_execution_context: Error Code 2: OutOfMemory"),
        RUNTIME.open(engine, ONE),
    ):
        pytest.fail("the block was entered")


def test_capture_that_fails_is_no_silent_detour(world: Any, build: Callable[..., Engine]) -> None:  # noqa: ANN401
    with RUNTIME.open(build(), RunOptions(1, cuda_graph=True)) as run:
        before = run(IMAGES[:2])
        world.gpu.fail["cudaGraphInstantiate"] = "cudaErrorInvalidValue"
        for _ in range(2):
            with pytest.raises(BuildFailed, match="cudaGraphInstantiate: cudaErrorInvalidValue"):
                run(IMAGES[:3])
        world.gpu.fail.clear()
        world.gpu.calls.clear()
        np.testing.assert_array_equal(run(IMAGES[:2]), before)
        assert world.shapes[-1][0] == 2
        assert world.gpu.calls.count("cudaGraphLaunch") == 1
    assert not world.gpu.live


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_times_are_taken_apart(world: Any, build: Callable[..., Engine], cuda_graph: bool) -> None:  # noqa: ANN401
    timed = RUNTIME.time(build(), RunOptions(1, cuda_graph=cuda_graph), IMAGES[:4], calls=3)
    assert (len(timed.calls), timed.batch, timed.cuda_graph) == (3, 4, cuda_graph)
    spans = {(t.host_to_device_ms, t.gpu_ms, t.device_to_host_ms) for t in timed.calls}
    assert spans == {(0.5, 2.0, 0.5)}, "the double's own clock"
    assert timed.median.gpu_ms == 2.0
    assert all(t.end_to_end_ms > 0 for t in timed.calls)
    assert "TensorRT 10 counts both transfers" in timed.semantics
    assert "TensorRT 11 leaves them out" in timed.semantics
    with pytest.raises(ValueError, match="'input' expects"):
        RUNTIME.time(build(), ONE, IMAGES[0], calls=3)
    assert not world.gpu.live
