"""Every runtime of this machine on graphs that take frames: the answers are eager's of prepared images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from resedge.artifacts import Artifact, Engine
from resedge.errors import RuntimeUnavailable
from resedge.images import Frames
from resedge.protocols import BuildOptions, Float32Array, RunOptions, Runtime
from resedge.runtimes.rtx_preflight import preflight
from resedge.runtimes.table import runtime

KINDS = {"fp32": "onnx/fp32", "int8": "onnx/int8.cpu"}
STRONGLY_TYPED = {"fp16": "onnx/fp16", "int8": "onnx/int8.tensorrt"}
CASES = (
    *(("onnxruntime", precision, KINDS[precision]) for precision in ("fp32", "int8")),
    *(("openvino", precision, KINDS.get(precision, "onnx/fp32")) for precision in ("fp32", "fp16", "int8")),
    *((name, *pair) for name in ("tensorrt", "tensorrt_rtx") for pair in STRONGLY_TYPED.items()),
)
Built = tuple[Runtime, Engine]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: ":".join(case[:2]))
def built(
    request: pytest.FixtureRequest,
    frame_sources: Mapping[str, Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    name, precision, kind = request.param
    candidate = runtime(name)
    try:
        candidate.probe()
    except RuntimeUnavailable as unavailable:
        pytest.skip(str(unavailable))
    options = BuildOptions(precision, batch_range=(1, 8, 16))
    engine = candidate.build(frame_sources[kind], tmp_path_factory.mktemp(f"{name}-{precision}"), options)
    return candidate, engine


def test_logits_are_eagers(built: Built, frames: Frames, expected_of_frames: Float32Array) -> None:
    candidate, engine = built
    assert (engine.artifact.inputs[0].shape, engine.artifact.inputs[0].dtype) == (
        ("batch", 16, 16, 3),
        "uint8",
    )
    largest = np.abs(expected_of_frames).max()
    tolerance = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}[engine.precision]
    with candidate.open(engine, RunOptions(threads=1)) as run:
        logits = run(frames)
        np.testing.assert_allclose(logits, expected_of_frames, rtol=0, atol=tolerance * largest)
        np.testing.assert_allclose(run(frames[:3]), logits[:3], rtol=0, atol=1e-3)
    with candidate.open(engine, RunOptions(threads=1, batch=1)) as run:
        np.testing.assert_allclose(run(frames[5:6]), logits[5:6], rtol=0, atol=1e-3)


def test_a_view_of_a_larger_frame_serves(built: Built, frames: Frames) -> None:
    candidate, engine = built
    larger = np.zeros((16, 20, 24, 3), np.uint8)
    larger[:, 2:18, 5:21] = frames
    with candidate.open(engine, RunOptions(threads=1)) as run:
        np.testing.assert_array_equal(run(larger[:, 2:18, 5:21]), run(frames))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 3, 16, 16), "uint8"), ((1, 16, 16, 3), "float32"), ((16, 16, 3), "uint8")]
)
def test_what_is_no_frame_is_refused(built: Built, shape: tuple[int, ...], dtype: str) -> None:
    candidate, engine = built
    with (
        candidate.open(engine, RunOptions(threads=1)) as run,
        pytest.raises(ValueError, match=r"'input' expects \(batch, 16, 16, 3\) uint8, and "),
    ):
        run(np.zeros(shape, dtype))


@pytest.mark.parametrize("precision", STRONGLY_TYPED)
def test_nvidias_parser_and_builder_take_the_graph(
    frame_sources: Mapping[str, Artifact], precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx", minversion="1.7.1")
    found = preflight(frame_sources[STRONGLY_TYPED[precision]], (1, 4, 8), "8.6")
    assert found.accepted
    assert found.layers is not None
    assert (found.layers.by_type, found.layers.fell_back) == ({precision: 3}, ())
