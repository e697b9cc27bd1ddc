"""Make a copy of a bundle whose OpenVINO engine has more to compute, to see whether a comparison finds it.

    python benchmarks/scripts/slow_down.py BUNDLE OUT --engine openvino:int8 --by 0.10

A convolution of the input is added, whose mean reaches the logits with a weight of 1e-12: no prediction
changes. Its size is found by timing both engines in interleaved blocks, and what was reached is printed.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from resedge import bundle as bundles
from resedge.artifacts import Artifact, Engine, sha256_file
from resedge.benchmarks.latency import log_medians
from resedge.benchmarks.rounds import measure
from resedge.pipeline.options import available_threads
from resedge.protocols import NoProgress, RunOptions
from resedge.runtimes.table import runtime

WEIGHT: Final = 1e-12
KERNEL: Final = 3
START: Final = 64  # channels
STEPS: Final = 6
CLOSE: Final = 0.01


def slowed(engine: Engine, channels: int, out: Path) -> Engine:
    """Write the engine with a convolution of so many channels beside it; return it as an engine."""
    import openvino as ov  # type: ignore[import-untyped]
    from openvino import opset13 as ops

    model: Any = ov.Core().read_model(engine.artifact.path)
    image = model.input(0)
    width = image.get_partial_shape()[1].get_length()
    kernel = np.random.default_rng(0).normal(0, 0.1, (channels, width, KERNEL, KERNEL)).astype(np.float32)
    pad = [KERNEL // 2] * 2
    features = ops.convolution(image, ops.constant(kernel), [1, 1], pad, pad, [1, 1])
    mean = ops.reduce_mean(features, ops.constant(np.array([1, 2, 3])), keep_dims=False)
    column = ops.unsqueeze(ops.multiply(mean, ops.constant(np.float32(WEIGHT))), ops.constant(np.int64(1)))
    result = model.get_results()[0]
    logits = result.input_value(0)
    changed = ops.add(logits, column)
    names = logits.get_names()
    logits.set_names(set())
    changed.output(0).set_names(names)
    result.input(0).replace_source_output(changed.output(0))
    ov.save_model(model, out, compress_to_fp16=False)
    files = [replace(a, path=out.with_suffix(a.path.suffix)) for a in (engine.artifact, *engine.companions)]
    first, *others = [replace(a, sha256=sha256_file(a.path)) for a in files]
    return replace(engine, artifact=first, companions=tuple(others))


def times_slower(engine: Engine, other: Engine, seed: int) -> float:
    """Return the time of `other` over that of `engine`, from interleaved blocks at batch 1."""
    spec = engine.artifact.inputs[0]
    image = np.zeros((1, *(int(size) for size in spec.shape[1:])), np.float32)
    opener, options = runtime(engine.runtime), RunOptions(available_threads(), 1)
    with opener.open(engine, options) as first, opener.open(other, options) as second:
        arms = {"first": lambda: first(image), "second": lambda: second(image)}
        samples = measure(
            arms, "first", rounds=30, block_seconds=0.05, min_calls=5, seed=seed, progress=NoProgress()
        )
    return math.exp(float(np.median(log_medians(samples, "second") - log_medians(samples, "first"))))


def main() -> None:
    """Find the size, and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--engine", default="openvino:int8")
    parser.add_argument("--by", type=float, default=0.10)
    options = parser.parse_args()

    bundle = bundles.read(options.bundle)
    name, precision = options.engine.split(":")
    engine = bundle.engine(name, precision)
    if engine is None or name != "openvino":
        raise SystemExit(f"{options.bundle} has no OpenVINO engine {options.engine}.")
    with tempfile.TemporaryDirectory() as folder:
        channels, reached = START, 1.0
        for step in range(STEPS):
            other = slowed(engine, channels, Path(folder) / f"{step}.xml")
            reached = times_slower(engine, other, step)
            print(f"{channels} channels: {100 * (reached - 1):+.1f} %")
            if abs(reached - 1 - options.by) <= CLOSE:
                break
            channels = max(1, round(channels * min(max(options.by / max(reached - 1, 0.005), 0.25), 4.0)))
        publish(bundle, engine, other, options.out)
    print(f"{options.out}: {options.engine} takes {reached:.3f} times as long")


def publish(bundle: bundles.Bundle, engine: Engine, other: Engine, out: Path) -> None:
    """Write the bundle with the other engine in the place of its own."""
    sources = {file.path.as_posix(): bundle.path / file.path for file in bundle.manifest.files}
    changed: dict[str, Artifact] = {}
    for old, new in zip(
        (engine.artifact, *engine.companions), (other.artifact, *other.companions), strict=True
    ):
        place = old.path.relative_to(bundle.path)
        sources[place.as_posix()] = new.path
        changed[place.as_posix()] = replace(new, path=place)
    manifest = bundle.manifest
    bundles.publish(
        replace(
            manifest,
            files=tuple(changed.get(file.path.as_posix(), file) for file in manifest.files),
            engines=tuple(
                replace(
                    known,
                    artifact=changed.get(known.artifact.path.as_posix(), known.artifact),
                    companions=tuple(changed.get(a.path.as_posix(), a) for a in known.companions),
                )
                for known in manifest.engines
            ),
        ),
        sources,
        out,
    )


if __name__ == "__main__":
    main()
