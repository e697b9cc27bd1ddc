"""What a workstation and a device say to each other: frozen values, in JSON, with a version.

A command of the agent answers with one `Envelope` as JSON on its standard output, and says meanwhile how
far it is, one `Progress` a line, on its standard error, where other programs may write, too. What is sent
to it, on its standard input, stands in `framing.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeVar, get_args

from resedge import errors
from resedge.codec import JsonValue, canonical_json, decode, encode, parse_json
from resedge.errors import InputRefused, ResedgeError

WIRE_VERSION: Final = 1

_CURE_OF_VERSION: Final = "Send the agent that belongs to this resedge: sign the bundle again, and ship it."

T = TypeVar("T")

State = Literal["stage", "verify", "build", "trial", "switch", "confirm", "commit", "rollback"]
STATES: Final[tuple[State, ...]] = get_args(State)


# --- what a device is ----------------------------------------------------------------------------


@dataclass(frozen=True)
class RuntimeFacts:
    """A runtime: what its probe says, or why it is `absent`."""

    name: str
    version: str | None
    device: str | None
    precisions: tuple[str, ...]
    absent: str | None


@dataclass(frozen=True)
class JetsonFacts:
    """What a Jetson's files say; None: nothing. `jetpack` goes by the L4T, `tensorrt` by the packages."""

    model: str | None
    module: str | None
    l4t: str | None
    jetpack: str | None
    tensorrt: str | None
    cuda: str | None
    compute_capability: str | None
    power_mode: str | None
    clocks_locked: bool | None


@dataclass(frozen=True)
class Limits:
    """What a trial may take at most; None: any. Milliseconds of a call, and bytes of resident memory."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Trial:
    """An engine on the golden images of its bundle, on the device.

    `p50_ms` and `p95_ms` are of `calls` single images, array in to array out; `peak_memory_bytes` is what
    the process that loaded and ran it had resident at most. `reasons` say why it did not pass.
    """

    engine: str
    threads: int
    images: int
    agreement: float
    min_agreement: float
    calls: int
    p50_ms: float
    p95_ms: float
    peak_memory_bytes: int
    limits: Limits
    reasons: tuple[str, ...]
    at: str

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the engine."""
        return not self.reasons


@dataclass(frozen=True)
class Release:
    """A bundle that was committed on the device; `digest` is that of its manifest."""

    digest: str
    counter: int
    model: str
    engine: str
    committed_at: str


@dataclass(frozen=True)
class Operation:
    """What is being done, or was when it was interrupted.

    `state` is the one that has begun, `previous` the release that served before, to go back to.
    """

    command: Literal["install", "rollback"]
    digest: str
    state: State
    previous: str | None
    started_at: str


@dataclass(frozen=True)
class Failed:
    """The last thing that did not come to its end: in which state, and why."""

    digest: str
    state: State
    reason: str
    at: str


@dataclass(frozen=True)
class Serving:
    """What `current` leads to, since when, and how its last trial went."""

    digest: str
    counter: int
    model: str
    engine: str
    since: str
    trial: Trial | None


@dataclass(frozen=True)
class Status:
    """The answer of `status`; `releases` are in the order of their commits, and `counter` is the highest.

    `trusts` says whether the owner has installed a key.
    """

    trusts: bool
    serving: Serving | None
    counter: int
    newest_signed: str | None
    releases: tuple[Release, ...]
    operation: Operation | None
    last_failure: Failed | None


@dataclass(frozen=True)
class Facts:
    """The answer of `probe`. Bytes; `clock` is the device's own, UTC.

    `exact_int8`: whether the CPU adds 8-bit products in 32 bits; without, pairs of them can saturate.
    """

    agent: str
    python: str
    numpy: str | None
    processor: str
    cpu_features: tuple[str, ...]
    exact_int8: bool
    cores: int
    memory_total: int
    memory_available: int
    disk_free: int
    clock: str
    root: str
    runtimes: tuple[RuntimeFacts, ...]
    jetson: JetsonFacts | None
    status: Status

    def runtime(self, name: str) -> RuntimeFacts | None:
        """Return what is known of a runtime."""
        return next((runtime for runtime in self.runtimes if runtime.name == name), None)


# --- what the other commands answer --------------------------------------------------------------


