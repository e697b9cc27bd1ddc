"""Compare where resedge and NVIDIA ModelOpt put Q/DQ pairs for TensorRT, site by site.

    python benchmarks/peers/placement.py --modelopt-python P --json FILE [NETWORK ...]

P is the python of an environment with requirements-modelopt.txt. Each network is written to ONNX as
`resedge export` writes it; both tools quantise that file, calibrated on the same seeded noise, since the
placement does not depend on the images. ModelOpt runs twice: as it comes, and with its detection of
products with a vector (GEMV) off, which otherwise leaves every classifier float at batch 1.

A site is an input of a node that reads what a DequantizeLinear gives, directly or through nodes that
only reshape. The JSON has, for each network and setting, how many sites both have and which only one
has, the grids of weights and activations and, where tensorrt_rtx is installed, the layers that its
builder makes of each graph for compute capability 8.6.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from networks import untrained  # type: ignore[import-not-found]  # beside this script, not packaged
from prepare import model_of  # type: ignore[import-not-found]

from resedge.artifacts import Artifact, JsonValue
from resedge.benchmarks.conditions import library_versions
from resedge.calibration.graph import is_constant, name_of, read_graph
from resedge.calibration.histograms import collect
from resedge.calibration.placement import place
from resedge.calibration.ranges import minmax
from resedge.calibration.schemes import weight_axis
from resedge.export.fold import fold
from resedge.export.onnxfile import MODULE_KEY, write_onnx
from resedge.export.trace import trace
from resedge.protocols import NoProgress

if TYPE_CHECKING:
    import onnx_ir as ir

Key = tuple[str, int]
"""A site: the name of its node's output, which neither tool changes, and the number of the input."""

NETWORKS = ("notebook", "resnet18", "resnet50", "resnext50")
SETTINGS = {"as it comes": {}, "GEMV detection off": {"enable_gemv_detection_for_trt": False}}
RTX_LAYERS = Path(__file__).resolve().parents[2] / "tests" / "calibration" / "rtx_layers.py"
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_RESHAPES = frozenset({"Flatten", "Reshape"})
_MODELOPT = """
import importlib.metadata, json, sys
import numpy
from modelopt.onnx.quantization import quantize

model, images, out, options = sys.argv[1:]
quantize(
    model, quantize_mode="int8", calibration_data=numpy.load(images), calibration_method="max",
    calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=out, log_level="ERROR",
    **json.loads(options),
)
names = ("nvidia-modelopt", "onnx", "onnx-graphsurgeon", "onnxruntime", "numpy", "torch")
print(json.dumps({name: importlib.metadata.version(name) for name in names}))
"""


def write_network(name: str, folder: Path) -> tuple[Artifact, np.ndarray]:
    """Write a network's FP32 file, and return it with the images to calibrate on."""
    count, side = (128, 28) if name == "notebook" else (4, 224)  # a batch, for the notebook's BatchNorms
    images = np.random.default_rng(0).standard_normal((count, 3, side, side)).astype(np.float32)
    model: torch.nn.Module = model_of(name, images) if name == "notebook" else untrained(name)
    folded = fold(trace(model, images.shape[1:]), images)
    return write_onnx(folded.graph, images.shape[1:], folder / f"{name}.onnx"), images


def quantise_with_resedge(fp32: Artifact, images: np.ndarray, out: Path) -> ir.Graph:
    """Place pairs by the scheme `tensorrt`, in FP32 surroundings."""
    histograms = collect(fp32, [images], NoProgress(), 1)
    ranges = minmax(histograms, graph_sha256=fp32.sha256, dataset_sha256="noise", images=len(images))
    placed = place(fp32, ranges, "tensorrt", out)
    return read_graph(placed.read(), str(out)).graph


def quantise_with_modelopt(
    python: str, fp32: Artifact, images: np.ndarray, out: Path, options: Mapping[str, bool]
) -> tuple[ir.Graph, dict[str, str]]:
    """Run ModelOpt in its environment; return its graph, and the versions of what made it."""
    np.save(out.with_suffix(".npy"), images)
    arguments = (str(fp32.path), str(out.with_suffix(".npy")), str(out), json.dumps(options))
    # ModelOpt takes an Add's nearest ancestor from a set of names: with a random seed, ties are random.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [python, "-c", _MODELOPT, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    versions: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    return read_graph(out.read_bytes(), str(out)).graph, versions


def quantised_inputs(graph: ir.Graph) -> dict[Key, tuple[ir.Node, ir.Node]]:
    """Return every site of a graph: the node that reads, and the DequantizeLinear that it reads."""
    found = {}
    for node in graph:
        if node.op_type in _PAIR | _RESHAPES:
            continue
        for index, value in enumerate(node.inputs):
            producer = _producer_before_reshaping(value)
            if producer is not None and producer.op_type == "DequantizeLinear":
                found[name_of(node.outputs[0]), index] = (node, producer)
    return found


def _producer_before_reshaping(value: ir.Value | None) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in _RESHAPES:
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer


