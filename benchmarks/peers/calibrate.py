"""Calibrate a network as `resedge export` does, from files instead of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from resedge import machine
from resedge.artifacts import Artifact, TensorSpec, sha256_file
from resedge.images import NOTEBOOK_PREPROCESSING, ImageSet, content_digest
from resedge.pipeline.calibrating import Calibrated, Tuning, calibrated
from resedge.pipeline.reporting import Reporter, Silent
from resedge.pipeline.scoring import Bench
from resedge.pipeline.stages import EagerAnswers, Graphs
from resedge.pipeline.staging import Data, Done, Site
from resedge.store import Store

BATCH = 20


def fp32_at(path: Path, side: int, classes: int) -> Artifact:
    """Return an FP32 graph for 3 x side x side images as an artifact."""
    inputs = (TensorSpec("input", ("batch", 3, side, side), "float32"),)
    outputs = (TensorSpec("logits", ("batch", classes), "float32"),)
    return Artifact(path, sha256_file(path), "onnx/fp32", inputs, outputs)


def images_of(prepared: np.ndarray, labels: np.ndarray | None) -> ImageSet:
    """Return prepared images as the frames that they were made from."""
    mean, std = (
        np.array(x, np.float32)[:, None, None]
        for x in (NOTEBOOK_PREPROCESSING.mean, NOTEBOOK_PREPROCESSING.std)
    )
    frames = np.rint((prepared * std + mean) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    digests = tuple(content_digest(np.ascontiguousarray(frame)) for frame in frames)
    return ImageSet("prepared", digests, labels, lambda indices: frames[list(indices)])


def images_in(folder: Path, draw: int) -> Data:
    """Return the images of a folder of prepare.py, calibration being one of its draws."""
    tuning = images_of(np.load(folder / "tuning.npy"), np.load(folder / "tuning-labels.npy"))
    calibration = images_of(np.load(folder / f"calibration-{draw}.npy"), None)
    return Data(calibration, tuning, tuning, NOTEBOOK_PREPROCESSING)


def site_at(cache: Path, threads: int, reporter: Reporter | None = None) -> Site:
    """Return a place for stages to run in, with an empty cache."""
    return Site(Store(cache), machine.describe().digest, threads, reporter or Silent())


def calibrate(site: Site, data: Data, fp32: Artifact, tuning_logits: Path, tuning: Tuning) -> Calibrated:
    """Run the calibration stage; `tuning_logits` is a .npy file of eager's answers."""
    logits = Artifact(tuning_logits, sha256_file(tuning_logits), "logits")
    return calibrated(
        site,
        data,
        Done(Graphs(fp32, fp32, fp32, 0, (), 0.0, ()), {}, False),
        Done(EagerAnswers(logits, logits, logits, logits), {}, False),
        pair_safe=machine.describe().saturates_pairs,
        tuning=tuning,
    ).value


def bench_at(site: Site, data: Data, fp32: Artifact, tuning_logits: Path, folder: Path) -> Bench:
    """Return where the calibration stage tries its candidates; `folder` is for their graphs."""
    logits = Artifact(tuning_logits, sha256_file(tuning_logits), "logits")
    return Bench(site, data, fp32, EagerAnswers(logits, logits, logits, logits), folder)


def answers(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """Return the logits of many images, batch after batch."""
    return np.concatenate([run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])
