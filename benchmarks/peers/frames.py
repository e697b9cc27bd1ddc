"""Measure what INT8 engines gain by taking frames: prepared outside, in the graph, in the first convolution.

    python benchmarks/peers/frames.py --json FILE [--threads 1,2] [--rounds 20] [--processor-time] [CASE ...]

A case is the begin of a network (its first convolution, Relu, pooling, a classifier), so that what differs is
not drowned, or a whole one. Weights and frames are seeded: times do not depend on them. Each is quantised by
the product's own rooms, calibrated on the frames that are timed, and built for OpenVINO and ONNX Runtime. The
arms of a runtime are timed in one process in interleaved rounds, batch 1, from a frame in memory to logits:

    outside    `images.prepare` in NumPy, then the engine that takes float32
    graph      the engine that prepares frames with operators of its own
    channel    mean and standard deviation in the first convolution, the border by a further channel of pixels
    map        the same, the border by a constant map that is added behind the convolution

The JSON has each arm's median, and the ratio of its time to that of "graph" with its 95 % interval. Where
other programs take the machine's time, --processor-time counts this process's own; with one thread, and the
machine to itself, both are the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import torch
from networks import untrained  # type: ignore[import-not-found]  # beside this script, not packaged
from onnx import helper, numpy_helper
from torch import nn

from resedge import machine
from resedge.artifacts import Artifact, Preprocessing, sha256_file
from resedge.benchmarks.conditions import conditions
from resedge.benchmarks.intervals import ratio_interval
from resedge.benchmarks.rounds import measure
from resedge.calibration.histograms import collect
from resedge.calibration.placement import place
from resedge.calibration.ranges import minmax
from resedge.export.fold import fold
from resedge.export.frames import take_frames
from resedge.export.notebook import ResNet
from resedge.export.onnxfile import write_onnx
from resedge.export.pixels import fold_pixels
from resedge.export.trace import trace
from resedge.images import Frames, prepare
from resedge.protocols import BuildOptions, NoProgress, Runner, RunOptions
from resedge.runtimes.table import runtime

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RUNTIMES = ("openvino", "onnxruntime")
ARMS = ("outside", "graph", "channel", "map")
FRAMES = 8
CONFIDENCE = 0.95


def stem(width: int, kernel: int, stride: int, padding: int) -> Callable[[], nn.Module]:
    """Return what makes the begin of a network."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        first = nn.Conv2d(3, width, kernel, stride, padding)
        return nn.Sequential(
            first, nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
        )

    return make


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "7x7/2, 64 wide, 224x224": (stem(64, 7, 2, 3), (224, 224)),
    "7x7/2, 64 wide, 96x160": (stem(64, 7, 2, 3), (96, 160)),
    "3x3/2, 32 wide, 224x224": (stem(32, 3, 2, 1), (224, 224)),
    "3x3, 64 wide, 64x64": (stem(64, 3, 1, 1), (64, 64)),
    "3x3, 16 wide, 32x32": (stem(16, 3, 1, 1), (32, 32)),
    "3x3, 64 wide, 28x28": (stem(64, 3, 1, 1), (28, 28)),
    "4x4/4 unpadded, 64 wide, 224x224": (stem(64, 4, 4, 0), (224, 224)),
    "3x3 unpadded, 16 wide, 32x32": (stem(16, 3, 1, 0), (32, 32)),
    "notebook": (ResNet, (28, 28)),
    "resnet18": (lambda: untrained("resnet18"), (224, 224)),
    "resnet50": (lambda: untrained("resnet50"), (224, 224)),
}


@dataclass(frozen=True)
class Case:
    """A network's INT8 graphs for CPUs by arm, and frames that they are given."""

    graphs: Mapping[str, Artifact]
    taken: Preprocessing
    frames: Frames


def case_of(make: Callable[[], nn.Module], size: tuple[int, int], folder: Path) -> Case:
    """Return the graphs of a network."""
    taken = Preprocessing(*size, MEAN, STD)
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, *size, 3), np.uint8)
    prepared = prepare(frames, taken)
    folded = fold(trace(make().eval(), taken.input_shape), prepared[:2]).graph
    outside = write_onnx(folded, taken.input_shape, folder / "outside.onnx")
    inside = take_frames(outside, taken, folder / "graph.onnx")
    channel = fold_pixels(inside, taken, frames[:2], folder / "channel.onnx").graph
    if channel is None:
        raise SystemExit("the normalisation cannot be folded")
    made = {"graph": inside, "channel": channel}
    if (mapped := with_map(channel, folder / "map.onnx")) is not None:
        made["map"] = mapped
    graphs = {"outside": quantised(outside, prepared, folder / "outside.int8.onnx")}
    graphs |= {arm: quantised(graph, frames, folder / f"{arm}.int8.onnx") for arm, graph in made.items()}
    return Case(graphs, taken, frames)


