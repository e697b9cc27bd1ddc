"""The engine that a device serves, for its application: open, checked, and held until it is let go."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resedge import bundle as bundles
from resedge.agent import engines, releases
from resedge.agent.layout import Layout
from resedge.bundle import Manifest
from resedge.errors import InputRefused
from resedge.protocols import Runner, RunOptions
from resedge.runtimes.table import runtime


@dataclass(frozen=True)
class Opened:
    """An engine that is loaded: the digest of its release, the bundle's manifest, and the runner."""

    digest: str
    manifest: Manifest
    engine: str
    run: Runner


@contextmanager
def open_current(root: Path, threads: int | None = None) -> Iterator[Opened]:
    """Open the engine that serves on this device.

    The signature over the bundle's manifest is checked, and every file that is loaded against it, or, where
    the engine was built here, against the record of that. The release stays until the block ends.

    Args:
        root: The device's folder.
        threads: How many compute; None: as many as this process may use.

    Raises:
        InputRefused: Nothing serves, the signature does not hold, or the release was dropped meanwhile.
        StaleArtifact: A file has changed.
        RuntimeUnavailable: The runtime is not there, or refuses the engine.
    """
    layout = Layout(root)
    digest = layout.serving()
    if digest is None:
        raise InputRefused("nothing serves here.", where=str(layout.current), cure="Ship a bundle first.")
    with _held(layout.release(digest)):
        manifest = releases.authentic_manifest(layout, digest)
        engine = bundles.resolve(engines.read_engine(layout, digest), layout.release(digest))
        options = RunOptions(threads or len(os.sched_getaffinity(0)), batch=1)
        with runtime(engine.runtime).open(engine, options) as run:
            yield Opened(digest, manifest, f"{engine.runtime}:{engine.precision}", run)


@contextmanager
def _held(release: Path) -> Iterator[None]:
    """Keep a release from being dropped; any number of applications may do so at once."""
    try:
        descriptor = os.open(release, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputRefused(f"cannot be opened ({error.strerror}).", where=str(release)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)
