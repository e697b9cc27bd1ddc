"""The engine of a release: the bundle's own, or one that is built here, and how it does in a trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from resedge import bundle as bundles
from resedge import files
from resedge.agent import children
from resedge.agent.layout import Layout, remove
from resedge.artifacts import Artifact, Engine, sha256_file
from resedge.bundle import Bundle
from resedge.codec import canonical_json, encode, load
from resedge.engines import BUILT_ON_DEVICE, GRAPHS, EngineName
from resedge.errors import InputRefused
from resedge.shipping import wire

ENGINE: Final = Path("engine", "engine.json")
_TRIAL: Final = "trial.json"
_TRIAL_SECONDS: Final = 600.0


def build(layout: Layout, digest: str, bundle: Bundle, name: EngineName) -> Engine:
    """Put the engine of that name into a release, unless it is there already.

    Returns:
        The engine, its files relative to the release.

    Raises:
        BuildFailed: The runtime refuses the graph, or its process crashed.
        MachineFailure: There is too little memory, or the disk is full or failing.
        ResedgeError: As a runtime's `build`.
    """
    release = layout.release(digest)
    place = release / ENGINE.parent
    if (release / ENGINE).exists():
        made = read_engine(layout, digest)
        if (made.runtime, made.precision) == name and is_sound(layout, digest):
            return made
    staged = release / f"{place.name}{files.ASIDE_SUFFIX}"
    with files.disk_errors(staged):
        remove(place)
        remove(staged)
        staged.mkdir()
    made = _own_engine(bundle, name) or _built(layout, release, staged, bundle, name)
    files.write_bytes(staged / ENGINE.name, canonical_json(encode(made)).encode())
    with files.disk_errors(place):
        files.sync_tree(staged)
        staged.rename(place)
        files.sync_folder(release)
    return made


def read_engine(layout: Layout, digest: str) -> Engine:
    """Return the engine of a release, its files relative to the release.

    Raises:
        InputRefused: There is none, or its record cannot be read.
    """
    return load(Engine, layout.release(digest) / ENGINE)


def is_sound(layout: Layout, digest: str) -> bool:
    """Whether the files of a release's engine are those of its record.

    Raises:
        InputRefused: As `read_engine`.
    """
    engine = bundles.resolve(read_engine(layout, digest), layout.release(digest))
    parts = (engine.artifact, *engine.companions)
    return all(part.path.is_file() and sha256_file(part.path) == part.sha256 for part in parts)


def read_trial(layout: Layout, digest: str) -> wire.Trial | None:
    """Return how the last trial of a release went; None where there was none.

    Raises:
        InputRefused: Its record cannot be read.
    """
    path = layout.release(digest) / _TRIAL
    return load(wire.Trial, path) if path.exists() else None


def try_out(layout: Layout, digest: str, bundle: Bundle, limits: wire.Limits) -> wire.Trial:
    """Run the engine of a release on the golden images, time it, and keep the outcome beside it.

    Raises:
        BuildFailed: The runtime refuses the engine, or its process crashed or did not come to an end.
        ResedgeError: As a runtime's `open`.
    """
    trial = replay(layout.release(digest), bundle, read_engine(layout, digest), limits)
    files.write_bytes(layout.release(digest) / _TRIAL, canonical_json(encode(trial)).encode())
    return trial


def replay(release: Path, bundle: Bundle, engine: Engine, limits: wire.Limits) -> wire.Trial:
    """Run an engine on the golden images of its bundle.

    Args:
        release: The folder of the release, by whatever way it is reached.
        bundle: The release's own.
        engine: Its files relative to `release`.
        limits: What it may take.

    Raises:
        ResedgeError: As `try_out`.
    """
    golden, thresholds = (_named(bundle, name) for name in (bundles.GOLDEN, bundles.THRESHOLDS))
    request = children.Replay(str(release), engine, golden, thresholds, limits)
    return children.ask(wire.Trial, request, _TRIAL_SECONDS)


def _own_engine(bundle: Bundle, name: EngineName) -> Engine | None:
    """Return the engine that a bundle brings; a plan that it brings is never used."""
    engines = [e for e in bundle.manifest.engines if (e.runtime, e.precision) == name]
    if not engines or name[0] in BUILT_ON_DEVICE:
        return None
    return bundles.resolve(engines[0], Path("bundle"))


def _built(layout: Layout, release: Path, staged: Path, bundle: Bundle, name: EngineName) -> Engine:
    """Have a child build an engine into `staged`; return it as it will be once that has its name."""
    runtime, precision = name
    graph = _named(bundle, GRAPHS[name])
    request = children.Build(runtime, precision, str(release), graph, staged.name, str(layout.timing))
    made = children.ask(Engine, request)

    def renamed(artifact: Artifact) -> Artifact:
        if artifact.path.parent != Path(staged.name):
            return artifact
        return replace(artifact, path=ENGINE.parent / artifact.path.name)

    return replace(
        made, artifact=renamed(made.artifact), companions=tuple(renamed(part) for part in made.companions)
    )


def _named(bundle: Bundle, relative: str) -> Artifact:
    """Return a file of a bundle, relative to its release."""
    for artifact in bundle.manifest.files:
        if artifact.path.as_posix() == relative:
            return artifact.under(Path("bundle"))
    raise InputRefused(f"names no {relative}.", where=str(bundle.path / bundles.MANIFEST))
