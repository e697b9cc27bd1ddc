"""`resedge export`: from a model and images to a bundle of verified engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resedge import bundle as bundles
from resedge import home, machine
from resedge.artifacts import Artifact, Engine, JsonValue, Verdict, parse_json, read_text
from resedge.bundle import Manifest, Published
from resedge.engines import BUILT_ON_DEVICE, GRAPHS, EngineName
from resedge.errors import RuntimeUnavailable
from resedge.export import names
from resedge.export.names import Named
from resedge.export.sources import given
from resedge.pipeline import judging, measuring, presenting
from resedge.pipeline.datasets import export_data
from resedge.pipeline.energy import say_energy
from resedge.pipeline.extras import require
from resedge.pipeline.judging import Findings, Judged
from resedge.pipeline.manifesting import manifest_of
from resedge.pipeline.modelling import loaded
from resedge.pipeline.options import ExportOptions
from resedge.pipeline.preparing import Prepared, prepare
from resedge.pipeline.reporting import Reporter, Silent
from resedge.pipeline.staging import Data, Done, Site
from resedge.pipeline.vouching import vouch
from resedge.store import Store


@dataclass(frozen=True)
class Exported:
    """What an export made.

    `sizes` has the bytes of each engine, `document` the verdicts as JSON, `exit_code` what they come
    to, and `all_reused` says that every stage was found done.
    """

    published: Published
    verdicts: tuple[Verdict, ...]
    sizes: Mapping[EngineName, int]
    document: Mapping[str, JsonValue]
    exit_code: int
    all_reused: bool


def export(
    options: ExportOptions,
    reporter: Reporter | None = None,
    *,
    module: Any = None,  # noqa: ANN401 - an nn.Module
) -> Exported:
    """Do the whole job: trace, fold, calibrate, build, verify, and write the bundle.

    Args:
        options: What is asked for. A model that is code is run: the options name it.
        reporter: Who is told; nobody by default.
        module: An nn.Module to take in the place of `options.model`; `options.images.input_shape` says what
            it takes. It is left as it is.

    Raises:
        ResedgeError: Of the tree in `resedge.errors`; the bundle is then as it was before.
    """
    named = names.parse(options.model) if module is None else names.of_module(module)
    require("an export", "export", "onnxruntime", "bench")
    with given(named):
        return _export(named, replace(options, model=named.label), reporter or Silent())


def _export(named: Named, options: ExportOptions, reporter: Reporter) -> Exported:
    out = options.out or Path(f"{named.stem}.resedge")
    bundles.check_place(out)
    store = Store(home.cache_folder())
    here = machine.describe()
    site = Site(store, here.digest, options.measuring.threads, reporter)

    model = loaded(site, named, options)
    data = export_data(options, model.about, reporter)
    prepared = prepare(site, data, model, options, here)
    findings = Findings()
    engines = _build(site, options, prepared, findings)
    judged = _measure(site, data, options, prepared, engines, findings)

    built = [done.value for done in engines.values()]
    report = presenting.report(site, data, options, prepared, findings, built, judged.value)
    finished: tuple[Done[Any], ...] = (*prepared.done, *engines.values(), judged, report)
    places = {name: path for done in finished for name, path in done.places.items()}
    with_report = replace(judged.value, files=(*judged.value.files, report.value.page))
    manifest = manifest_of(options, data, here, prepared, built, with_report, places)
    _say_replaced(out, manifest, reporter)
    vouch(built, (file for file in manifest.files if file.kind.startswith("onnx/")))
    published = bundles.publish(manifest, places, out)
    store.shrink()
    return Exported(
        published,
        judged.value.verdicts,
        judging.sizes({name: built.value for name, built in engines.items()}),
        _as_object(judged.value.document),
        judging.exit_code(
            judged.value.verdicts,
            options.selection.named,
            findings,
            budget_met=prepared.calibrated.value.met,
        ),
        all_reused=all(done.reused for done in finished),
    )


def _say_replaced(out: Path, manifest: Manifest, reporter: Reporter) -> None:
    """Warn of what the bundle at `out` has and this one will not have."""
    if not bundles.is_bundle(out):
        return
    old = bundles.read(out).manifest
    names = [{f"{e.runtime}:{e.precision}" for e in m.engines} for m in (old, manifest)]
    if lost := sorted(names[0] - names[1]):
        reporter.warn(f"{out} had {', '.join(lost)}, which this export leaves out")
    if old.parents["weights"] != manifest.parents["weights"]:
        reporter.warn(f"{out} was made from other weights and is replaced")


def _build(
    site: Site, options: ExportOptions, prepared: Prepared, findings: Findings
) -> dict[EngineName, Done[Engine]]:
    """Build the engines that were asked for; a backend that fails does not stop the others."""
    graph_of = {artifact.path: artifact for artifact in prepared.files}
    built: dict[EngineName, Done[Engine]] = {}
    for name in options.selection.engines:
        runtime, precision = name
        if runtime in BUILT_ON_DEVICE:
            findings.missing[name] = _left_to_the_device(name, prepared)
            continue
        graph = graph_of[prepared.places[GRAPHS[name]]]
        try:
            built[name] = measuring.built_engine(site, name, graph, prepared.places)
        except RuntimeUnavailable as error:
            findings.lacks(name, error)
            site.reporter.warn(f"{runtime} {precision}: {error}")
            continue
        megabytes = sum(judging.sizes({name: built[name].value}).values()) / 1e6
        reused = built[name].reused
        site.reporter.stage("build", f"{runtime} {precision}, {megabytes:.2f} MB", reused=reused)
    return built


def _left_to_the_device(name: EngineName, prepared: Prepared) -> str:
    """Say what an engine will be built from, and what NVIDIA's parser and builder made of that here."""
    graph = GRAPHS[name]
    if graph not in prepared.places:
        return "this model has no FP16 form"
    looked_at = prepared.preflights.get(graph)
    seen = f"; {looked_at.value.sentence()}" if looked_at else ""
    return f"{judging.ON_DEVICE} with `resedge build`, from {graph}{seen}"


