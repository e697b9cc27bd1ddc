"""Running engines over images, and opening eager beside them: what export and bench share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from resedge.artifacts import Engine, Preprocessing
from resedge.errors import BuildFailed, NotFinite
from resedge.images import ImageSet
from resedge.protocols import Array, Float32Array, Progress, Runtime

EVALUATION_BATCH = 20  # larger ones leave the caches of a small CPU


def eager_runtime(memory_format: Literal["contiguous", "channels_last"]) -> Runtime:
    """Return the eager runtime, which loads the model through the export room."""
    from resedge.export.sources import load_reference
    from resedge.runtimes.eager import Eager

    return Eager(load_reference, memory_format)


def evaluation_batch(engine: Engine) -> int:
    """Return how many images an engine is given at once; a plan for a GPU was built for so many.

    Raises:
        BuildFailed: It does not take a single image, and the last batch may be one.
    """
    stated = engine.artifact.meta.get("batch_range")
    if not isinstance(stated, (list, tuple)):
        return EVALUATION_BATCH
    low, _, high = (int(str(size)) for size in stated)
    if low > 1:
        raise BuildFailed(
            f"takes {low} images at once and no fewer, and what is measured is one at a time.",
            where=str(engine.artifact.path),
            cure="Build it with a --batch-range from 1 up.",
        )
    return min(EVALUATION_BATCH, high)


def evaluate(
    run: Callable[[Array], Float32Array],
    images: ImageSet,
    outside: Preprocessing | None,
    progress: Progress,
    label: str,
    batch: int = EVALUATION_BATCH,
) -> Float32Array:
    """Return the logits of all images, (N, classes) float32, in their order, `batch` at a time.

    `outside` is what is done to an image before `run` gets it; None: nothing, it takes frames.

    Raises:
        NotFinite: A logit is NaN or infinite; the image is named by its position.
    """
    progress.start(label, len(images))
    logits: list[Float32Array] = []
    for given in images.inputs(batch, outside):
        logits.append(run(given))
        progress.advance(len(given))
    progress.finish()
    together = np.concatenate(logits)
    finite = np.isfinite(together).all(axis=1)
    if not finite.all():
        raise NotFinite(
            f"gives NaN or infinite logits for {int((~finite).sum())} of {len(images)} images "
            f"(the first is number {int(np.argmin(finite))}).",
            where=label,
            cure="Look for NaN in the weights, or for activations beyond the precision's range.",
        )
    return together


def tracked(batches: Sequence[Float32Array], progress: Progress, label: str) -> Iterator[Float32Array]:
    """Yield batches in order, telling `progress` of each image that was asked for."""
    progress.start(label, sum(len(batch) for batch in batches))
    for batch in batches:
        yield batch
        progress.advance(len(batch))
    progress.finish()
