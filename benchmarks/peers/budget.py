"""Compare what resedge and NNCF keep in float to bring back a network that plain INT8 breaks.

    python benchmarks/peers/budget.py FOLDER --nncf-python P --kind scaled|cancelling|offset --json FILE

FOLDER is prepare.py's of resnet20. Its graph is rewritten into one that computes the same and quantises
badly (imbalance.py). Both tools get the same calibration and tuning images and the same budget; every
graph is then run over the 10,000 test images, which neither has seen.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
from calibrate import (  # type: ignore[import-not-found]  # beside this script, not packaged
    answers,
    calibrate,
    fp32_at,
    images_in,
    site_at,
)
from imbalance import (  # type: ignore[import-not-found]
    add_cancelling_twins,
    add_offsets,
    scale_channels,
)
from int8_accuracy import peer_row  # type: ignore[import-not-found]
from quantise import CONTROLLED, compared  # type: ignore[import-not-found]

from resedge import machine
from resedge.artifacts import Artifact, load
from resedge.benchmarks.conditions import Watch, conditions
from resedge.calibration.histograms import collect
from resedge.calibration.layers import layers_of
from resedge.calibration.placement import place
from resedge.calibration.ranges import METHODS
from resedge.pipeline.calibrating import LayersDocument, Tuning
from resedge.protocols import BuildOptions, NoProgress, RunOptions
from resedge.runtimes.table import runtime

KINDS: Mapping[str, Callable[[onnx.ModelProto], None]] = {
    "scaled": partial(scale_channels, blocks=(1, 4, 7), factor=30, seed=0),
    "cancelling": partial(add_cancelling_twins, blocks=(0, 3, 6), factor=64),
    "offset": partial(add_offsets, blocks=(1, 4, 7), offset=500),
}
SAME = 1e-4  # of the largest logit: what a change that keeps the function may move
DRAW = 0
HEAD = f"{'':48}{'drop':>8}{'agreement':>11}{'kept':>6}{'of MACs':>9}{'CPU s':>9}"

Row = dict[str, object]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="scaled")
    parser.add_argument("--max-drop", type=float, default=0.005)
    parser.add_argument("--nncf-python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    labels, eager = (np.load(options.folder / f"test-{part}.npy") for part in ("labels", "logits"))
    top1 = float((eager.argmax(axis=1) == labels).mean())
    rows: list[Row] = []
    print(HEAD)
    with tempfile.TemporaryDirectory() as work, Watch() as watch:
        folder = Path(work) / "broken"
        moved = write_broken(options.folder, options.kind, folder)
        fp32 = fp32_at(folder / "fp32.onnx", side=28, classes=10)
        for row in chain(
            plain_rows(fp32, folder, options.threads),
            resedge_rows(fp32, folder, options.max_drop, options.threads),
            nncf_rows(fp32, folder, options.max_drop, options.nncf_python),
        ):
            rows.append(row | {"drop": top1 - float(str(row["top1"]))} if "top1" in row else row)
            print(line(rows[-1]), flush=True)
    document = {
        "network": f"resnet20, {options.kind}",
        "max_drop": options.max_drop,
        "fp32": {"top1": top1, "largest_relative_change": moved},
        "conditions": conditions(options.threads, ("resedge", "onnxruntime", "openvino", "onnx", "onnx-ir")),
        **watch.found(),
        "rows": rows,
    }
    options.json.write_text(json.dumps(document, indent=2) + "\n")


# --- the network ---------------------------------------------------------------------------------


def write_broken(prepared: Path, kind: str, folder: Path) -> float:
    """Make a folder like prepare.py's with the rewritten graph; return by how much the answers moved."""
    folder.mkdir()
    for path in prepared.iterdir():
        if path.name != "fp32.onnx":
            (folder / path.name).symlink_to(path.resolve())
    model = onnx.load(prepared / "fp32.onnx")
    KINDS[kind](model)
    onnx.save(model, folder / "fp32.onnx")
    expected = np.load(folder / "test-logits.npy")
    session = ort.InferenceSession(folder / "fp32.onnx", providers=["CPUExecutionProvider"])
    given = answers(lambda x: np.asarray(session.run(None, {"input": x})[0]), np.load(folder / "test.npy"))
    moved = float(np.abs(given - expected).max() / np.abs(expected).max())
    if moved > SAME:
        sys.exit(f"The {kind} network answers otherwise: {moved:.1e} of the largest logit.")
    return moved


