"""From measurements to verdicts, their document, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
)
from resedge.pipeline.measuring import Latencies
from resedge.pipeline.options import EngineName, Measuring
from resedge.pipeline.staging import Done, Site, run_stage, versions
from resedge.store import Key

ON_DEVICE = "to be built on the device"


@dataclass(frozen=True)
class Judged:
    """The verdicts in the order of the engines asked for, and their files."""

    verdicts: tuple[Verdict, ...]
    document: Artifact
    files: tuple[Artifact, ...]


def judge_all(
    engines: tuple[EngineName, ...],
    missing: Mapping[EngineName, str],
    accuracies: Mapping[EngineName, Accuracy],
    latencies: Latencies,
    measuring: Measuring,
) -> tuple[Verdict, ...]:
    """Judge every engine that was asked for; what is `missing` gets its reason."""
    from resedge.benchmarks.verdict import Budget, judge, unavailable

    budget = Budget(measuring.max_drop, measuring.min_speedup, measuring.confidence)

    def verdict(name: EngineName) -> Verdict:
        if name in missing:
            return unavailable(*name, missing[name])
        return judge(*name, accuracies[name], latencies.of(name), budget, latencies.conditions)

    return tuple(verdict(name) for name in engines)


def judged(
    site: Site,
    engines: tuple[EngineName, ...],
    missing: Mapping[EngineName, str],
    accuracies: Mapping[EngineName, Accuracy],
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
            "missing": {f"{runtime}:{p}": reason for (runtime, p), reason in missing.items()},
            "accuracies": {f"{runtime}:{p}": encode(a) for (runtime, p), a in accuracies.items()},
            "latencies": encode(latencies),
            "measuring": encode(measuring),
            "model": model,
            "reference": reference,
        },
        versions=versions(),
    )

    def make(folder: Path) -> Judged:
        (folder / "verdicts").mkdir()
        verdicts = judge_all(engines, missing, accuracies, latencies, measuring)
        document = document_of(verdicts, model, reference, latencies.conditions)
        each = tuple(_write(folder / f"verdicts/{v.runtime}-{v.precision}.json", encode(v)) for v in verdicts)
        return Judged(verdicts, _write(folder / "verdicts/all.json", document), each)

    return run_stage(site, key, Judged, make)


def document_of(
    verdicts: tuple[Verdict, ...], model: str, reference: str, conditions: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Return the verdicts as the JSON document of `--json`, schema 1."""
    from resedge.benchmarks.report import document

    return document(model, reference, conditions, verdicts)


def exit_code(verdicts: tuple[Verdict, ...], named: frozenset[str]) -> int:
    """Return what the verdicts come to; an absent backend counts where the user named it."""
    from resedge.benchmarks.verdict import exit_code

    return exit_code(verdicts, named)


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
