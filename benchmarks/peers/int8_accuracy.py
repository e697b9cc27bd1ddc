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
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from calibrate import (  # type: ignore[import-not-found]  # beside this script, not packaged
    answers,
    calibrate,
    fp32_at,
    images_in,
    site_at,
)
from quantise import compared  # type: ignore[import-not-found]

from resedge.benchmarks.conditions import conditions
from resedge.calibration.emulation import emulated
from resedge.pipeline.calibrating import Tuning
from resedge.protocols import BuildOptions, RunOptions
from resedge.runtimes.table import runtime

HERE = Path(__file__).resolve().parent
PEERS = {
    "nncf": ("default", "minmax without bias correction", "accuracy control"),
    "onnxruntime": ("minmax", "minmax 7 bit", "entropy 7 bit", "percentile 7 bit"),
    "modelopt": ("entropy", "max"),
}


def resedge_rows(folder: Path, draw: int, threads: int) -> list[dict[str, object]]:
    """Calibrate as `resedge export` does, and run both graphs over the test images."""
    test = np.load(folder / "test.npy")
    eager, labels = (np.load(folder / f"test-{part}.npy") for part in ("logits", "labels"))
    fp32, data = fp32_at(folder / "fp32.onnx", side=28, classes=10), images_in(folder, draw)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as work:
        site = site_at(Path(work) / "cache", threads)
        started = time.monotonic()
        tuning = Tuning(max_drop=0.005, test_images=len(test))
        made = calibrate(site, data, fp32, folder / "tuning-logits.npy", tuning)
        seconds = round(time.monotonic() - started, 1)
        for name in ("openvino", "onnxruntime", "tensorrt, emulated"):
            chosen = made.tensorrt if "emulated" in name else made.cpu
            if "emulated" in name:
                given = answers(emulated(made.tensorrt_in_fp32, threads), test)
            else:
                engine = runtime(name).build(made.int8_cpu, Path(work), BuildOptions("int8"))
                with runtime(name).open(engine, RunOptions(threads)) as opened:
                    given = answers(opened, test)
            row = {"tool": "resedge", "setting": f"{name}: {chosen.method}, {chosen.fitted}", "draw": draw}
            rows.append(row | {"seconds": seconds} | compared(eager, given, labels))
    return rows


def peer_row(python: str, tool: str, setting: str, folder: Path, draw: int) -> dict[str, object]:
    """Run one peer in its environment."""
    command = [python, str(HERE / "quantise.py"), tool, setting, str(folder), str(draw)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        return {"tool": tool, "setting": setting, "draw": draw, "failed": " ".join(reason)}
    row: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


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
    known = {(row["network"], row["draw"], row["job"]) for row in rows}
    for draw in range(options.draws):
        for folder in options.folders:
            for job, measure in jobs(folder, draw, options.threads, pythons):
                if (folder.name, draw, job) in known:
                    continue
                rows += [{"network": folder.name, "job": job} | row for row in measure()]
                print(rows[-1], flush=True)
                document = {
                    "conditions": conditions(options.threads, ("onnxruntime", "openvino", "numpy")),
                    "openvino": ov.__version__,
                    "rows": rows,
                }
                options.json.write_text(json.dumps(document, indent=2) + "\n")


def jobs(
    folder: Path, draw: int, threads: int, pythons: Mapping[str, str]
) -> Iterator[tuple[str, Callable[[], list[dict[str, object]]]]]:
    """Yield what is to be measured of one draw, by name."""
    yield "resedge", partial(resedge_rows, folder, draw, threads)
    for tool, settings in PEERS.items():
        for setting in settings:
            yield f"{tool} {setting}", partial(peer_rows, pythons[tool], tool, setting, folder, draw)


def peer_rows(python: str, tool: str, setting: str, folder: Path, draw: int) -> list[dict[str, object]]:
    """Run one peer in its environment; its row alone."""
    return [peer_row(python, tool, setting, folder, draw)]


if __name__ == "__main__":
    main()
