"""MLPerf's LoadGen as the one who asks and takes the time, valid by its own rules.

LoadGen (package mlcommons-loadgen) draws samples, issues queries, measures, and says whether a run is valid.
It prepares its queries from what it is told to expect, and an engine that is quicker runs out of them; so it
is told to expect more than was seen. What is shorter than MLPerf's rules ask (MLPerf inference policies,
inference_rules: 600 seconds, and 24,576 samples offline) does not bear the name of MLPerf's scenario.
"""

from __future__ import annotations

import array
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from resedge.errors import MachineFailure, RuntimeUnavailable
from resedge.protocols import Array, Float32Array

Scenario = Literal["single stream", "offline"]

_FULL_SECONDS: Final = 600.0
_FULL_SAMPLES: Final = 24_576
_NAMES: Final[Mapping[Scenario, str]] = {"single stream": "SingleStream", "offline": "Offline"}
_PROBING_SECONDS: Final = 1.0
_QUICKER: Final = 4.0  # than its median while probing an engine may become, in a single stream
_MARGIN: Final = 1.3  # of throughput over what was seen while probing
_PREFIX: Final = ":::MLLOG "
_SEED: Final = 0x5EED


@dataclass(frozen=True)
class LoadResult:
    """What LoadGen said of one run.

    `name` is MLPerf's for the scenario where the run was as long as its rules ask. `p50_ms` to `p999_ms` are
    of queries, `early_p90_ms` and `early_p99_ms` LoadGen's estimates by early stopping, None where there were
    too few queries; offline, where all samples are one query, all of them are None.
    `samples_per_second` counts images. `faults` are the rules that were not met; a run with any is not valid.
    """

    name: str
    valid: bool
    seconds: float
    queries: int
    samples_per_second: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    early_p90_ms: float | None
    early_p99_ms: float | None
    faults: tuple[str, ...]
    version: str


def drive(
    run: Callable[[Array], Float32Array],
    images: Array,
    scenario: Scenario,
    seconds: float,
    batch: int,
) -> LoadResult:
    """Have LoadGen ask an engine, one image a query or all at once.

    Args:
        run: The engine, from (n, …) to logits.
        images: What it takes, (N, …); LoadGen draws among them.
        scenario: "single stream": the next query follows the answer; "offline": one query of all samples.
        seconds: The least duration of the run, above 0.
        batch: How many images the engine is given at once, offline.

    Raises:
        RuntimeUnavailable: LoadGen is not installed.
        MachineFailure: LoadGen wrote no result.
        Exception: What the engine raised.
    """
    lg = _imported()
    alone = scenario == "single stream"
    answering = _Answering(lg, run, images, 1 if alone else batch)
    settings = _settings(lg, scenario, seconds, answering.probed())
    with tempfile.TemporaryDirectory() as folder:
        _start(lg, answering, len(images), settings, folder)
        if answering.error is not None:
            raise answering.error
        told = read_log(Path(folder) / "mlperf_log_detail.txt")
    return result_of(told, scenario, seconds)


