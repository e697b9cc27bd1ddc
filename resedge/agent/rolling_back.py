"""Going back to a release that was committed on this device; nothing else can be gone back to."""

from __future__ import annotations

from dataclasses import replace

from resedge.agent import installing, journal, releases
from resedge.agent.installing import Tell
from resedge.agent.journal import Journal
from resedge.agent.layout import Layout
from resedge.agent.status import serving
from resedge.errors import InputRefused
from resedge.shipping import moments, wire

_STATUS = "`resedge status HOST` shows what is kept."


def roll_back(layout: Layout, digest: str | None, tell: Tell) -> wire.RolledBack:
    """Have a release serve that was committed here; the highest counter stays.

    Args:
        layout: Of the device.
        digest: Which; None: the one that was committed before the one that serves. A call that was
            interrupted, made again, ends with what it was to end with.
        tell: Told of each state.

    Raises:
        InputRefused: It was never committed here or is not kept, or there is none to go back to.
        StaleArtifact: It is not what was committed any more.
    """
    with layout.alone():
        interrupted = journal.read(layout).operation
        known = installing.recover(layout, tell)
        if digest is None and interrupted and interrupted.command == "rollback":
            return _done(layout, known, interrupted.previous)
        previous = layout.serving()
        target = _target(known, digest, previous)
        releases.verify(layout, target)
        now = moments.to_text(moments.now())
        operation = wire.Operation("rollback", target, "rollback", previous, now)
        known = journal.write(layout, replace(known, operation=operation))
        tell(wire.Progress("rollback", target[:12]))
        layout.point(target)
        known = journal.write(layout, replace(known, operation=None))
        return _done(layout, known, previous)


def _target(known: Journal, digest: str | None, current: str | None) -> str:
    kept = [release.digest for release in known.releases]
    if digest is not None:
        if digest not in kept:
            raise InputRefused("was never committed here, or is not kept.", where=digest[:12], cure=_STATUS)
        return digest
    before = kept[: kept.index(current)] if current in kept else kept
    if not before:
        raise InputRefused("there is no release to go back to.", cure=_STATUS)
    return before[-1]


def _done(layout: Layout, known: Journal, previous: str | None) -> wire.RolledBack:
    now = serving(layout, known)
    if now is None:
        raise InputRefused("nothing serves.", where=str(layout.current))
    return wire.RolledBack(now, previous)
