"""What TensorRT for RTX makes of whole networks: parsed, built, every convolution in the type it should have.

Two networks by default; those of ImageNet's size are in the slow suite.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from resedge import bundle as bundles
from resedge.artifacts import Artifact, sha256_file
from resedge.protocols import Float32Array, NoProgress
from resedge.runtimes.rtx_preflight import preflight

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job

pytest.importorskip("tensorrt_rtx", minversion="1.7.1")

HERE = Path(__file__).parent
PEERS = HERE.parents[1] / "benchmarks" / "peers" / "networks.py"
KINDS = {"fp16": "onnx/fp16", "int8": "onnx/int8.tensorrt"}
BATCHES = {"dynamic": (1, 8, 32), "static": (1, 1, 1)}
TARGETS = ("8.6", "12.0")
# A network, the height and width of its images, and its convolutions.
NETWORKS = (
    ("notebook", 28, 9),
    ("resnet18", 64, 20),
    pytest.param("resnet18", 224, 20, marks=pytest.mark.slow),
    pytest.param("resnet50", 224, 53, marks=pytest.mark.slow),
    pytest.param("resnext50", 224, 53, marks=pytest.mark.slow),
    pytest.param("seresnet50", 224, 85, marks=pytest.mark.slow),
)

Graphs = Mapping[str, Artifact]


@pytest.fixture(scope="module")
def graphs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Graphs]:
    """Return a network's strongly typed graphs by precision, made by the product's own rooms."""
    made: dict[tuple[str, int], Graphs] = {}

    def make(name: str, size: int) -> Graphs:
        if (name, size) not in made:
            if name == "notebook":
                made[name, size] = of_bundle(request.getfixturevalue("job"))
            else:
                made[name, size] = write_graphs(name, size, tmp_path_factory.mktemp(name))
        return made[name, size]

    return make


def of_bundle(job: Job) -> Graphs:
    bundle = bundles.read(job.bundle)
    return {"fp16": bundle.file("onnx/fp16.onnx"), "int8": bundle.file("onnx/int8.tensorrt.onnx")}


def write_graphs(name: str, size: int, folder: Path) -> Graphs:
    from resedge.calibration.histograms import collect
    from resedge.calibration.placement import place
    from resedge.calibration.ranges import minmax
    from resedge.export.fold import fold
    from resedge.export.half import write_half
    from resedge.export.onnxfile import write_onnx
    from resedge.export.trace import trace

    shape = (3, size, size)
    images: Float32Array = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    fp32 = write_onnx(fold(trace(network(name), shape), images).graph, shape, folder / "fp32.onnx")
    histograms = collect(fp32, [images], NoProgress(), 1)
    ranges = minmax(histograms, graph_sha256=fp32.sha256, dataset_sha256="0" * 64, images=len(images))
    placed = place(fp32, ranges, "tensorrt", folder / "placed.onnx")
    return {
        "fp16": write_half(fp32, folder / "fp16.onnx"),
        "int8": write_half(placed, folder / "int8.onnx"),
    }


def network(name: str) -> Any:  # noqa: ANN401 - a torch module
    untrained = runpy.run_path(str(PEERS))["untrained"]
    if name == "seresnet50":
        return runpy.run_path(str(HERE / "squeezed.py"))["with_gates"](untrained("resnet50"))
    return untrained(name)


def with_fixed_batch(graph: Artifact, folder: Path) -> Artifact:
    """Return the graph for one image at a time."""
    model = onnx.load(graph.path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    path = folder / f"static-{graph.path.name}"
    onnx.save(model, path)
    return Artifact(path, sha256_file(path), graph.kind)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize(("name", "size", "convolutions"), NETWORKS)
def test_it_is_built_with_every_convolution_in_its_type(
    graphs: Callable[[str, int], Graphs],
    name: str,
    size: int,
    convolutions: int,
    precision: str,
    batch: str,
    target: str,
    tmp_path: Path,
) -> None:
    graph = graphs(name, size)[precision]
    assert graph.kind == KINDS[precision]
    if batch == "static":
        graph = with_fixed_batch(graph, tmp_path)
    found = preflight(graph, BATCHES[batch], target)
    assert found.reasons == ()
    assert found.layers is not None
    assert found.layers.by_type == {precision: convolutions}
    assert found.layers.fell_back == ()
