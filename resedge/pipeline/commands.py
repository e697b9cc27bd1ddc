"""The command line that does a job again; files and folders by their names, without where they lie."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from resedge.export.names import parse
from resedge.pipeline.options import BenchOptions, ExportOptions, ImageOptions, Measuring, Selection


def bench_command(options: BenchOptions) -> str:
    """Return the command that measures the same again."""
    words = ["resedge", "bench", options.bundle.name]
    if options.model is not None:
        words += ["--model", parse(options.model).label]
    words += _paths({"--test-data": options.test_data})
    for name in ("rounds", "processes"):
        if getattr(options, name) != getattr(BenchOptions(options.bundle), name):
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join([*words, *_selected(options.selection), *_measured(options.measuring)])


def export_command(options: ExportOptions) -> str:
    """Return the command that makes and measures the same again; where the bundle goes is left out."""
    words = ["resedge", "export", options.model]
    words += _paths(
        {
            "--weights": options.weights,
            "--data": options.data,
            "--calibration-data": options.calibration_data,
            "--test-data": options.test_data,
        }
    )
    words += _image_words(options.images)
    if options.batchnorm:
        words += ["--batchnorm", options.batchnorm]
    if options.batch_range != ExportOptions().batch_range:
        words += ["--batch-range", ",".join(map(str, options.batch_range))]
    words += [word for layer in options.keep for word in ("--keep", layer)]
    if options.input != ExportOptions().input:
        words += ["--input", options.input]
    if options.thorough is not None:
        words.append("--thorough" if options.thorough else "--quick")
    return shlex.join([*words, *_selected(options.selection), *_measured(options.measuring)])


def _image_words(images: ImageOptions) -> Iterator[str]:
    for option in ("input_shape", "mean", "std"):
        if (numbers := getattr(images, option)) is not None:
            yield from (f"--{option.replace('_', '-')}", ",".join(f"{number:g}" for number in numbers))
    for option in ("channels", "value_range", "resize"):
        if (value := getattr(images, option)) is not None:
            yield from (f"--{option.replace('_', '-')}", str(value))


def _paths(given: dict[str, Path | None]) -> Iterator[str]:
    for option, path in given.items():
        if path is not None:
            yield from (option, path.name)


def _selected(selection: Selection) -> Iterator[str]:
    if selection != Selection():
        for runtime, precision in selection.engines:
            yield from ("--backend", f"{runtime}:{precision}")


def _measured(measuring: Measuring) -> Iterator[str]:
    """The options that are not the defaults, and the threads, whose default is the machine's."""
    defaults = Measuring()
    for name in ("max_drop", "min_speedup", "confidence", "seed"):
        if getattr(measuring, name) != getattr(defaults, name):
            yield from (f"--{name.replace('_', '-')}", f"{getattr(measuring, name):g}")
    yield from ("--threads", str(measuring.threads))
