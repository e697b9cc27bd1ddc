"""Which tensors of an engine can be watched without changing what it computes.

A runtime fuses nodes and computes what lies between them in its own way, or not at all. A tensor that is
given out has to exist, so watching it may undo a fusion, and one would look at another engine. Whether it
does is asked of the engine itself: its logits must stay the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from resedge.artifacts import Engine
from resedge.protocols import Array, Progress, RunOptions, Watchable

View = tuple[str, ...]


def faithful_views(
    runtime: Watchable,
    engine: Engine,
    tensors: Mapping[str, str],
    images: Array,
    options: RunOptions,
    progress: Progress,
) -> tuple[View, ...]:
    """Divide tensors into sets, each of which can be watched in a session of its own.

    All are tried at once, then kind by kind, then one by one; what was found apart is tried together again.

    Args:
        runtime: Of the engine.
        engine: As it was built.
        tensors: The names to try, each with a word for its kind: those of one kind are likely to be fused
            alike.
        images: A batch of the engine's input, such as (8, 3, 28, 28) float32, to compare logits on.
        options: How to run.
        progress: Advanced by one a tensor that is decided on; the caller starts and finishes it.

    Returns:
        Sets of names, in their order; a tensor that is in none cannot be seen.

    Raises:
        StaleArtifact: A file is not the one that was built.
        BuildFailed: The engine cannot be opened or run, or has no such tensor.
    """
    with runtime.open(engine, options) as run:
        logits = run(images)

    def is_faithful(view: View) -> bool:
        with runtime.watch(engine, view, options) as run:
            watched, _ = run(images)
        return np.array_equal(watched, logits, equal_nan=True)

    def divided(view: View) -> tuple[View, ...]:
        if is_faithful(view):
            progress.advance(len(view))
            return (view,)
        if len(view) == 1:
            progress.advance(1)
            return ()
        found = tuple(piece for part in _parts(view, tensors) for piece in divided(part))
        together = tuple(name for piece in found for name in piece)
        return (together,) if len(found) > 1 and is_faithful(together) else found

    return divided(tuple(tensors)) if tensors else ()


def _parts(view: View, kinds: Mapping[str, str]) -> Iterator[View]:
    """Divide a set by kind, or into single tensors where there is one kind alone."""
    present = tuple(dict.fromkeys(kinds[name] for name in view))
    if len(present) == 1:
        yield from ((name,) for name in view)
    else:
        yield from (tuple(name for name in view if kinds[name] == kind) for kind in present)
