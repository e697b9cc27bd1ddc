"""What the command line prints: a line a stage, progress bars, warnings, the table, and errors.

Everything that is said goes to standard error, so that standard output holds the result alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from rich import box, markup
from rich.console import Console
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
    from resedge.benchmarks.comparing import Changes
    from resedge.calibration.bakeoff import Entry
    from resedge.calibration.blame import LayerError
    from resedge.errors import ResedgeError
    from resedge.jetson.jetpack import Release
    from resedge.pipeline.comparing import Comparison
    from resedge.pipeline.explaining import Explanation, InHalf
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
    from resedge.benchmarks.report import baseline, circumstances, run_notes, table

    console = Console(highlight=False)
    console.print()
    for line in (baseline(str(document["reference"]), verdicts), circumstances(document["conditions"])):
        console.print(escape(line))
    for line in run_notes(document):
        console.print(f"[yellow]{escape(line)}[/yellow]")
    console.print(table(verdicts, sizes))


def print_changes(changes: Changes) -> None:
    """Print what changed since an older document, and what else differs, to standard output."""
    from resedge.benchmarks import sentences, tables

    found = tables.changes(changes)
    console = Console(highlight=False)
    grid = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    headings = tuple(column.heading for column in found.columns)
    widths = _fitting_widths((headings, *found.rows), console.width)
    for column, width in zip(found.columns, widths, strict=True):
        side: Literal["left", "right"] = "right" if column.figures else "left"
        grid.add_column(column.heading, justify=side, vertical="top", width=width)
    for row in found.rows:
        grid.add_row(*map(escape, row))
    console.print(f"\n{escape(found.caption)}:")
    console.print(grid)
    for line in (sentences.images_compared(changes), *sentences.differences(changes)):
        console.print(escape(line))


def _fitting_widths(rows: Sequence[Sequence[str]], available: int) -> list[int]:
    """Return the width of each column: whole if all fit, else from its longest word up, so none is cut."""
    columns = list(zip(*rows, strict=True))
    least = [max(len(word) for cell in column for word in cell.split()) for column in columns]
    whole = [max(map(len, column)) for column in columns]
    room = available - sum(least) - len(columns)
    wanted = sum(whole) - sum(least)
    if wanted <= room:
        return whole
    return [low + (high - low) * max(room, 0) // wanted for low, high in zip(least, whole, strict=True)]


def print_line(text: str) -> None:
    """Print one line of a result to standard output."""
    Console(highlight=False, soft_wrap=True).print(escape(text))


def escape(text: str) -> str:
    """Return a text as it is to be printed: no markup, and no character that would steer the terminal.

    Names in a stranger's file are printed, too. A character that is not printable is shown as Python would.
    """
    shown = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return markup.escape("".join(shown))


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


def print_explanation(found: Explanation) -> None:
    """Print what `resedge explain` read."""
    console = Console(highlight=False)
    for scheme, methods in found.methods.items():
        fits = found.fits[scheme]
        others = "; ".join(_scored(entry) for entry in sorted(methods.scores, key=_by_divergence))
        console.print(f"[bold]{scheme}[/bold]: ranges {methods.winner}, weights {fits.winner}")
        console.print(f"  [dim]ranges on the hardest tuning images: {escape(others)}[/dim]")
        console.print(f"  [dim]fits: {escape('; '.join(_scored(entry) for entry in fits.scores))}[/dim]")
    console.print()
    if found.layers:
        console.print(_layer_table(found))
    else:
        console.print("The layers' sensitivities were not measured: `resedge export --thorough` does.")
    for clipped in found.clipped:
        ranges = "; ".join(
            f"{low:.3g} to {high:.3g} ({', '.join(schemes)})"
            for (low, high), schemes in _schemes_by_range(clipped.ranges).items()
        )
        console.print(
            f"clips: {escape(clipped.tensor)} holds {clipped.values[0]:.3g} to {clipped.values[1]:.3g}, "
            f"its range is {ranges}"
        )
    if found.half is not None:
        print_half(found.half)
    for trial in found.search.trials[1:]:
        console.print(
            f"tried: {escape(', '.join(trial.kept))} float ({trial.share:.1%} of the work): "
            f"drop {trial.score.drop:.2%} of {found.max_drop:.2%} allowed, {trial.score.agreement:.2%} agree"
        )
    if not found.search.met:
        console.print("[yellow]the budget is not met[/yellow] by any graph with half of its work in INT8")
    for cure in found.cures:
        console.print(
            f"cure: `resedge export … --keep {escape(cure.layer)}` buys {cure.part:.0%} of what keeping "
            f"layers float can, and takes {cure.share:.1%} of the work out of INT8"
        )


def print_half(found: InHalf) -> None:
    """Print what FP16 does to a model: one line where nothing is lost."""
    from resedge.export.halfrange import LARGEST, SMALLEST_NORMAL

    console = Console(highlight=False)
    report, final = found.report, found.report.final
    for wide in found.wide:
        console.print(f"beyond half of FP16's {LARGEST:,.0f}: {escape(wide.node)} {wide.why}")
    for entry in found.weights:
        lost = f"{entry.zero:,} of {entry.values:,} weights"
        console.print(f"underflows FP16: {lost} of {escape(entry.name)} are zero in it")
    for node in found.faint:
        console.print(
            f"loses digits in FP16: {escape(node.name)}, {node.underflow:.0%} of its values are below "
            f"{SMALLEST_NORMAL:.1e}"
        )
    if final.largest_difference is None:
        console.print(
            f"cure: FP16 gives infinity or NaN with {len(report.wide)} nodes in FP32, too: "
            "`resedge export … --precision fp32,int8`"
        )
        return
    tried = f"on {report.images} images {final.agreement:.0%} agree with float32"
    if not (found.wide or found.weights or found.faint):
        console.print(f"FP16: nothing overflows, no weight underflows; {tried}")
    elif found.wide:
        console.print(
            f"FP16: these {len(found.wide)} of {len(report.nodes)} nodes stay FP32 in "
            f"{' and '.join(found.graphs)}, nothing is to be done; {tried}"
        )
    else:
        console.print(f"FP16: nothing overflows; {tried}")


def _schemes_by_range(
    ranges: Mapping[str, tuple[float, float]],
) -> dict[tuple[float, float], list[str]]:
    return {found: [name for name in ranges if ranges[name] == found] for found in ranges.values()}


def _layer_table(found: Explanation) -> Table:
    from resedge.pipeline.explaining import COARSE

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("work %", "SQNR dB", "KL gain", "agrees, points", "precision"):
        table.add_column(name, justify="right")
    for layer in found.layers:
        coarse = layer.sqnr is not None and layer.sqnr < COARSE
        sqnr = "-" if layer.sqnr is None else f"{layer.sqnr:.1f}{' coarse' if coarse else ''}"
        kept = "float" if layer.name in found.search.kept else "int8"
        gains = (f"{layer.kl_gain:+.1e}", f"{100 * layer.agreement_gain:+.2f}")
        table.add_row(escape(layer.name), f"{100 * layer.share:.1f}", sqnr, *gains, kept)
    return table


def _scored(entry: Entry) -> str:
    return f"{entry.name} {entry.score.disagreements} differ, KL {entry.score.kl:.1e}"


def _by_divergence(entry: Entry) -> float:
    return entry.score.kl


def print_comparison(found: Comparison) -> None:
    """Print what `resedge explain --engine` measured: a line a layer, the first bad one, how it was done."""
    console = Console(highlight=False)
    console.print(_comparison_table(found))
    for line in (*_findings(found), *_manner(found)):
        console.print(line)


def _comparison_table(found: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("SQNR dB", "alone dB", "rounding dB", "cut off %"):
        table.add_column(name, justify="right")
    for layer in found.layers:
        bad = found.is_bad(layer)
        ratio = f"[red]{_ratio(layer.sqnr)} bad[/red]" if bad else _ratio(layer.sqnr)
        integers = ("-", "-")
        if layer.cut_off is not None:
            integers = (_ratio(layer.rounding), f"{100 * layer.cut_off:.2f}")
        table.add_row(escape(layer.name), ratio, _ratio(layer.alone), *integers)
    return table


def _findings(found: Comparison) -> Iterator[str]:
    """Say which layer is the first bad one if any, where the most of the error comes from, and the cure."""
    bad, worst = found.first_bad, found.worst
    if bad is None:
        yield f"no layer is bad: every output is {found.floor:g} dB or more above its error"
    else:
        ratio = f"is {_ratio(bad.sqnr)} dB above its error, {found.floor:g} are asked for"
        reason = "holds NaN or infinity" if bad.sqnr is None else ratio
        yield f"[red]first bad layer: {escape(bad.name)}[/red]: its output {reason}"
    if worst.alone is not None:
        within = "" if bad is None else " up to there"
        origin = f"{escape(worst.name)}, {worst.alone:.1f} dB alone"
        yield f"most of the error{within} comes from {origin}: {_why(worst)}"
    if bad is not None:
        yield f"cure: {_cure(worst)}"


def _why(layer: LayerError) -> str:
    if layer.cause == "range":
        return f"its output's integers cut off {layer.cut_off or 0:.2%} of the values"
    if layer.cause == "steps":
        return "the steps of its output's integers"
    return "its weights, and how it is computed" if layer.weighted else "how it is computed"


def _cure(layer: LayerError) -> str:
    if layer.keep:
        return f"`resedge export … {escape(' '.join(f'--keep {name}' for name in layer.keep))}`"
    if layer.cause in ("range", "steps"):
        return (
            "calibrate on images more like those of its use, `--calibration-data`; no --keep takes these "
            "integers away, for not only layers with a weight read them"
        )
    return "none by --keep, for it has no quantised weight"


def _manner(found: Comparison) -> Iterator[str]:
    yield (
        f"[dim]{found.engine} on {found.images} golden images; it chooses eager's class on "
        f"{found.agreement:.1%}. SQNR: a layer's output over its error against the fp32 graph, which is "
        f"computed node by node and stands for eager; their logits agree to {found.reference_sqnr:.0f} dB. "
        "alone: against the same layer in FP32 on what the engine's own layer was given. rounding: what the "
        "integers of the output make of that. All from sums over all images.[/dim]"
    )
    sessions = "1 session" if found.views == 1 else f"{found.views} sessions"
    if found.changed:
        yield (
            f"[yellow]watched in {sessions} whose logits were not the engine's own on {found.changed} "
            "images: what was seen there is not quite the engine[/yellow]"
        )
    elif found.views:
        yield f"[dim]Watched in {sessions}; the logits are those of the engine itself to the bit.[/dim]"
    if found.unseen:
        yield (
            f"[dim]Not to be seen without changing what is computed: {escape(', '.join(found.unseen))}. What "
            "makes one is named with the first layer that reads it; its error is in all that do.[/dim]"
        )


def _ratio(decibels: float | None) -> str:
    return "not finite" if decibels is None else f"{decibels:.1f}"


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what `resedge doctor` found."""
    from resedge.jetson import description

    here = diagnosis.machine
    features = ", ".join(here.features) or "no known features"
    pairs = [
        ("machine", f"{here.processor} ({features}), {here.cores} cores to use"),
        ("python", diagnosis.python),
        ("libraries", ", ".join(diagnosis.libraries)),
    ]
    if diagnosis.jetson:
        pairs += description.lines(diagnosis.jetson)
    for found in diagnosis.runtimes:
        if isinstance(found, Exception):
            pairs.append(("missing", str(found)))
            continue
        precisions = "; ".join(f"{name}: {words}" for name, words in found.precisions.items())
        pairs.append((found.runtime, f"{found.version} on {found.device}. {precisions}"))
    print_pairs(pairs)
    if diagnosis.jetson and diagnosis.jetson.release:
        print_releases([diagnosis.jetson.release], diagnosis.jetson.release)


def print_releases(releases: Sequence[Release], here: Release | None) -> None:
    """Print rows of the table of JetPack, that of this device bold; with what its marks mean."""
    from resedge.jetson.jetpack import COLUMNS, LEGEND

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for heading, _ in COLUMNS:
        table.add_column(heading, overflow="fold")
    for release in releases:
        cells = (escape(release.cell(column)) for _, column in COLUMNS)
        table.add_row(*cells, style="bold green" if release is here else None)
    console = Console(highlight=False)
    console.print()
    console.print(table)
    console.print(f"[dim]{escape(LEGEND)}[/dim]")
