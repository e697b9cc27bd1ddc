"""Build a bundle's TensorRT engines on this machine's GPU, and check what only a GPU can show.

    python benchmarks/scripts/gpu_check.py BUNDLE [--test-data DIR] [--backend NAME] --json FILE

NAME is tensorrt or tensorrt_rtx. Each precision is built as `resedge build` does, then run over the test
images. Its predictions are compared with eager's (where torch is installed) and with those of its own graph,
computed on the CPU as it is written: from these it differs by fusion and FP16 arithmetic. Its calls
are timed with and without a CUDA graph, and INT8 against FP16 in interleaved blocks. The JSON has all of it,
the layers and the conditions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from resedge import bundle as bundles
from resedge.artifacts import Engine, JsonValue, encode
from resedge.benchmarks.accuracy import compare
from resedge.benchmarks.conditions import Watch, conditions
from resedge.bundle import Bundle
from resedge.calibration.emulation import emulated
from resedge.engines import BUILT_ON_DEVICE, GRAPHS
from resedge.images import ImageSet
from resedge.jetson import recording
from resedge.pipeline.building import CALLS_PER_BLOCK, CONFIDENCE, build
from resedge.pipeline.datasets import bench_images
from resedge.pipeline.options import BenchOptions, BuildingOptions, available_threads, select
from resedge.pipeline.reporting import Silent
from resedge.pipeline.running import eager_runtime, evaluate, evaluation_batch
from resedge.protocols import Array, BuildOptions, Float32Array, RunOptions
from resedge.runtimes.table import runtime
from resedge.runtimes.tensorrt import TensorRT
from resedge.runtimes.trt_plans import read_record

PRECISIONS = ("fp16", "int8")

Row = dict[str, JsonValue]


class Told(Silent):
    """Prints each stage as a line."""

    def stage(self, name: str, detail: str, *, reused: bool = False) -> None:
        """Print it."""
        print(f"{name}: {detail}", flush=True)


def main() -> None:
    """Build, run, compare, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--test-data", type=Path)
    parser.add_argument("--backend", choices=BUILT_ON_DEVICE, default="tensorrt")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    told, selection = Told(), select([options.backend], PRECISIONS)
    bundle = bundles.read(options.bundle)
    test = bench_images(bundle, BenchOptions(options.bundle, options.test_data), told)
    with Watch(recording.find()) as watch:
        built = build(BuildingOptions(options.bundle, selection), told)
        eager = _eager(bundle, test)
        rows = [_checked(bundle, engine, test, eager) for engine in built.engines]
    document = {
        "model": bundle.manifest.model.name,
        "backend": encode(runtime(options.backend).probe()),
        "images": len(test),
        "eager": "compared with" if eager is not None else "torch is not installed here",
        "conditions": conditions(available_threads(), ("resedge", options.backend, "onnxruntime")),
        **watch.found(),
        "int8_over_fp16": encode(built.gain),
        "engines": rows,
    }
    options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(json.dumps({key: row[key] for key in ("precision", "against_eager", "against_graph_on_cpu")}))


def _eager(bundle: Bundle, test: ImageSet) -> Float32Array | None:
    """Return eager's logits, (N, classes) float32; None where torch is not installed, as on a device."""
    if importlib.util.find_spec("torch") is None:
        return None
    eager, source = eager_runtime("contiguous"), bundle.file("reference/source.json")
    engine = eager.build(source, source.path.parent, BuildOptions("fp32"))
    with eager.open(engine, RunOptions(available_threads())) as run:
        return evaluate(run, test, bundle.manifest.preprocessing, Silent(), "eager")


def _checked(bundle: Bundle, engine: Engine, test: ImageSet, eager: Float32Array | None) -> Row:
    """Compare one engine's answers with eager's and its graph's, time it, and read its layers."""
    outside, library = bundle.manifest.outside, runtime(engine.runtime)
    assert isinstance(library, TensorRT)
    with library.open(engine, RunOptions(1)) as run:
        logits = evaluate(run, test, outside, Silent(), engine.precision, evaluation_batch(engine))
    graph = bundle.file(GRAPHS[engine.runtime, engine.precision])
    on_cpu = evaluate(emulated(graph, available_threads()), test, outside, Silent(), "on the CPU")
    one = test.select([0]).all_inputs(outside)
    times = {
        name: _times(library, engine, one, cuda_graph=cuda_graph)
        for name, cuda_graph in (("calls", False), ("with_cuda_graph", True))
    }
    (beside,) = engine.companions
    record = read_record(beside.read(), str(beside.path))
    return {
        "precision": engine.precision,
        "against_eager": None if eager is None else _compared(eager, logits, test),
        "against_graph_on_cpu": _compared(on_cpu, logits, test),
        "graph_on_cpu_against_eager": None if eager is None else _compared(eager, on_cpu, test),
        "times_ms": times,
        "layers": encode(record.layers),
        "record": encode(record),
    }


def _compared(reference: Float32Array, given: Float32Array, test: ImageSet) -> Row:
    found = encode(compare(reference, given, test.labels, CONFIDENCE))
    assert isinstance(found, Mapping)
    return {**found, "differ": int((reference.argmax(axis=1) != given.argmax(axis=1)).sum())}


def _times(library: TensorRT, engine: Engine, image: Array, *, cuda_graph: bool) -> Row:
    """Return the median of each span at batch 1, and the longest and shortest GPU time, in milliseconds."""
    timed = library.time(engine, RunOptions(1, 1, cuda_graph), image, 20 * CALLS_PER_BLOCK)
    spans = np.array([call.gpu_ms for call in timed.calls])
    return {
        **asdict(timed.median),
        "gpu_least_ms": float(spans.min()),
        "gpu_most_ms": float(spans.max()),
        "calls": len(timed.calls),
        "semantics": timed.semantics,
    }


if __name__ == "__main__":
    main()
