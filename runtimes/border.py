"""What every runtime does alike at its border: refuse the wrong graph, check options and input, close.

A runtime's file holds what its library needs and nothing else; this one holds what all of them promise.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from resedge.artifacts import Artifact, TensorSpec
from resedge.errors import BuildFailed, RuntimeUnavailable, UsageError
from resedge.protocols import Array, RunOptions

_REASON_LENGTH = 300
_Answer = TypeVar("_Answer", covariant=True)


class _Call(Protocol[_Answer]):
    """A `Runner`, or a `Watched`."""

    def __call__(self, batch: Array) -> _Answer: ...


def imported(runtime: str, library: str, cure: str) -> Any:  # noqa: ANN401 - a module
    """Import a runtime's library.

    Raises:
        RuntimeUnavailable: The library is not installed, or is and cannot be loaded (a shared library
            that it needs is missing, for one).
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise RuntimeUnavailable(f"runtime '{runtime}' is not installed.", cure=cure) from error
        raise RuntimeUnavailable(
            f"runtime '{runtime}' is installed and cannot be loaded ({_shortened(error)}).", cure=cure
        ) from error


@contextmanager
def refusals(runtime: str, where: Path, *foreign: type[Exception]) -> Iterator[None]:
    """Translate a library's own errors about the file `where` inside the block.

    Raises:
        BuildFailed: The library raised one of `foreign`.
    """
    try:
        yield
    except foreign as error:
        raise BuildFailed(f"{runtime} refuses it: {_shortened(error)}", where=str(where)) from error


def run_failure(runtime: str, where: Path, error: Exception) -> BuildFailed:
    """Return what to raise for a library's own error in a call of the runner of the engine `where`.

    For a plain try and except, which costs a call nothing; `refusals` makes an object each time.
    """
    return BuildFailed(f"{runtime} could not run it: {_shortened(error)}", where=str(where))


def demand_kind(runtime: str, model: Artifact, precision: str, kinds: Mapping[str, str]) -> None:
    """Refuse a precision that the runtime lacks, and a graph that is not the one for the precision.

    Args:
        runtime: Named in the errors.
        model: The graph that was given.
        precision: The precision that was asked for.
        kinds: The precisions that the runtime builds, and the kind of artifact that each is built from.

    Raises:
        RuntimeUnavailable: The runtime does not build the precision.
        BuildFailed: `model` is of another kind.
    """
    if precision not in kinds:
        raise RuntimeUnavailable(
            f"runtime '{runtime}' does not build {precision}.",
            cure=f"It builds {', '.join(kinds)}.",
        )
    if model.kind != kinds[precision]:
        raise BuildFailed(
            f"is of the kind '{model.kind}', and {runtime} {precision} is built from '{kinds[precision]}'.",
            where=str(model.path),
        )


def check_options(options: RunOptions) -> None:
    """Refuse what libraries take for "as many as you like".

    Raises:
        UsageError: The threads or the fixed batch size are below 1.
    """
    if options.threads < 1:
        raise UsageError(f"{options.threads} threads were asked for, at least 1 is needed.")
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"a batch size of {options.batch} was asked for, at least 1 is needed.")


def input_spec(artifact: Artifact, options: RunOptions) -> TensorSpec:
    """Return the one input of an engine, its batch dimension fixed where `options` fix it.

    Raises:
        BuildFailed: The artifact does not name exactly one input.
    """
    if len(artifact.inputs) != 1:
        raise BuildFailed(f"names {len(artifact.inputs)} inputs, expected one.", where=str(artifact.path))
    (spec,) = artifact.inputs
    if options.batch is None or not isinstance(spec.shape[0], str):
        return spec
    return TensorSpec(spec.name, (options.batch, *spec.shape[1:]), spec.dtype)


@contextmanager
def runner(spec: TensorSpec, infer: Callable[[Array], _Answer]) -> Iterator[_Call[_Answer]]:
    """Guard a library's inference for as long as the block lasts.

    Args:
        spec: The engine's input; a name in the place of a size means any size from 1 up.
        infer: Is given batches of that shape and dtype, aligned, writeable and in C order; returns
            logits, or what else is asked of an engine, in memory of their own.

    Yields:
        The runner; called after the block it raises a RuntimeError, and holds no memory any more.
    """
    live: Callable[[Array], _Answer] | None = infer
    dtype = np.dtype(spec.dtype)

    def run(batch: Array) -> _Answer:
        if live is None:
            raise RuntimeError("this engine is closed: a runner is valid inside its with-block only")
        if batch.dtype != dtype or not _fits(batch.shape, spec.shape):
            raise ValueError(
                f"'{spec.name}' expects {_shape_text(spec.shape)} {dtype}, "
                f"and {_shape_text(batch.shape)} {batch.dtype} was given"
            )
        return live(batch if batch.flags.carray else np.array(batch, order="C"))

    try:
        yield run
    finally:
        live = None


def _fits(given: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    return len(given) == len(expected) and all(
        have >= 1 if isinstance(want, str) else have == want
        for have, want in zip(given, expected, strict=True)
    )


def _shape_text(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH]}..."