def _measure(
    site: Site,
    data: Data,
    options: ExportOptions,
    prepared: Prepared,
    built: Mapping[EngineName, Done[Engine]],
    findings: Findings,
) -> Done[Judged]:
    """Measure what was built, and judge everything that was asked for."""
    measured = [
        done.value
        for name, done in built.items()
        if _verify(site, data, options, prepared, name, done.value, findings)
    ]
    latencies = measuring.measured_latency(
        site, data, prepared.reference.value.source, measured, options.measuring
    )
    rounds = f"{measuring.EXPORT_PACE.rounds} interleaved rounds at batch 1, {site.threads} threads"
    site.reporter.stage("time", rounds, reused=latencies.reused)
    measuring.say_disturbances(latencies.value, site.reporter)
    say_energy(latencies.value.conditions, site.reporter)
    return judging.judged(
        site,
        options.selection.engines,
        findings,
        judging.with_inputs(
            latencies.value, options.measuring, data.test, prepared.reference.value.checkpoint
        ),
        options.measuring,
        model=options.model,
        reference=prepared.name,
    )


def _verify(
    site: Site,
    data: Data,
    options: ExportOptions,
    prepared: Prepared,
    name: EngineName,
    engine: Engine,
    findings: Findings,
) -> bool:
    """Compare one engine with eager; return whether it can be timed."""
    called = " ".join(name)
    done = findings.compared(
        name,
        lambda: measuring.measured_accuracy(site, data, engine, prepared.answers, options.measuring),
    )
    if done is None:
        site.reporter.warn(f"{called}: {findings.missing.get(name) or findings.broken[name]}")
        return False
    accuracy = findings.accuracies[name] = done.value.accuracy
    findings.differences[name] = done.value.differences
    agreement = f"{called} agrees with eager on {accuracy.agreement:.2%} of the test images"
    site.reporter.stage("verify", agreement, reused=done.reused)
    if done.value.golden_agreement < 1:
        site.reporter.warn(
            f"{called} agrees on {done.value.golden_agreement:.1%} of the golden images alone: "
            "a device's trial will refuse it"
        )
    return True


def _as_object(document: Artifact) -> Mapping[str, JsonValue]:
    parsed: Any = parse_json(read_text(document.path), str(document.path))
    return dict(parsed)
