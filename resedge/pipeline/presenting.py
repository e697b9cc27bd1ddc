"""What people read of an export and of a bench: pages with their evidence, and what changed since before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from resedge import files
from resedge.artifacts import (
    Artifact,
    Engine,
    JsonValue,
    decode,
    encode,
    parse_json,
    read_text,
    sha256_bytes,
)
from resedge.bundle import Bundle, ModelInfo
from resedge.engines import EngineName
from resedge.images import ImageSet
from resedge.pipeline import judging
from resedge.pipeline.calibrating import LayersDocument, RangesDocument
from resedge.pipeline.commands import bench_command, export_command
from resedge.pipeline.differing import Differences
from resedge.pipeline.options import BenchOptions, ExportOptions
from resedge.pipeline.staging import Data, Done, Site, run_stage, versions
from resedge.store import Key

if TYPE_CHECKING:
    from resedge.benchmarks.comparing import Changes
    from resedge.benchmarks.documents import BenchDocument
    from resedge.benchmarks.evidence import Contest, Evidence, Flips, LayerCost
    from resedge.calibration.bakeoff import BakeOff
    from resedge.pipeline.benching import Benched
    from resedge.pipeline.judging import Findings, Judged
    from resedge.pipeline.preparing import Prepared

T = TypeVar("T")

_PICTURES: Final = 450_000  # bytes of PNG on a page, a third more in base64; the page stays below 1 MB
_SCHEMES: Final = {"cpu": "CPUs", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class Reported:
    """The page that a bundle carries."""

    page: Artifact


def report(
    site: Site,
    data: Data,
    options: ExportOptions,
    prepared: Prepared,
    findings: Findings,
    engines: Sequence[Engine],
    judged: Judged,
) -> Done[Reported]:
    """Write verdicts/report.html: the same inputs give the same bytes, with no time, host or path."""
    calibrated = prepared.calibrated.value
    sizes = judging.sizes({(engine.runtime, engine.precision): engine for engine in engines})
    command = export_command(options)
    class_names = data.labels
    key = Key(
        "report",
        inputs={
            "verdicts": judged.document.sha256,
            "layers": calibrated.layers.sha256,
            "ranges": calibrated.ranges.sha256,
            "test": data.test.sha256,
        },
        options={
            "command": command,
            "classes": list(class_names),
            "differences": {":".join(name): encode(found) for name, found in findings.differences.items()},
            "sizes": {":".join(name): size for name, size in sizes.items()},
        },
        versions=versions("numpy"),
    )

    def make(folder: Path) -> Reported:
        from resedge.benchmarks.documents import read_document
        from resedge.benchmarks.page import page

        where = str(judged.document.path)
        document = read_document(parse_json(judged.document.read().decode(), where), where)
        evidence = evidence_of(
            (calibrated.layers, calibrated.ranges),
            data.test,
            class_names,
            findings.differences,
            sizes,
            command,
        )
        path, content = folder / "verdicts/report.html", page(document, evidence).encode()
        path.parent.mkdir()
        files.write_bytes(path, content)
        return Reported(Artifact(path, sha256_bytes(content), "report"))

    return run_stage(site, key, Reported, make)


def write_pages(found: Benched, options: BenchOptions, html: Path | None, markdown: Path | None) -> None:
    """Write what was found as HTML and as Markdown, where a place is given."""
    from resedge.benchmarks import markdown as in_markdown
    from resedge.benchmarks import page as in_html
    from resedge.benchmarks.documents import read_document

    if html is None and markdown is None:
        return
    document, evidence = read_document(found.document, "this bench"), _bench_evidence(found, options)
    if html is not None:
        files.write_bytes(html, in_html.page(document, evidence, found.changes).encode())
    if markdown is not None:
        files.write_bytes(markdown, in_markdown.markdown(document, evidence, found.changes).encode())


def older(path: Path, model: ModelInfo) -> BenchDocument:
    """Read the document that a bench is to be compared with.

    Raises:
        InputRefused: It cannot be read, is of another schema, or of another model than `model`.
    """
    from resedge.benchmarks.comparing import check_comparable
    from resedge.benchmarks.documents import read_document

    before = read_document(parse_json(read_text(path), str(path)), str(path))
    check_comparable(before, model.name, model.reference, str(path))
    return before


def changes_since(before: BenchDocument, document: Mapping[str, JsonValue]) -> Changes:
    """Return what changed from an older document to this one."""
    from resedge.benchmarks.comparing import compare_documents
    from resedge.benchmarks.documents import read_document

    return compare_documents(before, read_document(document, "this bench"))


def joined(code: int, changes: Changes | None) -> int:
    """Return the exit code of verdicts and of what changed together."""
    from resedge.benchmarks import comparing

    return code if changes is None else comparing.joined(code, comparing.exit_code(changes))


def evidence_of(
    calibration: tuple[Artifact, Artifact] | None,
    test: ImageSet,
    class_names: tuple[str, ...],
    differing: Mapping[EngineName, Differences],
    sizes: Mapping[EngineName, int],
    command: str,
) -> Evidence:
    """Gather what a page shows beside the verdicts.

    Args:
        calibration: calibration/layers.json and calibration/ranges.json, absolute; None where they are not.
        test: The test images.
        class_names: By the model's class.
        differing: The images on which each engine and eager choose another class.
        sizes: The bytes of each engine.
        command: What does it all again.
    """
    from resedge.benchmarks.evidence import Evidence

    return Evidence(
        command,
        class_names,
        dict(sizes),
        _layers(_read(LayersDocument, calibration[0])) if calibration else (),
        _contests(_read(RangesDocument, calibration[1])) if calibration else (),
        _flips(test, class_names, differing),
    )


def _bench_evidence(found: Benched, options: BenchOptions) -> Evidence:
    manifest = found.bundle.manifest
    return evidence_of(
        _calibration(found.bundle),
        found.test,
        manifest.labels,
        found.findings.differences,
        found.sizes,
        bench_command(options),
    )


def _calibration(bundle: Bundle) -> tuple[Artifact, Artifact] | None:
    names = ("calibration/layers.json", "calibration/ranges.json")
    there = {artifact.path.as_posix() for artifact in bundle.manifest.files}
    return (bundle.file(names[0]), bundle.file(names[1])) if there.issuperset(names) else None


def _read(kind: type[T], file: Artifact) -> T:
    return decode(kind, parse_json(file.read().decode(), str(file.path)), str(file.path))


def _layers(document: LayersDocument) -> tuple[LayerCost, ...]:
    from resedge.benchmarks.evidence import LayerCost

    kept = frozenset(document.search.kept)
    return tuple(
        LayerCost(s.name, s.share, s.kl_gain, s.agreement_gain, s.sqnr, s.name in kept)
        for s in document.sensitivity or ()
    )


def _contests(document: RangesDocument) -> tuple[Contest, ...]:
    return tuple(
        _contest(_SCHEMES.get(scheme, scheme), subject, found)
        for scheme, choice in document.schemes.items()
        for subject, found in (("Ranges", choice.methods), ("Weights", choice.fits))
    )


def _contest(scheme: str, subject: str, found: BakeOff) -> Contest:
    from resedge.benchmarks.evidence import Candidate, Contest

    candidates = (Candidate(e.name, e.score.disagreements, e.score.kl) for e in found.scores)
    return Contest(scheme, subject, found.best.images, found.winner, tuple(candidates))


def _flips(
    test: ImageSet, class_names: tuple[str, ...], differing: Mapping[EngineName, Differences]
) -> tuple[Flips, ...]:
    """Draw the images, from each engine as many, so that all of them fit the page."""
    from resedge.benchmarks.evidence import Flip, Flips
    from resedge.benchmarks.pictures import png, thumbnail

    wanted = sorted({one.image for found in differing.values() for one in found.first})
    pictures = {image: png(thumbnail(test.decode([image])[0])) for image in wanted}
    most = max((len(found.first) for found in differing.values()), default=0)
    while sum(len(pictures[d.image]) for f in differing.values() for d in f.first[:most]) > _PICTURES:
        most -= 1

    def called(number: int) -> str:
        return class_names[number] if number < len(class_names) else str(number)

    def flip(image: int, eager: int, engine: int) -> Flip:
        label = None if test.labels is None else called(int(test.labels[image]))
        return Flip(image, label, called(eager), called(engine), pictures[image])

    return tuple(
        Flips(*name, found.total, tuple(flip(d.image, d.eager, d.engine) for d in found.first[:most]))
        for name, found in differing.items()
    )
