"""What serves on a device, and what was done: from its link and its journal, without a lock.

It is told of a release that is damaged, too: whoever is to mend that has to be able to ask.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone

from resedge.agent import journal
from resedge.agent.engines import read_engine, read_trial
from resedge.agent.journal import Journal
from resedge.agent.layout import Layout
from resedge.agent.releases import manifest_of
from resedge.errors import InputRefused
from resedge.shipping import moments, wire


def status(layout: Layout) -> wire.Status:
    """Return what serves, since when, how its last trial went, and what is kept.

    Raises:
        InputRefused: The journal cannot be read, or the link leads to no release.
    """
    known = journal.read(layout)
    return wire.Status(
        trusts=layout.signers.is_file(),
        serving=serving(layout, known),
        counter=known.counter,
        newest_signed=known.newest_signed,
        releases=known.releases,
        operation=known.operation,
        last_failure=known.last_failure,
    )


def serving(layout: Layout, known: Journal) -> wire.Serving | None:
    """Return what the link leads to; its own time is when it was made to.

    Raises:
        InputRefused: It leads to no release, or to one that was never committed and cannot be read.
    """
    digest = layout.serving()
    if digest is None:
        return None
    release = known.release(digest) or described(layout, digest)
    since = datetime.fromtimestamp(layout.current.lstat().st_mtime, timezone.utc)
    trial = None
    with suppress(InputRefused):  # a record that is damaged is none
        trial = read_trial(layout, digest)
    return wire.Serving(digest, release.counter, release.model, release.engine, moments.to_text(since), trial)


def described(layout: Layout, digest: str) -> wire.Release:
    """Return what a release is, from its own files, as of now.

    Raises:
        InputRefused: They cannot be read.
    """
    manifest, engine = manifest_of(layout, digest), read_engine(layout, digest)
    name, now = f"{engine.runtime}:{engine.precision}", moments.to_text(moments.now())
    return wire.Release(digest, manifest.counter, manifest.model.name, name, now)
