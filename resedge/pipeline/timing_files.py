"""The files between a process that has engines timed and the one that times them.

job.json             what is timed; its artifacts' paths are relative to the file system's root
inputs.npy           the images, prepared
frames.npy           the same images as they were decoded
samples.json         orders of the rounds, arms that did not settle
samples.safetensors  nanoseconds of every call, and when each block began
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resedge.artifacts import canonical_json, encode, load
from resedge.pipeline.staging import map_artifacts
from resedge.pipeline.timing import Inputs, Job

if TYPE_CHECKING:
    from resedge.benchmarks.rounds import Samples

_JOB, _INPUTS, _FRAMES = "job.json", "inputs.npy", "frames.npy"
_BESIDE, _SAMPLES = "samples.json", "samples.safetensors"
_NANOSECONDS, _BEGAN = "nanoseconds ", "began "
_ROOT = Path("/")


@dataclass(frozen=True)
class _Beside:
    orders: tuple[tuple[str, ...], ...]
    unsettled: tuple[str, ...]
    interrupted: bool


def write_job(folder: Path, job: Job, inputs: Inputs) -> None:
    """Write what is timed."""
    placed = map_artifacts(job, lambda a: replace(a, path=_absolute(a.path)).relative_to(_ROOT))
    (folder / _JOB).write_text(canonical_json(encode(placed)), encoding="utf-8")
    np.save(folder / _INPUTS, inputs.prepared, allow_pickle=False)
    np.save(folder / _FRAMES, inputs.frames, allow_pickle=False)


def read_job(folder: Path) -> tuple[Job, Inputs]:
    """Read what is timed.

    Raises:
        InputRefused: It is not what `write_job` writes.
    """
    job = map_artifacts(load(Job, folder / _JOB), lambda a: a.under(_ROOT))
    prepared, frames = (np.load(folder / name, allow_pickle=False) for name in (_INPUTS, _FRAMES))
    return job, Inputs(prepared, frames)


def write_samples(folder: Path, samples: Samples) -> None:
    """Write what was measured."""
    from safetensors.numpy import save_file

    tensors = {
        prefix + arm: np.ascontiguousarray(values)
        for prefix, each in ((_NANOSECONDS, samples.nanoseconds), (_BEGAN, samples.began))
        for arm, values in each.items()
    }
    save_file(tensors, folder / _SAMPLES)
    beside = _Beside(samples.orders, samples.unsettled, samples.interrupted)
    (folder / _BESIDE).write_text(canonical_json(encode(beside)), encoding="utf-8")


def read_samples(folder: Path) -> Samples:
    """Read what was measured.

    Raises:
        InputRefused: It is not what `write_samples` writes.
    """
    from safetensors.numpy import load_file

    from resedge.benchmarks.rounds import Samples

    beside, tensors = load(_Beside, folder / _BESIDE), load_file(folder / _SAMPLES)
    nanoseconds, began = (
        {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}
        for prefix in (_NANOSECONDS, _BEGAN)
    )
    return Samples(nanoseconds, began, beside.orders, beside.unsettled, beside.interrupted)


def _absolute(path: Path) -> Path:
    """Return a path without links in its folders; a link itself keeps its name, and so its companions."""
    return path.parent.resolve() / path.name