def read_log(path: Path) -> dict[str, Any]:
    """Return the last value of each key in LoadGen's detailed log.

    Raises:
        MachineFailure: It is not there, or cut off.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        entries = [json.loads(line.removeprefix(_PREFIX)) for line in lines if line.startswith(_PREFIX)]
    except (OSError, ValueError) as error:
        raise MachineFailure(f"LoadGen's log cannot be read ({error}).", where=str(path)) from error
    found = {entry["key"]: entry["value"] for entry in entries}
    if "result_validity" not in found:
        raise MachineFailure("LoadGen wrote no result.", where=str(path))
    return found


def result_of(told: Mapping[str, Any], scenario: Scenario, seconds: float) -> LoadResult:
    """Read a result from the log of a run of at least `seconds`."""
    alone = scenario == "single stream"
    queries = int(told["result_query_count"])
    rules = {
        "result_min_duration_met": "it was shorter than asked for",
        "result_min_queries_met": "there were too few queries",
        "early_stopping_met": "there were too few queries for its percentile",
    }
    faults = tuple(words for key, words in rules.items() if not told.get(key, True))

    def milliseconds(key: str) -> float | None:
        value = told.get(key) if alone else None
        return value / 1e6 if value else None

    samples = told["result_qps_without_loadgen_overhead" if alone else "result_samples_per_second"]
    drawn = queries if alone else told.get("effective_samples_per_query", 0) * queries
    full = seconds >= _FULL_SECONDS and (alone or drawn >= _FULL_SAMPLES)
    return LoadResult(
        name=_NAMES[scenario] if full else f"{scenario}, {seconds:g} s",
        valid=told["result_validity"] == "VALID",
        seconds=seconds,
        queries=queries,
        samples_per_second=float(samples),
        p50_ms=milliseconds("result_50.00_percentile_latency_ns"),
        p90_ms=milliseconds("result_90.00_percentile_latency_ns"),
        p99_ms=milliseconds("result_99.00_percentile_latency_ns"),
        p999_ms=milliseconds("result_99.90_percentile_latency_ns"),
        early_p90_ms=milliseconds("early_stopping_latency_ss"),
        early_p99_ms=milliseconds("early_stopping_latency_ms"),
        faults=faults,
        version=str(told["loadgen_version"]).split(" ")[0],
    )


class _Answering:
    """Answers LoadGen's queries with an engine; keeps what that raises, which LoadGen cannot hand on."""

    def __init__(
        self,
        lg: Any,  # noqa: ANN401 - a module
        run: Callable[[Array], Float32Array],
        images: Array,
        batch: int,
    ) -> None:
        self._lg = lg
        self._run = run
        self._images = images
        self._batch = batch
        self.error: Exception | None = None

    def probed(self) -> float:
        """Return the median seconds of a call, after as many to warm up."""
        batch = np.ascontiguousarray(np.resize(self._images, (self._batch, *self._images.shape[1:])))
        times: list[float] = []
        end = time.perf_counter() + 2 * _PROBING_SECONDS
        while time.perf_counter() < end or len(times) < 4:
            begin = time.perf_counter()
            self._run(batch)
            times.append(time.perf_counter() - begin)
        return statistics.median(times[len(times) // 2 :]) / self._batch

    def issue(self, samples: list[Any]) -> None:
        """Answer a query, or the one of all samples batch after batch."""
        for start in range(0, len(samples), self._batch):
            self._answer(samples[start : start + self._batch])

    def _answer(self, samples: list[Any]) -> None:
        classes = np.zeros(len(samples), np.float32)
        if self.error is None:
            try:
                images = np.ascontiguousarray(self._images[[sample.index for sample in samples]])
                classes = self._run(images).argmax(axis=1).astype(np.float32)
            except Exception as error:  # noqa: BLE001 - raised again once LoadGen has ended
                self.error = error
        held = [array.array("B", one.tobytes()) for one in classes]
        responses = [
            self._lg.QuerySampleResponse(sample.id, *data.buffer_info())
            for sample, data in zip(samples, held, strict=True)
        ]
        self._lg.QuerySamplesComplete(responses)


def _settings(lg: Any, scenario: Scenario, seconds: float, seconds_an_image: float) -> Any:  # noqa: ANN401
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, _NAMES[scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(1000 * seconds)
    settings.min_query_count = 64 if scenario == "single stream" else 1
    settings.single_stream_expected_latency_ns = max(int(seconds_an_image / _QUICKER * 1e9), 1)
    least = _FULL_SAMPLES / seconds if seconds >= _FULL_SECONDS else 1.0
    settings.offline_expected_qps = max(_MARGIN / seconds_an_image, least)
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = _SEED
    return settings


def _start(lg: Any, answering: _Answering, images: int, settings: Any, folder: str) -> None:  # noqa: ANN401
    output = lg.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = folder, False
    logging = lg.LogSettings()
    logging.log_output, logging.enable_trace = output, False
    system = lg.ConstructSUT(answering.issue, lambda: None)
    library = lg.ConstructQSL(images, images, lambda _: None, lambda _: None)
    try:
        lg.StartTestWithLogSettings(system, library, settings, logging)
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(system)


def _imported() -> Any:  # noqa: ANN401
    try:
        import mlperf_loadgen  # type: ignore[import-not-found]
    except ImportError as error:
        raise RuntimeUnavailable(
            "MLPerf's LoadGen is not installed.", cure="Try: pip install 'resedge[loadgen]'"
        ) from error
    return mlperf_loadgen
