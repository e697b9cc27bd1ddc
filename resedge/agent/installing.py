"""Installing a release: stage, verify, build, trial, switch, confirm, commit; or rollback.

Each state is on disk before it begins. Until the switch, which is one renaming of a link, the old release
serves; from then on the new one, which has passed its trial. So at every moment one of the two does, and
whoever comes next, the same command again or `recover`, knows where it stood.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from resedge.agent import admission, engines, journal, releases
from resedge.agent.facts import facts
from resedge.agent.journal import Journal
from resedge.agent.layout import Layout
from resedge.agent.status import described
from resedge.bundle import Bundle
from resedge.engines import EngineName
from resedge.errors import BuildFailed, InputRefused, MachineFailure, NotFinite, ResedgeError, StaleArtifact
from resedge.shipping import fitting, moments, wire

CONFIRM_SECONDS: Final = 60.0
_LAST: Final = 300

Tell = Callable[[wire.Progress], None]


@dataclass(frozen=True)
class Order:
    """What is to be installed, and how; `confirm_command` is the owner's own health check, run by sh."""

    digest: str
    engine: EngineName | None = None
    limits: wire.Limits = field(default_factory=wire.Limits)
    confirm_command: str | None = None


class Course:
    """An operation under way: its journal, and the states that it has entered."""

    def __init__(self, layout: Layout, known: Journal, operation: wire.Operation, tell: Tell) -> None:
        self.layout = layout
        self.known = known
        self.digest = operation.digest
        self.states: list[wire.State] = []
        self._operation = operation
        self._tell = tell

    def enter(self, state: wire.State) -> None:
        """Write a state down, durably, before it begins."""
        self._operation = replace(self._operation, state=state)
        self.known = journal.write(self.layout, replace(self.known, operation=self._operation))
        self.states.append(state)
        self._tell(wire.Progress(state, ""))

    def commit(self, release: wire.Release) -> None:
        """Write down that the release is good, which ends the operation."""
        self.known = journal.write(self.layout, self.known.committed(release))

    def retreat(self, reason: str, *, damaged: bool = False, arrived: bool = False) -> None:
        """Go back to what served before, remove what came to nothing, and then write down why.

        A release stays that serves, or that was committed once and is not damaged.

        Args:
            reason: Why.
            damaged: The release is not what was committed any more.
            arrived: Remove what has arrived of the bundle, too.

        Raises:
            MachineFailure, InputRefused: It cannot be written; the state is on disk, for whoever comes next.
        """
        failed_in = self._operation.state
        if self.layout.serving() == self.digest != self._operation.previous:
            self.enter("rollback")
            self.layout.point(self._operation.previous)
        if self.layout.serving() != self.digest:
            if damaged:
                self.known = journal.write(self.layout, self.known.without(self.digest))
            if self.known.release(self.digest) is None:
                releases.drop(self.layout, self.digest)
        if arrived:
            releases.drop_arrived(self.layout, self.digest)
        self.known = journal.write(self.layout, self.known.failed(self.digest, failed_in, reason))


def install(layout: Layout, order: Order, tell: Tell) -> wire.Installed:
    """Install a bundle that has arrived; from wherever a former attempt stopped.

    Raises:
        InputRefused: The bundle is refused, or another agent is at work here.
        RuntimeUnavailable: A runtime is missing, or it could not build the engine.
        MachineFailure: Disk or memory fell short.
    """
    with layout.alone():
        known = recover(layout, tell, but=order.digest)
        committed = known.release(order.digest)
        if committed is not None:
            _demand_same_engine(committed, order)
            if layout.serving() == order.digest and known.operation is None and _is_sound(layout, order):
                releases.drop_arrived(layout, order.digest)
                trial = engines.read_trial(layout, order.digest)
                return wire.Installed(order.digest, "unchanged", (), trial, None, order.digest)
        course = _begun(layout, known, order.digest, tell)
        try:
            return _walk(course, order)
        except ResedgeError as error:
            # What was refused is of no use; where the machine failed, a second attempt finds all in place.
            refused, damaged = isinstance(error, InputRefused), isinstance(error, StaleArtifact)
            course.retreat(str(error), damaged=damaged, arrived=refused)
            raise


def recover(layout: Layout, tell: Tell, *, but: str | None = None) -> Journal:
    """End what was interrupted, and return the journal; the caller is alone.

    What had not switched is given up. What had is confirmed by another replay, and committed or rolled back.

    Args:
        layout: Of the device.
        tell: Told of each state.
        but: The digest of an installation that is left as it is, since it is about to be made again.

    Raises:
        ResedgeError: The release that serves cannot be confirmed for want of disk or memory.
    """
    known = journal.read(layout)
    operation = known.operation
    if operation is None or (operation.command, operation.digest) == ("install", but):
        return known
    if operation.command == "rollback":
        layout.point(operation.digest)
        return journal.write(layout, replace(known, operation=None))
    course = Course(layout, known, operation, tell)
    interrupted = f"was interrupted in the state {operation.state}"
    if layout.serving() == operation.digest and operation.state != "rollback":
        _settle_or_retreat(course, Order(operation.digest))
    else:
        course.retreat(interrupted)
    return course.known