# --- the rows ------------------------------------------------------------------------------------


def plain_rows(fp32: Artifact, folder: Path, threads: int) -> Iterator[Row]:
    """Quantise every layer by each method's ranges, every weight to the nearest."""
    images = np.load(folder / f"calibration-{DRAW}.npy")
    histograms = collect(fp32, [images], NoProgress(), threads)
    pair_safe = machine.describe().saturates_pairs
    for name, method in METHODS.items():
        ranges = method(
            histograms, graph_sha256=fp32.sha256, dataset_sha256="of this draw", images=len(images)
        )
        graph = place(fp32, ranges, "cpu", folder / "plain.onnx", pair_safe=pair_safe)
        row: Row = {"tool": "plain", "setting": name, "kept": [], "share": 0.0}
        yield row | on_test_images(graph, "onnxruntime", folder, threads)


def resedge_rows(fp32: Artifact, folder: Path, max_drop: float, threads: int) -> Iterator[Row]:
    """Calibrate within the budget as `resedge export --max-drop` does."""
    site = site_at(folder / "cache", threads)
    started, cpu = time.monotonic(), time.process_time()
    tuning = Tuning(max_drop, test_images=len(np.load(folder / "test-labels.npy")))
    made = calibrate(site, images_in(folder, DRAW), fp32, folder / "tuning-logits.npy", tuning)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    search = load(LayersDocument, made.layers.path).search
    told: Row = {
        "kept": list(made.kept),
        "share": share(fp32, made.kept),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "met_on_tuning_images": made.met,
        "drop_on_tuning_images_with_none_kept": search.trials[0].score.drop,
        "graphs_tried": len(search.trials),
    }
    setting = f"{made.cpu.method}, {made.cpu.fitted}"
    for name in ("openvino", "onnxruntime"):
        row: Row = {"tool": f"resedge, {name}", "setting": setting}
        yield row | told | on_test_images(made.int8_cpu, name, folder, threads)


def nncf_rows(fp32: Artifact, folder: Path, max_drop: float, python: str) -> Iterator[Row]:
    """Run NNCF's default quantisation, and the one that controls the accuracy."""
    for setting in ("default", f"{CONTROLLED} {max_drop:g}"):
        row: Row = peer_row(python, "nncf", setting, folder, DRAW)
        kept = row.get("kept")
        yield row | {"share": share(fp32, kept)} if isinstance(kept, list) else row


def on_test_images(graph: Artifact, name: str, folder: Path, threads: int) -> Row:
    """Run a graph in a runtime's integer kernels over the test images."""
    labels, eager = (np.load(folder / f"test-{part}.npy") for part in ("labels", "logits"))
    engine = runtime(name).build(graph, folder, BuildOptions("int8"))
    with runtime(name).open(engine, RunOptions(threads)) as opened:
        found: Row = compared(eager, answers(opened, np.load(folder / "test.npy")), labels)
    return found


def share(fp32: Artifact, kept: Iterable[str]) -> float:
    """Return the fraction of the multiply-accumulates that lie in some layers."""
    macs = {layer.name: layer.macs for layer in layers_of(fp32)}
    return sum(macs[name] for name in kept) / sum(macs.values())


# --- what is printed -----------------------------------------------------------------------------


def line(row: Row) -> str:
    """Return a row of the table, see `HEAD`."""
    name = f"{row['tool']}: {row['setting']}"
    if "failed" in row:
        return f"{name:48} failed: {row['failed']}"
    drop, agreement, part = (float(str(row[key])) for key in ("drop", "agreement", "share"))
    kept = len(row["kept"]) if isinstance(row["kept"], list) else 0
    return f"{name:48}{drop:8.2%}{agreement:11.2%}{kept:6}{part:9.1%}{row.get('cpu_seconds', '')!s:>9}"


if __name__ == "__main__":
    main()
