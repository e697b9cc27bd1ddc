"""The agent's command line: one command, one answer on standard output, how far it is on standard error."""

from __future__ import annotations

import argparse
import os
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NoReturn

from resedge import files
from resedge.agent import layout as layouts
from resedge.agent import receiving, releases
from resedge.agent.facts import facts
from resedge.agent.installing import Order, install, recover
from resedge.agent.layout import Layout
from resedge.agent.rolling_back import roll_back
from resedge.agent.status import status
from resedge.engines import GRAPHS, EngineName
from resedge.errors import ResedgeError, UsageError
from resedge.shipping import framing, wire
from resedge.version import __version__

IDLE_SECONDS: Final = 60.0
REJECTED: Final = 1

_STDIN, _STDOUT, _STDERR = 0, 1, 2


def run(arguments: Sequence[str]) -> int:
    """Obey one command line; return the exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the workstation may go; what was begun comes to its end
    try:
        options = _parser().parse_args(arguments)
        layout = layouts.find(options.root)
        with files.disk_errors(layout.root, "cannot be used", "See that you may read and write there."):
            answer = _COMMANDS[options.command](layout, options)
    except ResedgeError as error:
        _write(_STDOUT, wire.error_text(error))
        return error.exit_code
    _write(_STDOUT, wire.answer_text(answer))
    return REJECTED if isinstance(answer, wire.Installed) and answer.outcome == "rejected" else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuse a command line as everything else is refused."""
        raise UsageError(f"{message}.", where=self.prog)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="resedge-agent", description="Installs bundles of resedge on a device.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    common = _Parser(add_help=False)
    common.add_argument("--root", help=f"the device's folder (default: ${layouts.ENVIRONMENT}, or under ~)")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    add("probe", "Say what this device is.")
    add("begin", "Let a signed bundle in; say what of it is missing.")
    arrives = add("receive", "Take chunks of a bundle that was begun.")
    installs = add("install", "Install a bundle that has arrived.")
    add("status", "Say what serves.")
    add("recover", "End what a reboot or a kill has interrupted.")
    backs = add("rollback", "Have a former release serve again.")
    collects = add("collect", "Drop releases beyond the last ones.")
    for command in (arrives, installs):
        command.add_argument("digest")
    for command in (commands.choices["begin"], arrives):
        command.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    backs.add_argument("digest", nargs="?")
    installs.add_argument("--backend", type=_engine, help="NAME:PRECISION")
    installs.add_argument("--limits", type=wire.read_limits, default=wire.Limits(), help="as JSON")
    installs.add_argument("--confirm-command", help="the owner's own health check, run by sh")
    collects.add_argument("--keep", type=_positive, required=True)
    return parser


def _begin(layout: Layout, options: argparse.Namespace) -> wire.Begun:
    return receiving.begin(layout, _patient(options.idle_seconds))


def _receive(layout: Layout, options: argparse.Namespace) -> wire.Received:
    return receiving.receive(layout, options.digest, _patient(options.idle_seconds), _tell)


def _install(layout: Layout, options: argparse.Namespace) -> wire.Installed:
    order = Order(options.digest, options.backend, options.limits, options.confirm_command)
    return install(layout, order, _tell)


def _recover(layout: Layout, options: argparse.Namespace) -> wire.Status:
    with layout.alone():
        recover(layout, _tell)
    return status(layout)


def _collect(layout: Layout, options: argparse.Namespace) -> wire.Collected:
    with layout.alone():
        found = releases.collect(layout, recover(layout, _tell), options.keep)
    return wire.Collected(found.dropped, found.in_use)


_COMMANDS: Final[Mapping[str, Callable[[Layout, argparse.Namespace], object]]] = {
    "probe": lambda layout, _: facts(layout),
    "begin": _begin,
    "receive": _receive,
    "install": _install,
    "status": lambda layout, _: status(layout),
    "recover": _recover,
    "rollback": lambda layout, options: roll_back(layout, options.digest, _tell),
    "collect": _collect,
}


def _engine(text: str) -> EngineName:
    runtime, _, precision = text.partition(":")
    if (runtime, precision) not in GRAPHS:
        known = ", ".join(":".join(name) for name in GRAPHS)
        raise UsageError(f"{text!r:.60} is no engine.", where="--backend", cure=f"Known: {known}.")
    return runtime, precision


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise UsageError(f"{number} is too few.", where="--keep", cure="From 1 up.")
    return number


def _patient(seconds: float) -> framing.Read:
    """Return what reads standard input; a link that is silent for too long counts as cut.

    A cut link can go unnoticed for hours, in which this process would keep the device's lock.
    """

    def read(size: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < size and select.select([_STDIN], [], [], seconds)[0]:
            piece = os.read(_STDIN, size - len(pieces))
            if not piece:
                break
            pieces += piece
        return bytes(pieces)

    return read


def _tell(progress: wire.Progress) -> None:
    _write(_STDERR, wire.progress_line(progress))


def _write(descriptor: int, text: str) -> None:
    """Write to whoever listens; where nobody does any more, the work goes on all the same."""
    rest = memoryview(text.encode())
    with suppress(OSError):
        while rest:
            rest = rest[os.write(descriptor, rest) :]
