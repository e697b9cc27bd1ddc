"""`resedge build` on doubles of TensorRT, CUDA and a GPU: what lies where, what is said, what is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

import resedge
from resedge import bundle as bundles
from resedge import files
from resedge.artifacts import Latency, Relation
from resedge.cli import main
from resedge.errors import BuildFailed, InputRefused, RuntimeUnavailable, StaleArtifact, UsageError
from resedge.pipeline import building, local, measuring
from resedge.pipeline.building import BuiltHere, build, gain_sentence
from resedge.pipeline.local import engine_here, engines_folder
from resedge.pipeline.options import BuildingOptions, select
from resedge.pipeline.reporting import Silent

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job

Device = Callable[..., Any]


class Heard(Silent):
    """Keeps all that was said."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def stage(self, name: str, detail: str, *, reused: bool = False) -> None:
        self.stages.append(f"{name} {detail}")

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured on a double is no speed, so it is measured for as short as it can be."""
    monkeypatch.setattr(building, "ROUNDS", 6)
    monkeypatch.setattr(building, "CALLS_PER_BLOCK", 1)
    monkeypatch.setattr(building, "BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(building, "WARM_SECONDS", 1e-3)


def options(job: Job, precisions: tuple[str, ...] = ("fp16", "int8"), **more: Any) -> BuildingOptions:  # noqa: ANN401
    return BuildingOptions(job.bundle, select(["tensorrt"], precisions), **more)


def built(job: Job, heard: Heard | None = None, **more: Any) -> BuiltHere:  # noqa: ANN401
    return build(options(job, **more), heard or Heard())


def test_engines_lie_in_the_state_folder_and_the_bundle_is_as_it_was(
    job: Job, device: Device, empty_home: Path
) -> None:
    world, heard = device(), Heard()
    done = built(job, heard)
    bundle = bundles.read(job.bundle)
    bundles.check(bundle)
    assert done.folder == engines_folder(bundle)
    assert done.folder.is_relative_to(empty_home / "state" / "bundles")
    names = {f"tensorrt-{p}{suffix}" for p in ("fp16", "int8") for suffix in (".plan", ".json")}
    assert {path.name for path in done.folder.iterdir()} == names
    assert [path.name for path in (empty_home / "state" / "timing").iterdir()] == [
        "tensorrt-10.3.0-Orin-8.7-16-CUDA-12.6.timing"
    ]
    assert not world.gpu.live
    assert [line.split()[0] for line in heard.stages] == [
        "build",
        "build",
        "verify",
        "time",
        "verify",
        "time",
    ]
    assert "convolutions" in heard.stages[1]
    assert "in int8" in heard.stages[1]
    assert "golden images" in heard.stages[2]
    assert "host to device 0.500, GPU 2.000, device to host 0.500" in heard.stages[3]
    assert any("trtexec of TensorRT 11" in note for note in heard.notes)
    assert done.gain is not None
    assert any(gain_sentence(done.gain) in said for said in (heard.notes, heard.warnings))


def test_what_was_built_is_counted_and_removed(job: Job, device: Device, empty_home: Path) -> None:
    device()
    folder = built(job, precisions=("int8",)).folder
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert local.usage() == (1, size)
    shown = CliRunner().invoke(main, ["cache", "show"])
    assert f"engines built of 1 bundles, {size / 1e6:.1f} MB" in shown.output
    with files.locked_folder(folder, seconds=0):
        assert local.clear() == 0
    cleared = CliRunner().invoke(main, ["cache", "clear", "--engines"])
    assert f"engines of 1 bundles removed from {empty_home / 'state'}" in cleared.output.replace("\n", "")
    assert local.usage() == (0, 0)
    assert not folder.exists()


@pytest.mark.usefixtures("empty_home")
def test_one_precision_has_nothing_to_be_compared_with(job: Job, device: Device) -> None:
    device()
    done = built(job, precisions=("int8",))
    assert [engine.precision for engine in done.engines] == ["int8"]
    assert done.gain is None
    assert engine_here(bundles.read(job.bundle), ("tensorrt", "fp16")) is None


@pytest.mark.usefixtures("empty_home")
def test_layers_that_fell_back_and_small_boards_are_said(job: Job, device: Device) -> None:
    world, heard = device(total=8 << 30, free=3 << 30), Heard()
    graph = bundles.read(job.bundle).file("onnx/int8.tensorrt.onnx")
    first = _first_convolution(graph.path)
    world.wide = frozenset({first})
    built(job, heard, precisions=("int8",))
    assert any(line.endswith("convolutions do not run in INT8 on this device") for line in heard.warnings)
    assert f"INT8 in the graph and not in the plan: {first}" in heard.stages[0]
    assert any("little memory" in note for note in heard.notes)


def _first_convolution(path: Path) -> str:
    import onnx

    return next(str(node.name) for node in onnx.load(path).graph.node if node.op_type == "Conv")


@pytest.mark.usefixtures("empty_home")
def test_a_session_finds_what_was_built(job: Job, device: Device) -> None:
    device()
    frames = np.zeros((3, 28, 28, 3), np.uint8)
    with pytest.raises(UsageError, match=r"has no tensorrt:int8 engine\. It has: .*`resedge build`"):
        resedge.open(job.bundle, "tensorrt:int8")
    built(job, precisions=("int8",))
    with resedge.open(job.bundle, "tensorrt:int8", threads=1) as session:
        here = session.predict(frames).logits
    with resedge.open(job.bundle, "onnxruntime:fp32", threads=1) as session:
        reference = session.predict(frames).logits
    np.testing.assert_array_equal(here.argmax(1), reference.argmax(1))


@pytest.mark.usefixtures("empty_home")
def test_plan_of_another_version_is_refused_with_the_cure(job: Job, device: Device) -> None:
    device("tensorrt-10.16.1.11")
    built(job, precisions=("fp16",))
    device("tensorrt-10.3.0")
    with pytest.raises(BuildFailed) as caught:
        resedge.open(job.bundle, "tensorrt:fp16")
    assert "built with tensorrt 10.16.1.11 for Orin" in caught.value.what
    assert "this device has tensorrt 10.3.0" in caught.value.what
    assert "resedge build" in caught.value.cure


@pytest.mark.usefixtures("empty_home")
def test_record_of_another_graph_and_lone_plan(job: Job, device: Device) -> None:
    device()
    folder = built(job).folder
    bundle = bundles.read(job.bundle)
    record = folder / "tensorrt-fp16.json"
    record.write_text((folder / "tensorrt-int8.json").read_text())
    with pytest.raises(StaleArtifact, match="was built from another graph"):
        engine_here(bundle, ("tensorrt", "fp16"))
    record.unlink()
    assert engine_here(bundle, ("tensorrt", "fp16")) is None
    assert engine_here(bundle, ("tensorrt", "int8")) is not None
    assert engine_here(bundle, ("openvino", "int8")) == bundle.engine("openvino", "int8")


@pytest.mark.usefixtures("empty_home")
def test_profile_without_single_images(job: Job, device: Device) -> None:
    device()
    heard = Heard()
    done = built(job, heard, batch_range=(4, 4, 8))
    assert any("these take 4 or more" in line for line in heard.warnings)
    assert all("verify" not in line for line in heard.stages)
    assert all("batch 4:" in line for line in heard.stages if line.startswith("time"))
    with pytest.raises(BuildFailed, match="takes 4 images at once and no fewer"):
        measuring.golden_agreement(
            done.engines[0], bundles.read(job.bundle).file("golden/golden.safetensors"), 1
        )


@pytest.mark.usefixtures("empty_home")
def test_small_profile_is_evaluated_in_small_batches(job: Job, device: Device) -> None:
    world = device()
    built(job, precisions=("fp16",), batch_range=(1, 2, 3))
    assert {shape[0] for shape in world.shapes} <= {1, 2, 3}


@pytest.mark.usefixtures("empty_home")
def test_two_builds_at_once(job: Job, device: Device) -> None:
    device()
    folder = engines_folder(bundles.read(job.bundle))
    folder.mkdir(parents=True)
    with files.locked_folder(folder, 1), pytest.raises(InputRefused, match="another process is building"):
        built(job)


@pytest.mark.parametrize(
    ("relation", "words"),
    [
        ("faster", "INT8 runs at 1.10 times FP16's speed (1.05 to 1.20) on this device"),
        ("inconclusive", "is not settled: 1.10 times"),
        ("equivalent", "INT8 brings nothing on this device, use FP16: 1.10 times"),
        ("not slower", "INT8 brings nothing on this device, use FP16"),
        ("slower", "INT8 brings nothing on this device, use FP16"),
    ],
)
def test_what_int8_gains(relation: Relation, words: str) -> None:
    assert words in gain_sentence(Latency(1.0, 1.1, 1.1, 1.05, 1.2, 1.1, relation, 20, 20))


class TestCommand:
    @pytest.mark.usefixtures("empty_home")
    def test_it_builds_and_says_where(self, job: Job, device: Device) -> None:
        device()
        result = CliRunner().invoke(
            main, ["build", str(job.bundle), "--precision", "fp16", "--batch-range", "1,2,4"]
        )
        assert result.exit_code == 0, result.output
        assert "1 engines in" in result.output.replace("\n", " ")

    @pytest.mark.usefixtures("empty_home")
    def test_without_tensorrt(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "tensorrt", None)
        result = CliRunner().invoke(main, ["build", str(job.bundle)])
        assert result.exit_code == 4
        assert "runtime 'tensorrt' is not installed" in result.stderr

    @pytest.mark.usefixtures("empty_home")
    def test_dla(self, job: Job, device: Device) -> None:
        device()
        result = CliRunner().invoke(main, ["build", str(job.bundle), "--dla"])
        assert result.exit_code == RuntimeUnavailable.exit_code
        assert "DLA" in result.stderr

    def test_precision_that_it_lacks(self, job: Job) -> None:
        result = CliRunner().invoke(main, ["build", str(job.bundle), "--precision", "fp32"])
        assert result.exit_code == UsageError.exit_code


@pytest.mark.usefixtures("empty_home")
def test_options_are_passed_on(job: Job, device: Device) -> None:
    world = device()
    built(job, precisions=("fp16",), optimization_level=4)
    assert world.settings["builder_optimization_level"] == 4
