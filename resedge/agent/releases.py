"""The releases of a device: staged whole, checked against their signed manifest, and collected in time."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resedge import bundle as bundles
from resedge import files
from resedge.agent import admission, journal
from resedge.agent.journal import Journal
from resedge.agent.layout import Layout, link_or_copy, remove
from resedge.artifacts import sha256_file
from resedge.bundle import Bundle, Manifest
from resedge.errors import InputRefused, StaleArtifact
from resedge.shipping.chunks import is_digest

_SEND_AGAIN = "Ship the bundle again."


def manifest_of(layout: Layout, digest: str) -> Manifest:
    """Return the manifest of a release.

    Raises:
        InputRefused: There is no such release, or it cannot be read.
    """
    return bundles.read(layout.bundle(digest)).manifest


def stage(layout: Layout, digest: str, manifest: Manifest) -> None:
    """Make a release of what has arrived; of one that is there, replace the files that have changed.

    Raises:
        InputRefused: Files are still missing.
        MachineFailure: The disk is full or failing.
    """
    release, arrived = layout.release(digest), layout.arriving(digest)
    if release.exists():
        _mend(layout.bundle(digest), arrived, manifest)
        return
    _demand_all(arrived, manifest)
    staged = release.with_name(f"{release.name}{files.ASIDE_SUFFIX}")
    with files.disk_errors(staged):
        bundle = staged / "bundle"
        bundle.mkdir(parents=True)
        for artifact in manifest.files:
            target = bundle / artifact.path
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(arrived / "files" / artifact.sha256, target)
        for name in (bundles.SIGNATURE, bundles.MANIFEST):
            link_or_copy(arrived / name, bundle / name)
        files.sync_tree(staged)
        staged.rename(release)
        files.sync_folder(layout.releases)


def authentic_manifest(layout: Layout, digest: str) -> Manifest:
    """Return the manifest of a release, its signature checked; its files are not looked at.

    Raises:
        InputRefused: Its signature does not hold.
        StaleArtifact: It is another manifest.
    """
    folder = layout.bundle(digest)
    found, manifest = admission.read_authentic(layout, folder)
    if found != digest:
        raise StaleArtifact("is not the manifest of this release.", where=str(folder), cure=_SEND_AGAIN)
    return manifest


def verify(layout: Layout, digest: str) -> Bundle:
    """Check a release: the signature over its manifest, and every file against that.

    Raises:
        InputRefused: Its signature does not hold.
        StaleArtifact: It is another manifest, or a file is missing, changed, or not in the manifest.
    """
    folder = layout.bundle(digest)
    manifest = authentic_manifest(layout, digest)
    bundle = bundles.read(folder)
    if bundle.manifest != manifest:
        raise StaleArtifact("changed while it was read.", where=str(folder), cure=_SEND_AGAIN)
    bundles.check(bundle)
    return bundle


def drop_arrived(layout: Layout, digest: str) -> None:
    """Remove what arrived of a bundle.

    Raises:
        MachineFailure, InputRefused: It cannot be removed.
    """
    _remove(layout.arriving(digest))


def drop(layout: Layout, digest: str) -> None:
    """Remove a release, which nothing may lead to.

    Raises:
        MachineFailure, InputRefused: It cannot be removed.
    """
    _remove(layout.release(digest))


@dataclass(frozen=True)
class Dropped:
    """The releases that were dropped, and those that stay for an application that has them open."""

    dropped: tuple[str, ...]
    in_use: tuple[str, ...]


def collect(layout: Layout, known: Journal, keep: int) -> Dropped:
    """Drop releases beyond the last ones, and what was never committed; the caller is alone.

    The one that serves stays, and so do those that an application holds open: it has a lock on the folder.
    """
    serving = layout.serving()
    kept = {release.digest for release in known.releases[-keep:]} | {serving}
    dropped, in_use = [], []
    with files.disk_errors(layout.releases):
        there = {path.name for path in layout.releases.iterdir() if is_digest(path.name)}
    for digest in sorted(there - kept):
        with suppress(TimeoutError), files.locked_folder(layout.release(digest), seconds=0):
            known = journal.write(layout, known.without(digest))
            drop(layout, digest)
            dropped.append(digest)
            continue
        in_use.append(digest)
    return Dropped(tuple(dropped), tuple(in_use))


def _mend(bundle: Path, arrived: Path, manifest: Manifest) -> None:
    """Put the files that have arrived in the place of those of a bundle that differ, one by one."""
    sources = {artifact.path: arrived / "files" / artifact.sha256 for artifact in manifest.files}
    sources |= {Path(name): arrived / name for name in (bundles.SIGNATURE, bundles.MANIFEST)}
    for name, source in sources.items():
        target = bundle / name
        with files.disk_errors(target):
            if source.is_file() and not (target.is_file() and sha256_file(target) == sha256_file(source)):
                target.parent.mkdir(parents=True, exist_ok=True)
                aside = bundle.parent / f"mended{files.ASIDE_SUFFIX}"
                remove(aside)
                shutil.copyfile(source, aside)
                files.sync_tree(aside.parent)
                aside.replace(target)
                files.sync_folder(target.parent)


def _demand_all(arrived: Path, manifest: Manifest) -> None:
    missing = [a.path for a in manifest.files if not (arrived / "files" / a.sha256).is_file()]
    if missing:
        raise InputRefused(
            f"{len(missing)} of {len(manifest.files)} files have not arrived, {missing[0]} among them.",
            where=arrived.name[:12],
            cure=_SEND_AGAIN,
        )


def _remove(folder: Path) -> None:
    """Remove a folder: out of sight in one step, then piece by piece."""
    with files.disk_errors(folder, "cannot be removed"):
        if folder.exists():
            aside = folder.with_name(f"{folder.name}{files.ASIDE_SUFFIX}")
            remove(aside)
            folder.rename(aside)
            remove(aside)
