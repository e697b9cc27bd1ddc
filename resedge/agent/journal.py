"""What was done on a device and what is being done: on its disk before it begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from resedge import files
from resedge.agent.layout import Layout
from resedge.codec import canonical_json, encode, load
from resedge.errors import InputRefused
from resedge.shipping import moments
from resedge.shipping.wire import Failed, Operation, Release, State

JOURNAL_VERSION: Final = 1


@dataclass(frozen=True)
class Journal:
    """The content of state.json.

    `counter` is the highest that was ever committed, and `counter_digest` the bundle that had it;
    `newest_signed` is the latest time that a trusted signer has put on a bundle. `releases` are in the order
    of their commits.
    """

    journal_version: int = JOURNAL_VERSION
    counter: int = 0
    counter_digest: str | None = None
    newest_signed: str | None = None
    releases: tuple[Release, ...] = ()
    operation: Operation | None = None
    last_failure: Failed | None = None

    def release(self, digest: str | None) -> Release | None:
        """Return a release that was committed and is kept."""
        return next((release for release in self.releases if release.digest == digest), None)

    def committed(self, release: Release) -> Journal:
        """Return the journal once a release is committed, which ends the operation."""
        others = tuple(other for other in self.releases if other.digest != release.digest)
        higher = release.counter > self.counter
        return replace(
            self,
            counter=max(self.counter, release.counter),
            counter_digest=release.digest if higher else self.counter_digest,
            releases=(*others, release),
            operation=None,
            last_failure=None,
        )

    def failed(self, digest: str, state: State, reason: str) -> Journal:
        """Return the journal once an operation has come to nothing."""
        at = moments.to_text(moments.now())
        return replace(self, operation=None, last_failure=Failed(digest, state, reason, at))

    def without(self, *digests: str) -> Journal:
        """Return the journal without releases."""
        return replace(self, releases=tuple(r for r in self.releases if r.digest not in digests))


def read(layout: Layout) -> Journal:
    """Return a device's journal; an empty one where nothing was ever done.

    Raises:
        InputRefused: It cannot be read, or is none of this version.
    """
    if not layout.state.exists():
        return Journal()
    journal = load(Journal, layout.state)
    if journal.journal_version != JOURNAL_VERSION:
        raise InputRefused(
            f"is of version {journal.journal_version}, this agent reads {JOURNAL_VERSION}.",
            where=str(layout.state),
            cure="Use the agent that belongs to it.",
        )
    return journal


def write(layout: Layout, journal: Journal) -> Journal:
    """Write the journal, durably; return it.

    Raises:
        MachineFailure, InputRefused: As `resedge.files.write_bytes`; the old one stands.
    """
    files.write_bytes(layout.state, canonical_json(encode(journal)).encode())
    return journal
