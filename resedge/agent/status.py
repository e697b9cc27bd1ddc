"""What serves on a device, and what was done: from its link and its journal, without a lock."""

from __future__ import annotations

from datetime import datetime, timezone

from resedge.agent import journal
from resedge.agent.engines import read_engine, read_trial
from resedge.agent.layout import Layout
from resedge.agent.releases import manifest_of
from resedge.shipping import moments, wire


def status(layout: Layout) -> wire.Status:
    """Return what serves, since when, how its last trial went, and what is kept.

    Raises:
        InputRefused: The journal cannot be read, or the link leads to no release.
    """
    known = journal.read(layout)
    return wire.Status(
        trusts=layout.signers.is_file(),
        serving=serving(layout),
        counter=known.counter,
        newest_signed=known.newest_signed,
        releases=known.releases,
        operation=known.operation,
        last_failure=known.last_failure,
    )


def serving(layout: Layout) -> wire.Serving | None:
    """Return what the link leads to; its own time is when it was made to.

    Raises:
        InputRefused: It leads to no release.
    """
    digest = layout.serving()
    if digest is None:
        return None
    manifest = manifest_of(layout, digest)
    engine = read_engine(layout, digest)
    since = datetime.fromtimestamp(layout.current.lstat().st_mtime, timezone.utc)
    return wire.Serving(
        digest=digest,
        counter=manifest.counter,
        model=manifest.model.name,
        engine=f"{engine.runtime}:{engine.precision}",
        since=moments.to_text(since),
        trial=read_trial(layout, digest),
    )
