"""What the command line prints: a line a stage, progress bars, warnings, the table, and errors.

Everything that is said goes to standard error, so that standard output holds the result alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from resedge.artifacts import JsonValue, Verdict
    from resedge.errors import ResedgeError
    from resedge.pipeline.inspecting import Diagnosis

_NAME_WIDTH = 10


class ConsoleReporter:
    """Prints stages as they finish; progress bars only on a terminal, nothing but warnings if quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._last = time.monotonic()
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._bar: TaskID | None = None

    def __enter__(self) -> ConsoleReporter:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, label: str, total: int) -> None:
        """Show a bar."""
        self._bar = self._bars.add_task(label, total=total)

    def advance(self, units: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bars.advance(self._bar, units)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None

    def stage(self, name: str, detail: str, *, reused: bool = False) -> None:
        """Print one line: the stage, what came of it, the seconds since the line before."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        if self._quiet:
            return
        ending = "unchanged" if reused else f"{seconds:.1f} s"
        self._say(f"[bold]{name}[/bold]", f"{escape(detail)}  [dim]({ending})[/dim]")

    def warn(self, text: str) -> None:
        """Print a warning, quiet or not."""
        self._say("", f"[yellow]warning:[/yellow] {escape(text)}")

    def note(self, text: str) -> None:
        """Print a remark."""
        if not self._quiet:
            self._say("", f"[dim]{escape(text)}[/dim]")

    def _say(self, name: str, text: str) -> None:
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_column(width=_NAME_WIDTH)
        line.add_column()
        line.add_row(name, text)
        self._console.print(line)


def print_verdicts(
    verdicts: Sequence[Verdict], sizes: Mapping[tuple[str, str], int], document: Mapping[str, JsonValue]
) -> None:
    """Print what was compared, and the table of verdicts with their reasons, to standard output."""
    from resedge.benchmarks.report import baseline, circumstances, table

    console = Console(highlight=False)
    console.print()
    for line in (baseline(str(document["reference"]), verdicts), circumstances(document["conditions"])):
        console.print(escape(line))
    console.print(table(verdicts, sizes))


def print_line(text: str) -> None:
    """Print one line of a result to standard output."""
    Console(highlight=False, soft_wrap=True).print(escape(text))


def print_error(error: ResedgeError) -> None:
    """Print one error: what, where, the cure."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/red] {escape(str(error))}")


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and texts in two columns to standard output."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in pairs:
        grid.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    Console(highlight=False).print(grid)


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what `resedge doctor` found."""
    here = diagnosis.machine
    features = ", ".join(here.features) or "no known features"
    pairs = [
        ("machine", f"{here.processor} ({features}), {here.cores} cores to use"),
        ("python", diagnosis.python),
        ("libraries", ", ".join(diagnosis.libraries)),
    ]
    for found in diagnosis.runtimes:
        if isinstance(found, Exception):
            pairs.append(("missing", str(found)))
            continue
        precisions = "; ".join(f"{name}: {words}" for name, words in found.precisions.items())
        pairs.append((found.runtime, f"{found.version} on {found.device}. {precisions}"))
    print_pairs(pairs)
