"""One pass over the calibration images: a histogram for each activation that a scheme may quantise.

A histogram has integer counts in bins of width 2**exponent that are anchored at zero, and the exact
extremes. Bins are as narrow as the values allow. Wider ones are made by merging pairs, which is
exact: the images' histograms give the same sum in whatever order they are merged.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from resedge.artifacts import Artifact
from resedge.calibration.graph import label, name_of, read_graph, write_graph
from resedge.calibration.schemes import SCHEMES, activation_sites
from resedge.errors import GraphRefused, InputRefused
from resedge.protocols import Array, Float32Array, Int64Array, Progress

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime as ort  # type: ignore[import-untyped]

BINS_A_SIDE: Final = 2048
_CENTRE: Final = BINS_A_SIDE - 1
_NARROWEST: Final = -100  # keeps 2**-exponent a float32; smaller values all fall in the bin at zero
_IN_CACHE: Final = 1 << 17  # values that are counted at once


@dataclass(frozen=True)
class Histogram:
    """The distribution of one tensor's values.

    `counts` is (4095,) int64. With w = 2**exponent and j the index less 2047, bin j > 0 counts the
    values in [j w, (j + 1) w), bin j < 0 those in ((j - 1) w, j w], and the bin at zero those in
    (-w, w). `low` and `high` are the exact float32 extremes.
    """

    exponent: int
    counts: Int64Array
    low: float
    high: float


Histograms = Mapping[str, Histogram]
"""A histogram for each tensor of one graph, by the tensor's name."""


class Instrument:
    """An FP32 graph that is open with all tensors in sight that a scheme may quantise.

    Images run one at a time, each on one thread, `threads` at once: the kernels of ONNX Runtime may
    round differently for another batch size or number of threads, and the result here depends on
    neither. The graph runs unoptimised, so that every tensor is computed as the file says.

    Args:
        model: FP32 ONNX with the input (batch, C, H, W), or one that takes frames.
        threads: How many images run at once.

    Raises:
        GraphRefused: ONNX Runtime cannot run the graph.
    """

    def __init__(self, model: Artifact, threads: int) -> None:
        self._model = model
        self._threads = threads
        self._names, self._session = _open_instrumented(model)

    def collect(self, batches: Iterable[Array], progress: Progress) -> Histograms:
        """Run the graph over images in float32 and count what its tensors hold.

        Args:
            batches: What the graph takes, (N, C, H, W) float32 or frames, any N; read once, as needed.
            progress: Advanced by one an image; the caller, who knows how many there are, starts and
                finishes it.

        Raises:
            InputRefused: There are no images, an image has another shape or type, or a tensor holds NaN
                or infinity (named).
        """
        observe = partial(_observe, self._session, self._model.inputs[0].name, self._names)
        table: dict[str, Histogram] = {}
        for seen in _in_parallel(observe, _single_images(self._model, batches), self._threads):
            table = {name: merge(table[name], seen[name]) for name in self._names} if table else seen
            progress.advance(1)
        if not table:
            raise InputRefused("there are no calibration images.", cure="Give a folder or file with images.")
        return table


def collect(model: Artifact, batches: Iterable[Array], progress: Progress, threads: int) -> Histograms:
    """Open an FP32 graph and run it over images once, see `Instrument`."""
    return Instrument(model, threads).collect(batches, progress)


def count(values: Float32Array) -> Histogram:
    """Return the histogram of finite float32 values, any shape, with the narrowest bins that fit."""
    return _count_between(values, float(values.min()), float(values.max()))


def _count_between(values: Float32Array, low: float, high: float) -> Histogram:
    exponent = _fitting_exponent(max(-low, high))
    # Multiplying by a power of two is exact and the conversion truncates towards zero. To 32 bits it is a
    # vector instruction everywhere, to 64 one value after the other before AVX-512.
    scale, flat = np.float32(2.0**-exponent), values.ravel()
    counts = np.zeros(2 * BINS_A_SIDE - 1, np.int64)
    for start in range(0, flat.size, _IN_CACHE):
        bins = (flat[start : start + _IN_CACHE] * scale).astype(np.int32)
        bins += _CENTRE
        counts += np.bincount(bins, minlength=len(counts))
    return Histogram(exponent, counts, low, high)


