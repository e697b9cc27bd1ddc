"""One suite for every runtime that this machine has. A runtime joins by a line in CASES."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resedge.artifacts import Artifact, Engine, sha256_file
from resedge.errors import BuildFailed, RuntimeUnavailable, StaleArtifact, UsageError
from resedge.protocols import BuildOptions, Float32Array, RunOptions, Runtime
from resedge.runtimes.eager import Eager
from resedge.runtimes.table import RUNTIMES, runtime


@dataclass(frozen=True)
class Case:
    """A runtime, a precision of it, and the kind of artifact that it is built from.

    `measured` builds choose by measuring, and so two of one graph differ.
    """

    runtime: str
    precision: str
    source: str
    measured: bool = False

    @property
    def options(self) -> BuildOptions:
        """How it is built; the suite runs up to 64 images at once."""
        return BuildOptions(self.precision, batch_range=(1, 8, 64))

    def __str__(self) -> str:
        return f"{self.runtime}-{self.precision}"


Loader = Callable[[Path], Any]

CASES = (
    Case("eager", "fp32", "reference/source"),
    Case("eager.channels_last", "fp32", "reference/source"),
    Case("onnxruntime", "fp32", "onnx/fp32"),
    Case("onnxruntime", "int8", "onnx/int8.cpu"),
    Case("openvino", "fp32", "onnx/fp32"),
    Case("openvino", "fp16", "onnx/fp32"),
    Case("openvino", "int8", "onnx/int8.cpu"),
    Case("tensorrt", "fp16", "onnx/fp16", measured=True),
    Case("tensorrt", "int8", "onnx/int8.tensorrt", measured=True),
    Case("tensorrt_rtx", "fp16", "onnx/fp16", measured=True),
    Case("tensorrt_rtx", "int8", "onnx/int8.tensorrt", measured=True),
)
CPU_LIBRARIES = {"eager": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Built:
    """A runtime, an engine of it, and what it was made from."""

    case: Case
    runtime: Runtime
    model: Artifact
    engine: Engine


@pytest.fixture(scope="module", params=CASES, ids=str)
def built(
    request: pytest.FixtureRequest,
    sources: Mapping[str, Artifact],
    load_reference: Loader,
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    case: Case = request.param
    candidate = _runtime(case.runtime, load_reference)
    try:
        probe = candidate.probe()
    except RuntimeUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert probe.precisions
    model = sources[case.source]
    engine = candidate.build(model, tmp_path_factory.mktemp(str(case)), case.options)
    return Built(case, candidate, model, engine)


def _runtime(name: str, load_reference: Loader) -> Runtime:
    if name == "eager":
        return Eager(load_reference)
    if name == "eager.channels_last":
        return Eager(load_reference, "channels_last")
    return runtime(name)


def test_every_runtime_of_the_table_has_cases() -> None:
    assert set(RUNTIMES) <= {case.runtime for case in CASES}


@pytest.mark.parametrize("name", CPU_LIBRARIES)
def test_cpu_runtime_is_not_skipped_where_its_library_is(name: str, load_reference: Loader) -> None:
    if importlib.util.find_spec(CPU_LIBRARIES[name]) is None:
        pytest.skip(f"{CPU_LIBRARIES[name]} is not installed")
    assert _runtime(name, load_reference).probe().precisions


def test_probe_names_what_build_can_do(built: Built) -> None:
    probe = built.runtime.probe()
    assert set(probe.precisions) == {c.precision for c in CASES if c.runtime == built.case.runtime}
    assert all(words for words in probe.precisions.values())
    assert built.engine.version == probe.version
    assert built.engine.runtime == probe.runtime == built.runtime.name
    assert built.engine.precision == built.case.precision


def test_build_again_gives_the_same_bytes(built: Built, tmp_path: Path) -> None:
    if built.case.measured:
        pytest.skip("a build that chooses by measuring")
    again = built.runtime.build(built.model, tmp_path, built.case.options)
    for one, other in zip(_files(built.engine), _files(again), strict=True):
        assert one.sha256 == other.sha256 == sha256_file(one.path) == sha256_file(other.path)
        assert one.path.is_absolute()


def test_build_writes_its_engine_and_nothing_else(built: Built, tmp_path: Path) -> None:
    again = built.runtime.build(built.model, tmp_path, built.case.options)
    own = {file.path for file in _files(again) if file.path.parent == tmp_path}
    assert set(tmp_path.iterdir()) == own
    assert {path.stem for path in own} <= {f"{built.runtime.name}-{built.case.precision}"}


def test_engine_states_the_models_border(built: Built) -> None:
    assert built.engine.artifact.inputs == built.model.inputs
    assert built.engine.artifact.outputs == built.model.outputs


def test_logits_are_eagers(built: Built, images: Float32Array, expected: Float32Array) -> None:
    with built.runtime.open(built.engine, RunOptions(threads=2)) as run:
        logits = run(images)
    assert logits.shape == (64, 5)
    assert logits.dtype == np.float32
    if built.case.precision == "fp32":
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
        return
    cosine, agreement = {"fp16": (0.99999, 1.0), "int8": (0.99, 0.9)}[built.case.precision]
    assert _cosines(logits, expected).min() >= cosine
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= agreement


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "any"])
def test_batch_sizes(built: Built, images: Float32Array, size: int, fixed: bool) -> None:
    options = RunOptions(threads=1, batch=size if fixed else None)
    with built.runtime.open(built.engine, RunOptions(threads=1)) as run:
        together = run(images)
    with built.runtime.open(built.engine, options) as run:
        for start in (0, 20):
            logits = run(images[start : start + size])
            np.testing.assert_allclose(logits, together[start : start + size], rtol=0, atol=1e-3)


def test_any_batch_size_call_by_call(built: Built, images: Float32Array) -> None:
    with built.runtime.open(built.engine, RunOptions(threads=1)) as run:
        shapes = [run(images[:size]).shape for size in (3, 1, 8, 3)]
    assert shapes == [(3, 5), (1, 5), (8, 5), (3, 5)]


def test_fixed_batch_refuses_another(built: Built, images: Float32Array) -> None:
    with (
        built.runtime.open(built.engine, RunOptions(threads=1, batch=2)) as run,
        pytest.raises(ValueError, match=r"expects \(2, 3, 16, 16\) float32, and \(3, 3, 16, 16\)"),
    ):
        run(images[:3])


def test_output_belongs_to_the_caller(built: Built, images: Float32Array) -> None:
    with built.runtime.open(built.engine, RunOptions(threads=1, batch=2)) as run:
        first = run(images[:2])
        kept = first.copy()
        second = run(images[2:4])
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
        np.testing.assert_array_equal(run(images[2:4]), second)
    np.testing.assert_array_equal(first, 0)


def test_input_is_read_only_to_the_engine(built: Built, images: Float32Array) -> None:
    read_only = images[:4].copy()
    read_only.flags.writeable = False
    with built.runtime.open(built.engine, RunOptions(threads=1)) as run:
        np.testing.assert_array_equal(run(read_only), run(read_only.copy()))
    np.testing.assert_array_equal(read_only, images[:4])


@pytest.mark.parametrize("view", ["transposed", "strided", "reversed", "unaligned"])
def test_memory_layout_does_not_matter(built: Built, images: Float32Array, view: str) -> None:
    few = np.ascontiguousarray(images[:4])
    with built.runtime.open(built.engine, RunOptions(threads=1, batch=4)) as run:
        np.testing.assert_array_equal(run(_view(few, view)), run(few))


def _view(images: Float32Array, view: str) -> Float32Array:
    """Return the same images in another memory layout."""
    copy: Float32Array
    if view == "transposed":
        copy = np.ascontiguousarray(np.moveaxis(images, 1, 3))
        return np.moveaxis(copy, 3, 1)
    if view == "strided":
        copy = np.repeat(images, 2, axis=0)
        return copy[::2]
    if view == "reversed":
        copy = np.ascontiguousarray(images[..., ::-1])
        return copy[..., ::-1]
    raw = np.zeros(images.nbytes + 1, np.uint8)
    copy = raw[1:].view(np.float32).reshape(images.shape)
    copy[...] = images
    return copy


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 16, 16), "float32"),
        ((1, 3, 16, 15), "float32"),
        ((1, 1, 16, 16), "float32"),
        ((1, 3, 16, 16, 1), "float32"),
        ((0, 3, 16, 16), "float32"),
        ((1, 3, 16, 16), "float64"),
        ((1, 3, 16, 16), "uint8"),
        ((1, 3, 16, 16), ">f4"),
    ],
)
def test_wrong_shape_or_dtype(built: Built, shape: tuple[int, ...], dtype: str) -> None:
    with (
        built.runtime.open(built.engine, RunOptions(threads=1)) as run,
        pytest.raises(ValueError, match=r"'input' expects \(batch, 3, 16, 16\) float32, and "),
    ):
        run(np.zeros(shape, dtype))


def test_changed_file_is_not_opened(built: Built, tmp_path: Path) -> None:
    for index, file in enumerate(_files(built.engine)):
        folder = tmp_path / str(index)
        moved = _moved(built.engine, folder)
        changed = _files(moved)[index].path
        data = bytearray(changed.read_bytes())
        data[len(data) // 2] ^= 1
        changed.write_bytes(data)
        with (
            pytest.raises(StaleArtifact, match=file.path.name),
            built.runtime.open(moved, RunOptions(threads=1)),
        ):
            pytest.fail("the block was entered")


def test_moved_engine_opens(built: Built, images: Float32Array, tmp_path: Path) -> None:
    moved = _moved(built.engine, tmp_path / "elsewhere")
    with (
        built.runtime.open(moved, RunOptions(threads=1)) as there,
        built.runtime.open(built.engine, RunOptions(threads=1)) as here,
    ):
        np.testing.assert_array_equal(there(images), here(images))


def test_changed_model_is_not_built(built: Built, tmp_path: Path) -> None:
    changed = tmp_path / built.model.path.name
    changed.write_bytes(built.model.path.read_bytes() + b" ")
    with pytest.raises(StaleArtifact, match="has changed"):
        built.runtime.build(replace(built.model, path=changed), tmp_path, built.case.options)
    assert list(tmp_path.iterdir()) == [changed]


def test_unknown_precision_is_refused(built: Built, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=f"'{built.runtime.name}' does not build int4"):
        built.runtime.build(built.model, tmp_path, BuildOptions("int4"))
    assert list(tmp_path.iterdir()) == []


def test_wrong_graph_kind_is_refused(built: Built, tmp_path: Path) -> None:
    wrong = replace(built.model, kind="onnx/of-another-scheme")
    with pytest.raises(BuildFailed, match=rf"'onnx/of-another-scheme'.*'{built.case.source}'"):
        built.runtime.build(wrong, tmp_path, built.case.options)
    assert list(tmp_path.iterdir()) == []


def test_runner_is_dead_after_the_block(built: Built, images: Float32Array) -> None:
    with built.runtime.open(built.engine, RunOptions(threads=1)) as run:
        run(images[:1])
    with pytest.raises(RuntimeError, match="closed"):
        run(images[:1])


def test_two_open_engines_do_not_disturb_one_another(built: Built, images: Float32Array) -> None:
    with built.runtime.open(built.engine, RunOptions(threads=1, batch=1)) as run:
        alone = [run(images[i : i + 1]) for i in range(4)]
    with (
        built.runtime.open(built.engine, RunOptions(threads=1, batch=1)) as one,
        built.runtime.open(built.engine, RunOptions(threads=2, batch=2)) as two,
    ):
        for i in range(4):
            logits = one(images[i : i + 1])
            pair = two(images[i : i + 2])
            np.testing.assert_array_equal(logits, alone[i])
            np.testing.assert_allclose(pair[:1], alone[i], rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [RunOptions(threads=0), RunOptions(threads=1, batch=0)], ids=str)
def test_zero_is_not_as_many_as_you_like(built: Built, options: RunOptions) -> None:
    with pytest.raises(UsageError, match="at least 1"), built.runtime.open(built.engine, options):
        pytest.fail("the block was entered")


def _files(engine: Engine) -> tuple[Artifact, ...]:
    return (engine.artifact, *engine.companions)


def _moved(engine: Engine, folder: Path) -> Engine:
    folder.mkdir()
    moved = [replace(file, path=Path(shutil.copy(file.path, folder))) for file in _files(engine)]
    return replace(engine, artifact=moved[0], companions=tuple(moved[1:]))


def _cosines(one: Float32Array, other: Float32Array) -> Float32Array:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines: Float32Array = np.sum(one * other, axis=1) / lengths
    return cosines