def grids(sites: Iterable[tuple[ir.Node, ir.Node]]) -> dict[str, JsonValue]:
    """Count the quantised tensors by what their scales and zero points are."""
    weights, activations = Counter[str](), Counter[str]()
    for reader, dequantise in {dequantise: (reader, dequantise) for reader, dequantise in sites}.values():
        source = _before_pair(dequantise)
        counts = weights if is_constant(source) else activations
        counts["tensors"] += 1
        counts[_scales_of(reader, dequantise, source)] += 1
        zero_point = _numbers(dequantise, 2)
        zero = zero_point is not None and zero_point.dtype == np.int8 and not zero_point.any()
        counts["int8 with zero point 0" if zero else "another zero point"] += 1
    return {"weights": dict(weights), "activations": dict(activations)}


def _before_pair(dequantise: ir.Node) -> ir.Value:
    """Return the tensor that a pair quantises, or the integers of a DequantizeLinear alone."""
    value = dequantise.inputs[0]
    assert value is not None  # ONNX demands it
    quantise = value.producer()
    if quantise is None or quantise.op_type != "QuantizeLinear":
        return value
    assert quantise.inputs[0] is not None
    return quantise.inputs[0]


def _scales_of(reader: ir.Node, dequantise: ir.Node, source: ir.Value) -> str:
    scale, numbers = _numbers(dequantise, 1), source.const_value
    if scale is None:
        return "scale not in the file"
    if scale.ndim == 0:
        return "one scale"
    axis = dequantise.attributes.get_int("axis", 1)
    fits = numbers is not None and axis == weight_axis(reader) and len(scale) == numbers.shape[axis]
    return "a scale for each output channel" if fits else "scales along another axis"


def _numbers(node: ir.Node, index: int) -> np.ndarray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def compare(fp32: ir.Graph, ours: ir.Graph, theirs: ir.Graph) -> dict[str, JsonValue]:
    """Return the sites of both graphs, and those of one alone by module, operator and input."""
    if _operators(ours) != _operators(theirs):
        sys.exit("ModelOpt changed the graph's operators; sites of the two graphs cannot be matched.")
    nodes = {name_of(node.outputs[0]): node for node in fp32}
    our_sites, their_sites = quantised_inputs(ours).keys(), quantised_inputs(theirs).keys()
    return {
        "sites in both": len(our_sites & their_sites),
        "only resedge": _described(nodes, our_sites - their_sites),
        "only ModelOpt": _described(nodes, their_sites - our_sites),
    }


def _operators(graph: ir.Graph) -> dict[str, str]:
    return {name_of(node.outputs[0]): node.op_type for node in graph if node.op_type not in _PAIR}


def _described(nodes: Mapping[str, ir.Node], sites: Iterable[Key]) -> list[JsonValue]:
    described: list[JsonValue] = []
    for output, index in sorted(sites):
        node = nodes[output]
        described.append(
            {
                "node": node.name,
                "module": node.metadata_props.get(MODULE_KEY, ""),
                "operator": node.op_type,
                "input": index,
                "tensor": name_of(node.inputs[index]),
            }
        )
    return described


def rtx_layers(model: Path) -> dict[str, int] | None:
    """Count the layers that TensorRT-RTX builds by type and input types; None without tensorrt_rtx."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return None
    done = subprocess.run([sys.executable, RTX_LAYERS, model], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"TensorRT-RTX refuses {model.name}:\n{done.stderr}")
    # Layers without inputs only synchronise streams.
    counts = Counter(f"{kind} {'+'.join(inputs)}" for kind, inputs in json.loads(done.stdout) if inputs)
    return dict(sorted(counts.items()))


def report(name: str, python: str, folder: Path) -> tuple[dict[str, JsonValue], dict[str, str]]:
    """Return all that the JSON says of one network, and the versions in ModelOpt's environment."""
    fp32, images = write_network(name, folder)
    graph = read_graph(fp32.read(), str(fp32.path)).graph
    ours_at = folder / f"{name}.resedge.onnx"
    ours = quantise_with_resedge(fp32, images, ours_at)
    row: dict[str, JsonValue] = {"resedge": _summary(ours, ours_at)}
    versions: dict[str, str] = {}
    for setting, options in SETTINGS.items():
        theirs_at = folder / f"{name}.modelopt.onnx"
        theirs, versions = quantise_with_modelopt(python, fp32, images, theirs_at, options)
        row[f"ModelOpt, {setting}"] = compare(graph, ours, theirs) | _summary(theirs, theirs_at)
    return row, versions


def _summary(graph: ir.Graph, path: Path) -> dict[str, JsonValue]:
    sites = quantised_inputs(graph)
    layers: JsonValue = rtx_layers(path)
    return {"sites": len(sites), **grids(sites.values()), "TensorRT-RTX layers": layers}


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--modelopt-python", required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows: dict[str, JsonValue] = {}
    libraries = ("resedge", "numpy", "onnx", "onnx-ir", "onnxruntime", "tensorrt-rtx-cu13", "torch")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            rows[name], versions = report(name, options.modelopt_python, Path(folder))
            document = {
                "calibration": "minmax of seeded normal noise, FP32 around the pairs",
                "versions": {"resedge": dict(library_versions(libraries)), "ModelOpt": versions},
                "networks": rows,
            }
            options.json.write_text(json.dumps(document, indent=2) + "\n")
            print(name, json.dumps(rows[name]), flush=True)


if __name__ == "__main__":
    main()
