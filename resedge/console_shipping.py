"""What the command line prints about devices: a bar each while they work, and tables of what came of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from resedge.console import escape, print_pairs

if TYPE_CHECKING:
    from resedge.pipeline.fleets import Outcome
    from resedge.shipping import wire
    from resedge.shipping.delivery import Delivered

_DIGITS = 12
_WHOLE = ("device", "result", "release", "engine", "before", "since")
_STYLES = {
    "updated": "green",
    "unchanged": "green",
    "rehearsed": "",
    "rejected": "yellow",
    "refused": "red",
    "failed": "red",
    "unreachable": "red",
}


class Fleet:
    """Shows how far each device is: bars on a terminal, else a line a step; nothing if quiet."""

    def __init__(self, hosts: Sequence[str], *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._bars = Progress(
            TextColumn("{task.fields[host]}"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {
            host: self._bars.add_task("waiting", total=None, host=escape(host)) for host in hosts
        }

    def __enter__(self) -> Fleet:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def step(self, host: str, text: str) -> None:
        """Show what is being done on a device."""
        self._bars.update(self._tasks[host], description=escape(text))
        if self._bars.disable:
            self._say(host, escape(text))

    def count(self, host: str, total: int) -> None:
        """Show a bar of that many bytes."""
        self._bars.update(self._tasks[host], total=total, completed=0)

    def sent(self, host: str, size: int) -> None:
        """Move the bar."""
        self._bars.advance(self._tasks[host], size)

    def done(self, host: str, text: str) -> None:
        """Take the bar away, and say what came of the device."""
        self._bars.remove_task(self._tasks[host])
        self._say(host, escape(text))

    def _say(self, host: str, text: str) -> None:
        if not self._quiet:
            self._console.print(f"[bold]{escape(host)}[/bold]  {text}", soft_wrap=True)


def print_shipped(outcomes: Sequence[Outcome[Delivered]]) -> None:
    """Print a line a device: what came of it, what it serves; and beneath how the trial went, and why."""
    from resedge.pipeline.shipping import engine_of, reason_of, result_of

    table, remarks = _table("device", "result", "release", "engine", "sent"), []
    for outcome in outcomes:
        result = result_of(outcome)
        installed = outcome.answer.installed if outcome.answer else None
        table.add_row(
            escape(outcome.host),
            f"[{_STYLES[result]}]{result}[/]" if _STYLES[result] else result,
            (installed.serving or "-")[:_DIGITS] if installed else "-",
            escape(engine_of(outcome) or "-"),
            f"{outcome.sent_bytes / 1e6:.1f} MB",
        )
        trial = [_trial(installed.trial)] if installed and installed.trial else []
        remarks.append((outcome.host, "; ".join(filter(None, [*trial, reason_of(outcome)]))))
    _print(table, remarks)


def print_facts(outcomes: Sequence[Outcome[Delivered]]) -> None:
    """Print what the devices are, as far as they were asked."""
    for outcome in outcomes:
        if outcome.answer is not None:
            print_pairs([("device", outcome.host), *_facts(outcome.answer)])


def print_statuses(asked: Sequence[Outcome[wire.Status]]) -> None:
    """Print a line a device: what serves, since when; and beneath its last trial, and what is amiss."""
    table = _table("device", "engine", "release", "since")
    for outcome in asked:
        serving = outcome.answer.serving if outcome.answer else None
        table.add_row(
            escape(outcome.host),
            escape(serving.engine if serving else "-"),
            escape(serving.digest[:_DIGITS] if serving else "-"),
            escape(serving.since if serving else "-"),
        )
    _print(table, [(one.host, one.failure or _state(one.answer)) for one in asked])


def print_rollbacks(turned: Sequence[Outcome[wire.RolledBack]]) -> None:
    """Print a line a device: what serves now, and what served before."""
    table = _table("device", "engine", "release", "before")
    for outcome in turned:
        answer = outcome.answer
        table.add_row(
            escape(outcome.host),
            escape(answer.serving.engine if answer else "-"),
            escape(answer.serving.digest[:_DIGITS]) if answer else "-",
            escape((answer.previous or "-")[:_DIGITS]) if answer else "-",
        )
    _print(table, [(outcome.host, outcome.failure) for outcome in turned])


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in _WHOLE)
    return table


def _print(table: Table, remarks: Sequence[tuple[str, str]]) -> None:
    """Print a table, and under it what is to be said of each device."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for host, remark in remarks:
        if remark:
            console.print(f"[bold]{escape(host)}[/bold]: {escape(remark)}")


def _trial(trial: wire.Trial) -> str:
    return f"trial: {trial.agreement:.1%} of {trial.images} agree, p50 {trial.p50_ms:.2f} ms"


def _state(status: wire.Status | None) -> str:
    """Say what a device serves and how that did, what is under way, and what failed last."""
    if status is None:
        return ""
    texts = []
    if (serving := status.serving) is not None:
        texts.append(f"{serving.model}, counter {serving.counter}, {len(status.releases)} releases kept")
        texts += [_trial(serving.trial)] if serving.trial else []
    if (operation := status.operation) is not None:
        texts.append(f"{operation.command} of {operation.digest[:_DIGITS]} stopped in {operation.state}")
    if (failed := status.last_failure) is not None:
        texts.append(f"{failed.digest[:_DIGITS]} failed in {failed.state} at {failed.at}: {failed.reason}")
    return "; ".join(texts)


def _facts(delivered: Delivered) -> Iterator[tuple[str, str]]:
    survey, facts = delivered.survey, delivered.facts
    yield "folder", survey.root
    if facts is None:
        yield "machine", f"{survey.machine}, Python {survey.python}, L4T: {survey.l4t or 'none'}"
        yield "room", f"disk {_size(survey.disk_free)}, memory {_size(survey.memory_available)}"
        return
    features = ", ".join(facts.cpu_features) or "no known features"
    yield "machine", f"{facts.processor} ({features}), {facts.cores} cores, Python {facts.python}"
    yield "room", f"disk {_size(facts.disk_free)}, memory {_size(facts.memory_available)}"
    if facts.jetson is not None:
        jetson = facts.jetson
        yield (
            "jetson",
            f"{jetson.model}, JetPack {jetson.jetpack}, L4T {jetson.l4t}, TensorRT {jetson.tensorrt}",
        )
        locked = {True: "locked", False: "not locked", None: "unknown"}[jetson.clocks_locked]
        yield "power", f"mode {jetson.power_mode}, clocks {locked}"
    for runtime in facts.runtimes:
        yield (
            runtime.name,
            f"{runtime.version} on {runtime.device}" if runtime.version else f"{runtime.absent}",
        )
    serving = facts.status.serving
    yield "serves", f"{serving.model}, {serving.engine}, {serving.digest[:_DIGITS]}" if serving else "nothing"


def _size(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 1e6:,.0f} MB"
