"""Calibrate a network in this process, once and in one way, and print the time and the memory as JSON.

    PYTHON benchmarks/peers/calibrate_once.py nncf|pass|stage FOLDER THREADS

nncf is NNCF's default quantisation of the OpenVINO model, which runs in an environment of its own and
needs no resedge; pass is resedge's pass over the images, stage its whole calibration. FOLDER is
calibration_cost.py's. The clock runs while the one call does: libraries are imported and files read.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from resedge.pipeline.staging import Data

SIDE, CLASSES, TIMES_LARGER = 224, 1000, 8
MEAN, STD = 0.2860, 0.3530

Steps = dict[str, dict[str, float]]
Call = Callable[[], Steps]
"""Calibrates, and says how long each step took where it knows."""


def enlarged(grey: np.ndarray) -> np.ndarray:
    """Map (N, 28, 28) uint8 to frames, (N, 224, 224, 3): every pixel a square, grey repeated."""
    large = np.repeat(np.repeat(grey, TIMES_LARGER, axis=1), TIMES_LARGER, axis=2)
    return np.repeat(large[..., None], 3, axis=-1)


def nncf(folder: Path, _threads: int, _open: ExitStack) -> Call:
    """NNCF as its documentation shows it: every setting its default."""
    import nncf as library  # type: ignore[import-not-found]  # a peer's environment has it
    import openvino as ov  # type: ignore[import-untyped]

    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = ov.Core().read_model(folder / "fp32.onnx")
    grey = np.load(folder / "calibration.npy")

    def prepared(image: np.ndarray) -> np.ndarray:
        scaled = (enlarged(image[None]).astype(np.float32) / np.float32(255) - MEAN) / STD
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)

    def call() -> Steps:
        library.quantize(model, library.Dataset(grey, prepared), subset_size=len(grey))
        return {}

    return call


def resedge_pass(folder: Path, threads: int, opened: ExitStack) -> Call:
    """The pass of resedge over the calibration images: a histogram of every tensor, read by every method."""
    from calibrate import (  # type: ignore[import-not-found]  # beside this script
        bench_at,
        fp32_at,
        site_at,
    )

    from resedge.pipeline.fitting import sources

    _import_libraries()
    work = Path(opened.enter_context(tempfile.TemporaryDirectory()))
    fp32, data = fp32_at(folder / "fp32.onnx", SIDE, CLASSES), _data(folder)
    bench = bench_at(site_at(work / "cache", threads), data, fp32, folder / "tuning-logits.npy", work)

    def call() -> Steps:
        sources(bench, thorough=False)
        return {}

    return call


def resedge_stage(folder: Path, threads: int, opened: ExitStack) -> Call:
    """The whole calibration stage of resedge, with all candidates of both schemes and their fits.

    The budget is what any graph meets: that an untrained network's answers change means nothing, and
    NNCF's default does not look at them either.
    """
    from calibrate import calibrate, fp32_at, site_at
    from stopwatch import Stopwatch  # type: ignore[import-not-found]  # beside this script

    from resedge.pipeline.calibrating import Tuning

    _import_libraries()
    fp32, data = fp32_at(folder / "fp32.onnx", SIDE, CLASSES), _data(folder)
    cache = Path(opened.enter_context(tempfile.TemporaryDirectory()))

    def call() -> Steps:
        stopwatch = Stopwatch()
        calibrate(
            site_at(cache, threads, stopwatch), data, fp32, folder / "tuning-logits.npy", Tuning(max_drop=1.0)
        )
        return {step: rounded(took.wall, took.cpu) for step, took in stopwatch.read().items()}

    return call


def _import_libraries() -> None:
    """Import what the product imports when it is called."""
    for name in ("onnx", "onnx_ir", "onnxruntime"):
        importlib.import_module(name)


def _data(folder: Path) -> Data:
    from resedge.artifacts import Preprocessing
    from resedge.images import ImageSet, content_digest
    from resedge.pipeline.staging import Data

    def images(name: str) -> ImageSet:
        grey = np.load(folder / f"{name}.npy")
        digests = tuple(content_digest(enlarged(image[None])[0]) for image in grey)
        return ImageSet(name, digests, None, lambda indices: enlarged(grey[list(indices)]))

    tuning = images("tuning")
    return Data(images("calibration"), tuning, tuning, Preprocessing(SIDE, SIDE, (MEAN,) * 3, (STD,) * 3))


def rounded(wall: float, cpu: float) -> dict[str, float]:
    """Return seconds of the clock and of the processors, as the JSON has them."""
    return {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}


def resident(key: str) -> float:
    """Return VmRSS or VmHWM, the peak of it since this program was loaded, in MiB.

    getrusage's ru_maxrss would begin at the peak of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return round(int(value.split()[0]) / 1024, 1)
    raise SystemExit(f"/proc/self/status has no {key}")


WAYS = {"nncf": nncf, "pass": resedge_pass, "stage": resedge_stage}


def main() -> None:
    """Measure one call."""
    way, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with ExitStack() as opened:
        call = WAYS[way](folder, threads, opened)
        before, wall, cpu = resident("VmRSS"), time.monotonic(), time.process_time()
        steps = call()
        took = rounded(time.monotonic() - wall, time.process_time() - cpu)
    memory = {"resident_before_mib": before, "peak_resident_mib": resident("VmHWM")}
    print()  # NNCF's progress bar leaves the line open
    print(json.dumps({**took, **memory, "steps": steps}))


if __name__ == "__main__":
    main()
