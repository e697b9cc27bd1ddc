"""From measurements to verdicts, their document, and the exit code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from resedge import files
from resedge.artifacts import (
    Accuracy,
    Artifact,
    Engine,
    JsonValue,
    Verdict,
    canonical_json,
    encode,
    sha256_bytes,
    sha256_json,
)
from resedge.engines import EngineName
from resedge.errors import BuildFailed, NotFinite, RuntimeUnavailable
from resedge.images import ImageSet
from resedge.pipeline.differing import Differences
from resedge.pipeline.measuring import Latencies
from resedge.pipeline.options import Measuring
from resedge.pipeline.staging import Done, Site, run_stage, versions
from resedge.store import Key

T = TypeVar("T")

INTERRUPTED = 130
ON_DEVICE = "to be built on the device"


@dataclass
class Findings:
    """What is known of each engine that was asked for, as it is found.

    `missing` could not be built or opened, `broken` gives no usable answers; both map to the reason.
    `failed` are the runtimes that are installed and yet lack an engine. `differences` has the images on
    which an engine and eager choose another class.
    """

    accuracies: dict[EngineName, Accuracy] = field(default_factory=dict)
    differences: dict[EngineName, Differences] = field(default_factory=dict)
    missing: dict[EngineName, str] = field(default_factory=dict)
    broken: dict[EngineName, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def compared(self, name: EngineName, compare: Callable[[], T]) -> T | None:
        """Return what `compare` finds of an engine; None where it cannot be run, and the reason is noted."""
        try:
            return compare()
        except RuntimeUnavailable as error:
            self.lacks(name, error)
        except NotFinite as error:
            self.broken[name] = str(error)
        return None

    def lacks(self, name: EngineName, error: RuntimeUnavailable) -> None:
        """Note why an engine is not there."""
        self.missing[name] = str(error)
        if isinstance(error, BuildFailed):
            self.failed.add(name[0])


@dataclass(frozen=True)
class Judged:
    """The verdicts in the order of the engines asked for, and their files."""

    verdicts: tuple[Verdict, ...]
    document: Artifact
    files: tuple[Artifact, ...]


def with_inputs(latencies: Latencies, measuring: Measuring, test: ImageSet, weights: str) -> Latencies:
    """Return what was measured with what it rests on among its conditions.

    Args:
        latencies: As they were measured.
        measuring: Its budget is named.
        test: The test images; they are named by a digest that does not depend on their order.
        weights: The digest of the weights that eager was made from.
    """
    budget = {name: getattr(measuring, name) for name in ("max_drop", "min_speedup", "confidence")}
    labels = [None] * len(test) if test.labels is None else test.labels.tolist()
    images = sorted(zip(test.digests, map(str, labels), strict=True))
    inputs: dict[str, JsonValue] = {"budget": budget, "test_images": sha256_json(images), "weights": weights}
    return replace(latencies, conditions={**latencies.conditions, **inputs})


def judge_all(
    engines: tuple[EngineName, ...],
    findings: Findings,
    latencies: Latencies,
    measuring: Measuring,
    *,
    demand_stable: bool = False,
) -> tuple[Verdict, ...]:
    """Judge every engine that was asked for; with `demand_stable` an unstable run settles nothing of time."""
    from resedge.benchmarks.verdict import Budget, judge, levels, unavailable

    budget = Budget(measuring.max_drop, measuring.min_speedup, measuring.confidence)
    held_to = levels(findings.accuracies, budget)
    stable = latencies.stability.stable or not demand_stable

    def verdict(name: EngineName) -> Verdict:
        if name in findings.missing:
            return unavailable(*name, findings.missing[name])
        if name in findings.broken:
            return Verdict(*name, "fail", (findings.broken[name],))
        return judge(
            *name,
            findings.accuracies[name],
            latencies.of(name),
            budget,
            latencies.conditions,
            held_to=held_to[name],
            stable=stable,
        )

    return tuple(verdict(name) for name in engines)


def judged(
    site: Site,
    engines: tuple[EngineName, ...],
    findings: Findings,
    latencies: Latencies,
    measuring: Measuring,
    *,
    model: str,
    reference: str,
) -> Done[Judged]:
    """Judge every engine and write verdicts/, one JSON an engine and the document of all."""
    key = Key(
        "verdicts",
        inputs={},
        options={
            "engines": encode(engines),
            "missing": {":".join(name): reason for name, reason in findings.missing.items()},
            "broken": {":".join(name): reason for name, reason in findings.broken.items()},
            "accuracies": {":".join(name): encode(a) for name, a in findings.accuracies.items()},
            "latencies": encode(latencies),
            "measuring": encode(measuring),
            "model": model,
            "reference": reference,
        },
        versions=versions(),
    )

    def make(folder: Path) -> Judged:
        (folder / "verdicts").mkdir()
        verdicts = judge_all(engines, findings, latencies, measuring)
        document = document_of(verdicts, model, reference, latencies)
        each = tuple(_write(folder / f"verdicts/{v.runtime}-{v.precision}.json", encode(v)) for v in verdicts)
        return Judged(verdicts, _write(folder / "verdicts/all.json", document), each)

    return run_stage(site, key, Judged, make)


def document_of(
    verdicts: tuple[Verdict, ...], model: str, reference: str, latencies: Latencies
) -> dict[str, JsonValue]:
    """Return the verdicts as the JSON document of `--json`, schema 1."""
    from resedge.benchmarks.report import document

    run: dict[str, JsonValue] = {
        "eager": encode(latencies.eager),
        "stability": encode(latencies.stability),
        "self_check": encode(latencies.self_check),
        "partial": latencies.partial,
    }
    return {**document(model, reference, latencies.conditions, verdicts), **run}


def exit_code(
    verdicts: tuple[Verdict, ...],
    named: frozenset[str],
    findings: Findings,
    *,
    budget_met: bool = True,
    latencies: Latencies | None = None,
) -> int:
    """Return what the verdicts come to; an absent backend counts where it was named or has failed.

    Where no INT8 graph met the budget on the tuning images, one that the test images do not certify either
    has failed. An interrupted measurement is that before all else.
    """
    from resedge.benchmarks.verdict import exit_code

    if latencies and latencies.partial:
        return INTERRUPTED
    alarm = latencies is not None and latencies.self_check is not None and latencies.self_check.alarm
    open_question = any(v.precision == "int8" and v.outcome == "inconclusive" for v in verdicts)
    code = exit_code(verdicts, named | findings.failed, alarm=alarm)
    return 1 if code == 3 and open_question and not budget_met else code


def sizes(engines: Mapping[EngineName, Engine]) -> dict[EngineName, int]:
    """Return the bytes of each engine's files."""
    return {
        name: sum(artifact.path.stat().st_size for artifact in (engine.artifact, *engine.companions))
        for name, engine in engines.items()
    }


def _write(path: Path, document: JsonValue) -> Artifact:
    content = canonical_json(document).encode()
    files.write_bytes(path, content)
    return Artifact(path, sha256_bytes(content), "verdict")
