"""Compare the INT8 graphs of resedge and its peers on the same images, over several calibration draws.

    python benchmarks/peers/int8_accuracy.py FOLDER… --nncf-python P --modelopt-python P --draws 5 --json FILE

FOLDER is prepare.py's, its name the network's. Peers run in their own environments (requirements-*.txt);
what fails is a row with the reason. The JSON has every row and the conditions; what it has already is not
measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from quantise import BATCH, compared  # type: ignore[import-not-found]  # beside this script, not packaged

from resedge.artifacts import Artifact, TensorSpec, sha256_file
from resedge.benchmarks.conditions import conditions
from resedge.calibration.emulation import emulated
from resedge.images import NOTEBOOK_PREPROCESSING, ImageSet, content_digest
from resedge.pipeline import machine
from resedge.pipeline.calibrating import Tuning, calibrated
from resedge.pipeline.reporting import Silent
from resedge.pipeline.stages import EagerAnswers, Graphs
from resedge.pipeline.staging import Data, Done, Site
from resedge.protocols import BuildOptions, RunOptions
from resedge.runtimes.table import runtime
from resedge.store import Store

HERE = Path(__file__).resolve().parent
PEERS = {
    "nncf": ("default", "minmax without bias correction", "accuracy control"),
    "onnxruntime": ("minmax", "minmax 7 bit", "entropy 7 bit", "percentile 7 bit"),
    "modelopt": ("entropy", "max"),
}


def images_of(prepared: np.ndarray, labels: np.ndarray | None) -> ImageSet:
    """Return prepared images as the frames that they were made from."""
    mean, std = (
        np.array(x, np.float32)[:, None, None]
        for x in (NOTEBOOK_PREPROCESSING.mean, NOTEBOOK_PREPROCESSING.std)
    )
    frames = np.rint((prepared * std + mean) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    digests = tuple(content_digest(np.ascontiguousarray(frame)) for frame in frames)
    return ImageSet("prepared", digests, labels, lambda indices: frames[list(indices)])


def resedge_rows(folder: Path, draw: int, threads: int) -> list[dict[str, object]]:
    """Calibrate as `resedge export` does, and run both graphs over the test images."""
    path = folder / "fp32.onnx"
    ends = (
        (TensorSpec("input", ("batch", 3, 28, 28), "float32"),),
        (TensorSpec("logits", ("batch", 10), "float32"),),
    )
    fp32 = Artifact(path, sha256_file(path), "onnx/fp32", *ends)
    logits = Artifact(folder / "tuning-logits.npy", sha256_file(folder / "tuning-logits.npy"), "logits")
    tuning = images_of(np.load(folder / "tuning.npy"), np.load(folder / "tuning-labels.npy"))
    images = images_of(np.load(folder / f"calibration-{draw}.npy"), None)
    test = np.load(folder / "test.npy")
    eager, labels = (np.load(folder / f"test-{part}.npy") for part in ("logits", "labels"))
    here = machine.describe()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as work:
        site = Site(Store(Path(work) / "cache"), here.digest, threads, Silent())
        data = Data(images, tuning, tuning, NOTEBOOK_PREPROCESSING)
        started = time.monotonic()
        made = calibrated(
            site,
            data,
            Done(Graphs(fp32, fp32, fp32, 0, (), 0.0, ()), {}, False),
            Done(EagerAnswers(logits, logits, logits, logits), {}, False),
            pair_safe=here.saturates_pairs,
            tuning=Tuning(max_drop=0.005),
        ).value
        seconds = round(time.monotonic() - started, 1)
        for name in ("openvino", "onnxruntime", "tensorrt, emulated"):
            chosen = made.tensorrt if "emulated" in name else made.cpu
            if "emulated" in name:
                run = emulated(made.tensorrt_in_fp32, threads)
                given = np.concatenate([run(test[i : i + BATCH]) for i in range(0, len(test), BATCH)])
            else:
                engine = runtime(name).build(made.int8_cpu, Path(work), BuildOptions("int8"))
                with runtime(name).open(engine, RunOptions(threads)) as opened:
                    given = np.concatenate([opened(test[i : i + BATCH]) for i in range(0, len(test), BATCH)])
            row = {"tool": "resedge", "setting": f"{name}: {chosen.method}, {chosen.fitted}", "draw": draw}
            rows.append(row | {"seconds": seconds} | compared(eager, given, labels))
    return rows


def peer_row(python: str, tool: str, setting: str, folder: Path, draw: int) -> list[dict[str, object]]:
    """Run one peer in its environment."""
    command = [python, str(HERE / "quantise.py"), tool, setting, str(folder), str(draw)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        return [{"tool": tool, "setting": setting, "draw": draw, "failed": " ".join(reason)}]
    return [json.loads(done.stdout.strip().splitlines()[-1])]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--nncf-python", default=sys.executable)
    parser.add_argument("--modelopt-python", default=sys.executable)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    pythons = {
        "nncf": options.nncf_python,
        "onnxruntime": options.nncf_python,
        "modelopt": options.modelopt_python,
    }
    rows: list[dict[str, object]] = []
    if options.json.exists():
        rows = json.loads(options.json.read_text())["rows"]
    for draw in range(options.draws):
        for folder in options.folders:
            for tool, measure in jobs(folder, draw, options.threads, pythons):
                if any((r["network"], r["draw"], r["job"]) == (folder.name, draw, tool) for r in rows):
                    continue
                rows += [{"network": folder.name, "job": tool} | row for row in measure()]
                print(rows[-1], flush=True)
                document = {
                    "conditions": conditions(options.threads, ("onnxruntime", "openvino", "numpy")),
                    "openvino": ov.__version__,
                    "rows": rows,
                }
                options.json.write_text(json.dumps(document, indent=2) + "\n")


def jobs(
    folder: Path, draw: int, threads: int, pythons: dict[str, str]
) -> Iterator[tuple[str, Callable[[], list[dict[str, object]]]]]:
    """Yield what is to be measured of one draw, by name."""
    yield "resedge", partial(resedge_rows, folder, draw, threads)
    for tool, settings in PEERS.items():
        for setting in settings:
            yield f"{tool} {setting}", partial(peer_row, pythons[tool], tool, setting, folder, draw)


if __name__ == "__main__":
    main()