@dataclass(frozen=True)
class Missing:
    """A file, by its digest, and those of its chunks that the device does not hold."""

    sha256: str
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class Begun:
    """The answer of `begin`: what is still missing, none of it where the release is there already."""

    digest: str
    missing: tuple[Missing, ...]
    missing_bytes: int


@dataclass(frozen=True)
class Received:
    """The answer of `receive`: what was refused, in words, and what is still missing."""

    refused: tuple[str, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class Installed:
    """The answer of `install`: "unchanged" where the release serves already, and was not tried again.

    `reason` says why it was "rejected"; `serving` is what serves now, and `states` those that were entered.
    """

    digest: str
    outcome: Literal["committed", "unchanged", "rejected"]
    states: tuple[State, ...]
    trial: Trial | None
    reason: str | None
    serving: str | None


@dataclass(frozen=True)
class RolledBack:
    """The answer of `rollback`: what serves now, and what served before."""

    serving: Serving
    previous: str | None


@dataclass(frozen=True)
class Collected:
    """The answer of `collect`: the releases that were dropped, and those that an application has open."""

    dropped: tuple[str, ...]
    in_use: tuple[str, ...]


# --- envelopes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """An error of `resedge.errors` on its way from the device."""

    kind: str
    what: str
    where: str
    cure: str


@dataclass(frozen=True)
class Envelope:
    """An answer, or the error in its place."""

    wire: int
    error: Failure | None
    answer: JsonValue


@dataclass(frozen=True)
class Progress:
    """How far a command is: `done` of `total` in what `state` counts; 0 of 0 where nothing is counted."""

    state: str
    message: str
    done: int = 0
    total: int = 0


def answer_text(answer: object) -> str:
    """Return the text of an answer."""
    return canonical_json(encode(Envelope(WIRE_VERSION, None, encode(answer))))


def error_text(error: ResedgeError) -> str:
    """Return the text of an error in the place of an answer."""
    failure = Failure(type(error).__name__, error.what, error.where, error.cure)
    return canonical_json(encode(Envelope(WIRE_VERSION, failure, None)))


def read_answer(kind: type[T], text: str, where: str) -> T:
    """Return the answer that a text is.

    Args:
        kind: What is expected.
        text: The whole standard output of the agent.
        where: Named in errors, such as the device.

    Raises:
        ResedgeError: The one that the device raised.
        InputRefused: It is no answer, that of another version, or another answer.
    """
    document = parse_json(text, where)
    version = document.get("wire") if isinstance(document, Mapping) else None
    if version != WIRE_VERSION:
        raise InputRefused(
            f"answers in version {version!r}, this resedge understands {WIRE_VERSION}.",
            where=where,
            cure=_CURE_OF_VERSION,
        )
    envelope = decode(Envelope, document, where)
    if envelope.error is not None:
        raise _raised(envelope.error)
    return decode(kind, envelope.answer, where)


def progress_line(progress: Progress) -> str:
    """Return the line that says how far a command is."""
    return json.dumps(encode(progress), ensure_ascii=False) + "\n"


def read_progress(line: str) -> Progress | None:
    """Return what a line of the agent's standard error says; None where another program wrote it."""
    try:
        return decode(Progress, parse_json(line, "progress"), "progress")
    except InputRefused:
        return None


def _raised(failure: Failure) -> ResedgeError:
    kind = getattr(errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, ResedgeError)):
        kind = InputRefused
    error: ResedgeError = kind(failure.what, where=failure.where, cure=failure.cure)
    return error


def limits_text(limits: Limits) -> str:
    """Return limits as the agent's option takes them."""
    return json.dumps(encode(limits))


def read_limits(text: str) -> Limits:
    """Return the limits that an option names; a key that is left out limits nothing.

    Raises:
        InputRefused: It is no JSON, has an unknown key, or a limit that is not above 0.
    """
    document = parse_json(text, "--limits")
    if isinstance(document, dict):
        document = {**asdict(Limits()), **document}
    limits = decode(Limits, document, "--limits")
    if any(value is not None and value <= 0 for value in (limits.p50_ms, limits.p95_ms, limits.memory_bytes)):
        raise InputRefused("a limit must be above 0.", where="--limits")
    return limits