def _is_sound(layout: Layout, order: Order) -> bool:
    """Whether the release is what was committed; one that is not is installed over again."""
    try:
        releases.verify(layout, order.digest)
        return engines.is_sound(layout, order.digest)
    except InputRefused:
        return False


def _begun(layout: Layout, known: Journal, digest: str, tell: Tell) -> Course:
    """Return the course of an installation; one that is made again goes back to what served before it."""
    serving, former = layout.serving(), known.operation
    previous = former.previous if former and former.digest == digest == serving else serving
    now = moments.to_text(moments.now())
    return Course(layout, known, wire.Operation("install", digest, "stage", previous, now), tell)


def _walk(course: Course, order: Order) -> wire.Installed:
    layout, digest = course.layout, course.digest
    arrived = layout.arriving(digest)
    folder = arrived if arrived.exists() else layout.bundle(digest)
    found, manifest = admission.read_authentic(layout, folder)
    admission.admit(course.known, found, manifest, moments.now())
    course.enter("stage")
    releases.stage(layout, digest, manifest)
    course.enter("verify")
    bundle = releases.verify(layout, digest)
    name = fitting.choose(bundle.manifest, facts(layout), _wanted(course, order))
    course.enter("build")
    engines.build(layout, digest, bundle, name)
    course.enter("trial")
    trial, reason = _tried(course, bundle, order.limits)
    if reason:
        return _rejected(course, trial, reason)
    course.enter("switch")
    layout.point(digest)
    return _settle(course, order)


def _settle(course: Course, order: Order) -> wire.Installed:
    """Confirm what has switched, and commit it or roll it back."""
    layout, digest = course.layout, course.digest
    course.enter("confirm")
    trial, reason = engines.read_trial(layout, digest), _reason_against(course, order)
    if reason:
        return _rejected(course, trial, reason)
    course.enter("commit")
    releases.authentic_manifest(layout, digest)
    releases.drop_arrived(layout, digest)
    course.commit(described(layout, digest))
    return wire.Installed(digest, "committed", tuple(course.states), trial, None, layout.serving())


def _settle_or_retreat(course: Course, order: Order) -> None:
    """Confirm what has switched; go back from what is refused, and not for want of disk or memory."""
    try:
        _settle(course, order)
    except MachineFailure:
        raise
    except ResedgeError as error:
        course.retreat(str(error), damaged=isinstance(error, StaleArtifact))


def _rejected(course: Course, trial: wire.Trial | None, reason: str) -> wire.Installed:
    course.retreat(reason, arrived=True)
    serving = course.layout.serving()
    return wire.Installed(course.digest, "rejected", tuple(course.states), trial, reason, serving)


def _tried(course: Course, bundle: Bundle, limits: wire.Limits) -> tuple[wire.Trial | None, str | None]:
    """Return how the trial went, and what speaks against the engine: a crash of it does, too."""
    try:
        trial = engines.try_out(course.layout, course.digest, bundle, limits)
    except (BuildFailed, NotFinite) as error:
        return None, str(error)
    return trial, "; ".join(trial.reasons) or None


def _reason_against(course: Course, order: Order) -> str | None:
    """Open the release once more, through the link, and ask the owner's command; say what is amiss.

    Its times are not judged again: the old engine and the new one may both be at work now.
    """
    layout = course.layout
    bundle = releases.verify(layout, course.digest)
    engine = engines.read_engine(layout, course.digest)
    try:
        trial = engines.replay(layout.current, bundle, engine, wire.Limits())
    except (BuildFailed, NotFinite) as error:
        return f"after the switch {error}"
    if trial.reasons:
        return f"after the switch {'; '.join(trial.reasons)}"
    return _objection(order) if order.confirm_command else None


def _objection(order: Order) -> str | None:
    """Run the owner's health check; return what it said where it failed."""
    assert order.confirm_command is not None
    try:
        done = subprocess.run(
            ["sh", "-c", order.confirm_command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RESEDGE_RELEASE": order.digest},
            timeout=CONFIRM_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the owner's check was not done within {CONFIRM_SECONDS:g} seconds"
    except OSError as error:
        raise MachineFailure(f"the owner's check cannot be run ({error.strerror}).") from error
    if done.returncode == 0:
        return None
    said = " ".join(done.stdout.decode(errors="replace").split())[-_LAST:]
    code = done.returncode
    how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return f"the owner's check failed ({how}{f': {said}' if said else ''})"


def _wanted(course: Course, order: Order) -> EngineName | None:
    """Return the engine that is asked for, or that was committed once."""
    committed = course.known.release(course.digest)
    if order.engine is not None or committed is None:
        return order.engine
    runtime, _, precision = committed.engine.partition(":")
    return runtime, precision


def _demand_same_engine(committed: wire.Release, order: Order) -> None:
    if order.engine is not None and ":".join(order.engine) != committed.engine:
        raise InputRefused(
            f"was committed here with {committed.engine}; a release keeps its engine.",
            where=committed.digest[:12],
            cure="Sign the bundle again, and ship that with the other engine.",
        )