def with_map(channel: Artifact, out: Path) -> Artifact | None:
    """Put a constant map behind the convolution in the place of the further channel; None if it has none.

    The map is what the convolution makes of that channel alone.
    """
    model = onnx.load(channel.path)
    graph = model.graph
    pad = next((node for node in graph.node if node.op_type == "Pad"), None)
    if pad is None:
        return None
    constants = {tensor.name: tensor for tensor in graph.initializer}
    conv = next(node for node in graph.node if node.op_type == "Conv")
    weight = numpy_helper.to_array(constants[conv.input[1]])
    inside = float(numpy_helper.to_array(constants[pad.input[2]]))
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in conv.attribute}
    height, width = channel.inputs[0].shape[1:3]
    top, left, bottom, right = settings["pads"]
    image = nn.functional.pad(torch.full((1, 1, int(height), int(width)), inside), (left, right, top, bottom))
    border = nn.functional.conv2d(image, torch.tensor(weight[:, -1:]), stride=settings["strides"])
    constants[conv.input[1]].CopyFrom(numpy_helper.from_array(weight[:, :-1].copy(), conv.input[1]))
    graph.initializer.append(numpy_helper.from_array(border.numpy(), "border"))
    following = next(node for node in graph.node if pad.output[0] in node.input)
    following.input[0] = pad.input[0]
    tensor, conv.output[0] = conv.output[0], "before.border"
    place_of_conv = list(graph.node).index(conv)
    graph.node.insert(
        place_of_conv + 1, helper.make_node("Add", ["before.border", "border"], [tensor], "border.add")
    )
    graph.node.remove(pad)
    del graph.value_info[:]
    onnx.save(model, out)
    pixels = {"tensor": pad.input[0], "step": channel.meta["pixels"]["step"]}  # type: ignore[index,call-overload]
    return replace(channel, path=out, sha256=sha256_file(out), meta={**channel.meta, "pixels": pixels})


def quantised(model: Artifact, images: np.ndarray, out: Path) -> Artifact:
    """Return the Q/DQ graph for CPUs, with the ranges of all images."""
    histograms = collect(model, [images], NoProgress(), 2)
    ranges = minmax(histograms, graph_sha256=model.sha256, dataset_sha256="0" * 64, images=len(images))
    return place(model, ranges, "cpu", out, pair_safe=machine.describe().saturates_pairs)


def timed(
    case: Case, name: str, threads: int, options: argparse.Namespace, folder: Path
) -> dict[str, object]:
    """Time a runtime's arms against one another."""
    library = runtime(name)
    with ExitStack() as stack:
        arms = {}
        for arm, graph in case.graphs.items():
            (folder / arm).mkdir(exist_ok=True)
            engine = library.build(graph, folder / arm, BuildOptions("int8"))
            run = stack.enter_context(library.open(engine, RunOptions(threads, batch=1)))
            arms[arm] = one_frame_at_a_time(run, case, outside=arm == "outside")
        samples = measure(
            arms,
            "graph",
            rounds=options.rounds,
            block_seconds=0.1,
            min_calls=10,
            seed=0,
            progress=NoProgress(),
            warm_seconds=1.0,
            clock=time.process_time_ns if options.processor_time else time.perf_counter_ns,
        )
    medians = {arm: np.median(times, axis=1) for arm, times in samples.nanoseconds.items()}
    return {arm: compared(medians, arm) for arm in arms}


def one_frame_at_a_time(run: Runner, case: Case, *, outside: bool) -> Callable[[], object]:
    """Return what makes one inference, from a frame."""
    following = cycle([case.frames[i : i + 1] for i in range(FRAMES)])
    if outside:
        return lambda: run(prepare(next(following), case.taken))
    return lambda: run(next(following))


def compared(medians: Mapping[str, np.ndarray], arm: str) -> dict[str, object]:
    """Return an arm's median and the ratio of its time to that of the arm "graph", with the interval."""
    ratio = ratio_interval(np.log(medians[arm] / medians["graph"]), CONFIDENCE)
    p50: dict[str, object] = {"p50_ms": round(float(np.median(medians[arm])) / 1e6, 4)}
    return p50 if arm == "graph" else {**p50, "over_graph": [round(end, 4) for end in ratio]}


def main() -> None:
    """Measure the cases and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    document: dict[str, object] = {
        "conditions": conditions(max(map(int, options.threads.split(","))), ("torch", *RUNTIMES)),
        "rounds": options.rounds,
        "clock": "processor time of all threads" if options.processor_time else "wall",
        "confidence": CONFIDENCE,
    }
    rows: list[dict[str, object]] = []
    for case in options.cases or CASES:
        make, size = CASES[case]
        with tempfile.TemporaryDirectory() as name:
            made = case_of(make, size, Path(name))
            for library in RUNTIMES:
                for threads in map(int, options.threads.split(",")):
                    arms = timed(made, library, threads, options, Path(name))
                    rows.append({"case": case, "runtime": library, "threads": threads, "arms": arms})
                    print(json.dumps(rows[-1]), flush=True)
        options.json.write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