def merge(one: Histogram, other: Histogram) -> Histogram:
    """Return the histogram of the values of both, exactly; the order does not matter."""
    exponent = max(one.exponent, other.exponent)
    return Histogram(
        exponent,
        _widened(one, exponent) + _widened(other, exponent),
        min(one.low, other.low),
        max(one.high, other.high),
    )


def _fitting_exponent(largest: float) -> int:
    """Return the smallest exponent with largest < 2048 * 2**exponent."""
    _, power = math.frexp(largest)  # largest < 2**power
    return max(power - (BINS_A_SIDE.bit_length() - 1), _NARROWEST) if largest > 0 else _NARROWEST


def _widened(histogram: Histogram, exponent: int) -> Int64Array:
    """Return the counts in bins of width 2**exponent, not narrower than they are."""
    shift = exponent - histogram.exponent
    if shift == 0:
        return histogram.counts
    magnitudes = np.abs(np.arange(-_CENTRE, BINS_A_SIDE)) >> min(shift, 62)
    bins = np.sign(np.arange(-_CENTRE, BINS_A_SIDE)) * magnitudes + _CENTRE
    counts = np.zeros_like(histogram.counts)
    np.add.at(counts, bins, histogram.counts)
    return counts


def _single_images(model: Artifact, batches: Iterable[Array]) -> Iterator[Array]:
    (spec,) = model.inputs
    shape = spec.shape[1:]
    for batch in batches:
        if batch.dtype != spec.dtype or batch.shape[1:] != shape:
            raise InputRefused(
                f"calibration images are {batch.dtype} {batch.shape[1:]}, "
                f"the model takes {spec.dtype} {shape}.",
                where=spec.name,
            )
        for image in batch:
            yield np.ascontiguousarray(image[None])


def _in_parallel(
    observe: Callable[[Array], dict[str, Histogram]],
    images: Iterator[Array],
    threads: int,
) -> Iterator[dict[str, Histogram]]:
    """Yield `observe` of each image, in order; few are in flight, so memory stays small."""
    pending: deque[Future[dict[str, Histogram]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for image in images:
                pending.append(pool.submit(observe, image))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _observe(
    session: ort.InferenceSession, input_name: str, names: tuple[str, ...], image: Array
) -> dict[str, Histogram]:
    computed = [name for name in names if name != input_name]
    tensors = dict(zip(computed, session.run(computed, {input_name: image}), strict=True))
    tensors[input_name] = image
    return {name: _count_finite(name, tensors[name]) for name in names}


def _count_finite(name: str, values: Float32Array) -> Histogram:
    low, high = float(values.min()), float(values.max())
    # A NaN anywhere makes both extremes NaN, an infinity is one of them.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputRefused(
            "holds NaN or infinity on a calibration image.",
            where=name,
            cure="Check the weights and the images.",
        )
    return _count_between(values, low, high)


def _open_instrumented(model: Artifact) -> tuple[tuple[str, ...], ort.InferenceSession]:
    """Open the graph with every tensor that a scheme may quantise among its outputs."""
    import onnxruntime as ort
    from onnxruntime.capi import (  # type: ignore[import-untyped]
        onnxruntime_pybind11_state as failures,
    )

    parsed = read_graph(model.read(), str(model.path))
    values = _observed_values(parsed.graph)
    for value in values:
        if not (value.is_graph_input() or value.is_graph_output()):
            parsed.graph.outputs.append(value)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(write_graph(parsed), options, providers=["CPUExecutionProvider"])
    except (failures.Fail, failures.InvalidGraph, failures.NotImplemented) as error:
        reason = str(error).splitlines()[0]
        raise GraphRefused(f"ONNX Runtime cannot run it ({reason}).", where=str(model.path)) from error
    return tuple(name_of(value) for value in values), session


def _observed_values(graph: ir.Graph) -> tuple[ir.Value, ...]:
    import onnx_ir as ir

    sites = [site for scheme in SCHEMES.values() for site in activation_sites(graph, scheme)]
    values = tuple(dict.fromkeys(site.origin for site in sites))
    if not values:
        raise GraphRefused("has nothing to quantise.", where=graph.name or "the graph")
    for value in values:
        value.dtype = value.dtype or ir.DataType.FLOAT  # an output of a file states its type
        producer = value.producer()
        if value.dtype != ir.DataType.FLOAT:
            raise GraphRefused(
                f"gives {value.dtype}, calibration needs the FP32 graph.",
                where=label(producer) if producer is not None else name_of(value),
            )
    return values
