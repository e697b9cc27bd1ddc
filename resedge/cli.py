"""The command line: it parses, calls one function of the pipeline, and prints."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from resedge import __version__, cli_shipping
from resedge.errors import MachineFailure, ResedgeError, UsageError

if TYPE_CHECKING:
    from resedge.artifacts import Channels, InputType
    from resedge.pipeline.options import ImageOptions, Measuring

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130
DEFECT = 70
_PATH = click.Path(path_type=Path)


class _Group(click.Group):
    """Turns the errors of resedge into one line and an exit code, in one place."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's own signature
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted; what was finished is kept, run the same command again", err=True)
            code = INTERRUPTED
        except ResedgeError as error:
            code = _fail(error)
        except OSError as error:
            code = _fail(_as_refusal(error))
        except MemoryError:
            code = _fail(MachineFailure("out of memory.", cure="Close other programs and try again."))
        except Exception as error:  # noqa: BLE001 - the last resort: a defect is told apart from a verdict
            code = _report_defect(error)
        sys.exit(code if isinstance(code, int) else 0)


def _as_refusal(error: OSError) -> ResedgeError:
    """Translate what the system refused, outside of the places that know more about it."""
    from resedge import files

    try:
        with files.disk_errors(Path(error.filename or "."), what="cannot be read or written"):
            raise error
    except ResedgeError as translated:
        return translated


def _report_defect(error: Exception) -> int:
    """Say that resedge itself is at fault; exit code 70, which no verdict has."""
    import traceback

    traceback.print_exception(error)
    click.echo(f"resedge {__version__} is at fault here, not your input: please report the above.", err=True)
    return DEFECT


def _fail(error: ResedgeError) -> int:
    from resedge.console import print_error

    if logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("resedge").debug("the error in full", exc_info=error)
    print_error(error)
    return error.exit_code


# --- options that several commands share ---------------------------------------------------------


def _selection(command: F) -> F:
    backend = click.option(
        "--backend",
        "backends",
        multiple=True,
        metavar="NAME[:PRECISION]",
        help="Only this backend (openvino, onnxruntime, tensorrt); may be given several times.",
    )
    precision = click.option(
        "--precision", metavar="P,…", default="", help="Only these precisions (fp32, fp16, int8)."
    )
    return backend(precision(command))


def _measuring(command: F) -> F:
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Of splits and orders."),
        click.option(
            "--threads",
            type=click.IntRange(1, 1024),
            default=None,
            help="Compute threads.  [default: all that this process may use]",
        ),
        click.option(
            "--confidence",
            type=click.FloatRange(0.5, 0.999),
            default=0.95,
            show_default=True,
            help="Of every bound and interval.",
        ),
        click.option(
            "--min-speedup",
            type=click.FloatRange(0, min_open=True),
            default=1.0,
            show_default=True,
            help="Times eager's speed that an engine must reach; 1.0: not slower.",
        ),
        click.option(
            "--max-drop",
            type=click.FloatRange(0, 1),
            default=0.005,
            show_default=True,
            help="Of top-1 against eager, as a fraction, that an engine may lose.",
        ),
    ):
        command = option(command)
    return command


def _batch_range(command: F) -> F:
    option = click.option(
        "--batch-range",
        metavar="MIN,OPT,MAX",
        default="1,8,32",
        show_default=True,
        help="Batch sizes of TensorRT's optimisation profile.",
    )
    return option(command)


def _scenarios(command: F) -> F:
    """Add what else an engine is measured in."""
    for option in (
        click.option(
            "--camera-rate",
            type=float,
            default=30.0,
            show_default=True,
            help="Frames a second of the scenario camera.",
        ),
        click.option(
            "--seconds", type=float, default=10.0, show_default=True, help="How long a scenario lasts."
        ),
        click.option(
            "--scenario",
            "scenario_names",
            metavar="NAME",
            multiple=True,
            help="Also measure this; can be repeated: end-to-end, camera, cold-start, and MLPerf's "
            "single-stream and offline, by its LoadGen.",
        ),
    ):
        command = option(command)
    return command


def _rounds(command: F) -> F:
    for option in (
        click.option(
            "--self-check",
            is_flag=True,
            help="Also compare eager with a second instance of itself. A difference is an alarm (exit 1).",
        ),
        click.option(
            "--processes",
            type=click.IntRange(1),
            help="Fresh processes that share the rounds; where they differ, more of them tell more. "
            "Without it 5, or one a round.",
        ),
        click.option(
            "--rounds",
            type=click.IntRange(2),
            default=20,
            show_default=True,
            help="Interleaved rounds of latency, one block an engine each.",
        ),
    ):
        command = option(command)
    return command


def _images(command: F) -> F:
    """Add what is said of a model's images."""
    for option in (
        click.option(
            "--resize",
            type=click.IntRange(1),
            help="Scale the shorter side of image files to so many pixels, and cut the middle out.",
        ),
        click.option(
            "--value-range",
            type=click.Choice(["1", "255"]),
            help="The largest value of an image, in whose units --mean and --std are.  [default: 1]",
        ),
        click.option(
            "--channels",
            type=click.Choice(["RGB", "BGR", "L", "RGBA"]),
            help="What the model takes, in its order; L is grey.  [default: by their number]",
        ),
        click.option("--std", metavar="R,G,B", help="Their standard deviation; one number for all channels."),
        click.option("--mean", metavar="R,G,B", help="What images were normalised with, of 0..1."),
        click.option("--input-shape", metavar="C,H,W", help="What the model takes, such as 3,224,224."),
    ):
        command = option(command)
    return command


def _output(command: F) -> F:
    quiet = click.option("-q", "--quiet", is_flag=True, help="Print the result and warnings alone.")
    json_file = click.option("--json", "json_file", type=_PATH, help="Also write the verdicts to this file.")
    return quiet(json_file(command))


def _measuring_of(options: dict[str, Any]) -> Measuring:
    from resedge.pipeline.options import Measuring, available_threads

    return Measuring(
        max_drop=options["max_drop"],
        min_speedup=options["min_speedup"],
        confidence=options["confidence"],
        threads=options["threads"] or available_threads(),
        seed=options["seed"],
    )


# --- the commands --------------------------------------------------------------------------------


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="resedge")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def main(debug: bool) -> None:
    """Trained PyTorch ResNets into verified INT8 and FP16 engines for the edge.

    \b
    resedge export            the whole job on the built-in model and images
    resedge bench             measure a bundle's engines here, against eager
    resedge build B           TensorRT engines of a bundle for this machine
    resedge explain B         which layers INT8 hurts, and what to do about it
    resedge predict B IMAGE   classify images with an engine of a bundle
    resedge ship B HOST       onto devices, where each proves it before it serves

    Exit codes: 0 done and within budget; 1 a verdict failed; 2 wrong usage; 3 inconclusive; 4 a backend
    that was named is not there; 5 an input was refused; 6 the machine failed; 130 interrupted.
    """  # noqa: D301 - click reads the character, not its escape
    logging.basicConfig(level=logging.DEBUG if debug else logging.ERROR)


@main.command()
@click.argument("model", default="notebook")
@click.option(
    "--weights",
    type=_PATH,
    help="A state_dict: .safetensors, or .pt, .pth, .ckpt, read without running code.  "
    "[default: the built-in one, or what MODEL starts with]",
)
@_images
@click.option("--data", type=_PATH, help="Images (a folder, a list, .npz, idx), split into the three sets.")
@click.option("--calibration-data", type=_PATH, help="Images to calibrate and tune on.")
@click.option("--test-data", type=_PATH, help="Images to verify on.")
@click.option(
    "--batchnorm",
    type=click.Choice(["keep", "split"]),
    help="What to do about a BatchNorm that is called more than once in a forward pass: deploy it as "
    "trained, or give every call its own statistics.  [default: split for the built-in weights, else keep]",
)
@_batch_range
@click.option(
    "--keep",
    multiple=True,
    metavar="LAYER",
    help="A layer, or a module of layers, that stays float in the INT8 graphs; may be given several times.",
)
@click.option(
    "--thorough/--quick",
    default=None,
    help="Round each layer's weights together and measure its sensitivity, or neither.  "
    "[default: thorough up to a thousand million multiply-accumulates]",
)
@click.option(
    "--input",
    "input_type",
    type=click.Choice(["float32", "uint8"]),
    default="float32",
    show_default=True,
    help="What engines take: images that are prepared, (N, C, H, W), or frames as a camera gives them, "
    "(N, H, W, 3) RGB, all preparation within the graph.",
)
@click.option("--out", type=_PATH, help="The bundle's folder.  [default: MODEL's name .resedge, here]")
@_selection
@_measuring
@_output
def export(
    model: str,
    weights: Path | None,
    input_shape: str | None,
    mean: str | None,
    std: str | None,
    channels: Channels | None,
    value_range: str | None,
    resize: int | None,
    data: Path | None,
    calibration_data: Path | None,
    test_data: Path | None,
    batchnorm: Any,  # noqa: ANN401 - one of click's choices
    batch_range: str,
    keep: Sequence[str],
    thorough: bool | None,
    input_type: InputType,
    out: Path | None,
    backends: Sequence[str],
    precision: str,
    quiet: bool,
    json_file: Path | None,
    **measuring: Any,  # noqa: ANN401 - the options of `_measuring`
) -> int:
    """Turn MODEL into a bundle of verified engines.

    What has not changed since an earlier run is not done again. Images are built in: Fashion-MNIST, 28 x 28.

    \b
    MODEL is one of
      notebook               the built-in ResNet, and its weights
      plain-N, resnet-N      the networks of the CIFAR experiments, N = 6n + 2
      torchvision:NAME       an architecture of torchvision, such as torchvision:resnet50
      timm:NAME              an architecture of timm
      FILE.py:CALLABLE       what a callable of a Python file returns. THE FILE IS RUN
      FILE.pt2               a program of torch.export. LOADING ONE CAN RUN CODE OF IT

    Nothing is downloaded: give --weights. How images are normalised is what --mean and --std say, else a TOML
    file beside the weights (mine.toml for mine.safetensors: size, channels, mean, std, range, resize,
    interpolation), else the library's record, else values of 0..1.

    \b
    Example:
      resedge export --weights mine.safetensors --data images/ --out mine.resedge
    """  # noqa: D301 - click reads the character, not its escape
    from resedge.export.names import parse
    from resedge.pipeline.exporting import export as run
    from resedge.pipeline.options import ExportOptions, select

    options = ExportOptions(
        model=model,
        weights=weights,
        images=_images_of(input_shape, mean, std, resize, channels, value_range),
        batchnorm=batchnorm,
        data=data,
        calibration_data=calibration_data,
        test_data=test_data,
        selection=select(backends, _listed(precision)),
        measuring=_measuring_of(measuring),
        batch_range=_parse_batch_range(batch_range),
        out=out,
        keep=tuple(keep),
        thorough=thorough,
        input=input_type,
    )
    _check_json_file(json_file)
    with _reporter(quiet) as reporter:
        result = run(options, reporter)
    _print_published(result, out or Path(f"{parse(model).stem}.resedge"))
    _print_result(result, json_file)
    return result.exit_code


@main.command()
@click.argument("bundle", type=_PATH, required=False)
@click.option("--test-data", type=_PATH, help="Images to verify on: a folder, a list, .npz, idx.")
@click.option(
    "--model",
    metavar="MODEL",
    help="FILE.py:CALLABLE or FILE.pt2, named again where the bundle was made from it: it is run.",
)
@click.option("--html", type=_PATH, help="Also write a page with figures to this file.")
@click.option("--markdown", type=_PATH, help="Also write the table for a pull request to this file.")
@click.option("--compare", type=_PATH, help="Say what changed since this document of --json; see exit codes.")
@_rounds
@_scenarios
@_selection
@_measuring
@_output
def bench(
    bundle: Path | None,
    test_data: Path | None,
    model: str | None,
    html: Path | None,
    markdown: Path | None,
    compare: Path | None,
    backends: Sequence[str],
    precision: str,
    rounds: int,
    processes: int | None,
    self_check: bool,
    scenario_names: Sequence[str],
    seconds: float,
    camera_rate: float,
    quiet: bool,
    json_file: Path | None,
    **measuring: Any,  # noqa: ANN401 - the options of `_measuring`
) -> int:
    """Measure the engines of BUNDLE on this machine against its eager model.

    Accuracy on the test images, latency at batch 1 in interleaved blocks. The bundle is not changed. Ctrl-C
    during the rounds ends them: the verdicts are then of what was measured until then.
    Without BUNDLE: ./notebook.resedge, made first if it is not there. With --compare the exit code is also 1
    where an engine became slower or less accurate, 3 where that is open.
    """
    from resedge.pipeline import presenting
    from resedge.pipeline.benching import bench as run
    from resedge.pipeline.exporting import export as make
    from resedge.pipeline.options import BenchOptions, ExportOptions, Scenarios, select

    selection = select(backends, _listed(precision))
    how, besides = _measuring_of(measuring), Scenarios(tuple(scenario_names), seconds, camera_rate)
    _check_json_file(json_file)
    _check_place(html, "--html")
    _check_place(markdown, "--markdown")
    with _reporter(quiet) as reporter:
        if bundle is None:
            bundle = Path("notebook.resedge")
            if not bundle.exists():
                make(ExportOptions(out=bundle, measuring=how), reporter)
        options = BenchOptions(
            bundle,
            test_data,
            selection,
            how,
            rounds,
            processes or min(BenchOptions.processes, rounds),
            self_check=self_check,
            compare=compare,
            scenarios=besides,
            model=model,
        )
        result = run(options, reporter)
    _print_result(result, json_file)
    _print_changes(result)
    presenting.write_pages(result, options, html, markdown)
    return result.exit_code


@main.command()
@click.argument("bundle", type=_PATH)
@click.argument("images", type=_PATH, nargs=-1, required=True)
@click.option("--engine", default="openvino:int8", show_default=True, metavar="NAME:PRECISION")
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes to show.")
def predict(bundle: Path, images: Sequence[Path], engine: str, top: int) -> int:
    """Classify IMAGES with an engine of BUNDLE."""
    import numpy as np

    import resedge
    from resedge.console import print_line
    from resedge.images import decode_file, decoding_of

    with resedge.open(bundle, engine) as session:
        labels, takes = session.bundle.manifest.labels, session.bundle.manifest.preprocessing
        size, decoding = (takes.height, takes.width), decoding_of(takes)
        for path in images:
            frame = decode_file(path, size, decoding)
            probabilities = session.predict(frame[np.newaxis]).probabilities[0]
            best = np.argsort(-probabilities, kind="stable")[:top]
            classes = ", ".join(f"{labels[i]} {probabilities[i]:.1%}" for i in best)
            print_line(f"{path}: {classes}")
    return 0


@main.command()
@click.argument("bundle", type=_PATH)
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    default="tensorrt",
    show_default=True,
    help="TensorRT, or TensorRT for RTX, which serves on GPUs of desktops.",
)
@click.option("--precision", metavar="P,…", default="", help="Only these precisions (fp16, int8).")
@_batch_range
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    default=None,
    help="How long TensorRT looks for kernels.  [default: its own; less on boards with 4 or 8 GB]",
)
@click.option("--dla", is_flag=True, help="For the deep learning accelerator: refused so far.")
@click.option("-q", "--quiet", is_flag=True, help="Print warnings alone.")
def build(
    bundle: Path,
    backend: str,
    precision: str,
    batch_range: str,
    optimization_level: int | None,
    dla: bool,
    quiet: bool,
) -> int:
    """Build TensorRT engines of BUNDLE for this machine.

    They lie in this machine's state folder, and `bench` and `predict` find them there. Each is run on the
    golden images and timed; where both precisions are built it is said whether INT8 is worth it here.
    """
    from resedge.console import print_line
    from resedge.pipeline.building import build as run
    from resedge.pipeline.options import BuildingOptions, select

    options = BuildingOptions(
        bundle,
        select([backend], _listed(precision)),
        _parse_batch_range(batch_range),
        optimization_level,
        dla,
    )
    with _reporter(quiet) as reporter:
        built = run(options, reporter)
    print_line(f"{len(built.engines)} engines in {built.folder}")
    return 0


@main.command()
@click.argument("path", type=_PATH)
def inspect(path: Path) -> int:
    """Say what a bundle or a file is, without loading it into a runtime.

    A bundle's files are checked by digest. Files are told by their content: weights, checkpoints, ONNX,
    OpenVINO graphs, TensorRT plans.
    """
    from resedge.console import print_pairs
    from resedge.pipeline.inspecting import inspect as run

    print_pairs(run(path))
    return 0


@main.command()
@click.argument("bundle", type=_PATH)
@click.option(
    "--engine",
    metavar="NAME:PRECISION",
    help="Compare this engine with eager layer by layer instead, down to the first bad one.",
)
@click.option(
    "--min-sqnr",
    type=click.FloatRange(-100, 100),
    default=20.0,
    show_default=True,
    help="With --engine: the decibels below which a layer is bad; 20: a tenth of its amplitude is error.",
)
def explain(bundle: Path, engine: str | None, min_sqnr: float) -> int:
    """Say what INT8 costs BUNDLE's model: which layers, which ranges, and what each cure buys.

    Read from what `export` measured on the tuning images; nothing is run, unless --engine is given: then that
    engine runs on the bundle's golden images, and its layers' outputs are compared.
    """
    from resedge.console import print_comparison, print_explanation
    from resedge.pipeline.comparing import compare
    from resedge.pipeline.explaining import explain as run

    if engine is None:
        print_explanation(run(bundle))
        return 0
    with _reporter(quiet=False) as reporter:
        found = compare(bundle, engine, floor=min_sqnr, reporter=reporter)
    print_comparison(found)
    return 0


@main.command()
@click.option("--jetpack", is_flag=True, help="Only the table: what each JetPack brings.")
def doctor(jetpack: bool) -> int:
    """Say which runtimes, devices and versions are here, and the cure for what is missing.

    On a Jetson also what it is, how it is set, and what its JetPack brings.
    """
    from resedge.console import print_diagnosis, print_releases
    from resedge.jetson import device
    from resedge.jetson.jetpack import RELEASES
    from resedge.pipeline.inspecting import diagnose

    if jetpack:
        here = device.read()
        print_releases(RELEASES, here.release if here else None)
    else:
        print_diagnosis(diagnose())
    return 0


@main.group()
def cache() -> None:
    """What was done and need not be done again: the stage cache, and what `resedge build` made."""


@cache.command()
def show() -> int:
    """Say where they are and how large."""
    from resedge import home
    from resedge.console import print_line
    from resedge.pipeline import local
    from resedge.store import Store

    store = Store(home.cache_folder())
    stages, size = store.usage()
    print_line(f"{store.root}: {stages} stages, {size / 1e6:.1f} MB")
    bundles, size = local.usage()
    print_line(f"{home.state_folder()}: engines built of {bundles} bundles, {size / 1e6:.1f} MB")
    return 0


@cache.command()
@click.option("--engines", is_flag=True, help="Remove what `resedge build` made instead.")
def clear(engines: bool) -> int:
    """Remove every stage that no process is making."""
    from resedge import home
    from resedge.console import print_line
    from resedge.pipeline import local
    from resedge.store import Store

    if engines:
        print_line(f"engines of {local.clear()} bundles removed from {home.state_folder()}")
        return 0
    store = Store(home.cache_folder())
    print_line(f"{store.clear()} stages removed from {store.root}")
    return 0


for _command in (
    cli_shipping.bundle,
    cli_shipping.keys,
    cli_shipping.ship,
    cli_shipping.status,
    cli_shipping.rollback,
):
    main.add_command(_command)


# --- parsing and printing ------------------------------------------------------------------------


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _images_of(
    shape: str | None,
    mean: str | None,
    std: str | None,
    resize: int | None,
    channels: Channels | None,
    value_range: str | None,
) -> ImageOptions:
    from resedge.pipeline.options import ImageOptions

    sides = _listed(shape or "")
    if shape is not None and (len(sides) != 3 or not all(side.isdigit() for side in sides)):
        raise UsageError(f"--input-shape is {shape!r}.", cure="Write C,H,W, such as 3,224,224.")
    return ImageOptions(
        input_shape=tuple(int(side) for side in sides) if shape else None,
        mean=None if mean is None else _parse_numbers("--mean", mean),
        std=None if std is None else _parse_numbers("--std", std),
        resize=resize,
        channels=channels,
        value_range=255 if value_range == "255" else 1 if value_range else None,
    )


def _parse_numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in _listed(text))
    except ValueError:
        numbers = ()
    if not numbers:
        raise UsageError(f"{option} is {text!r}.", cure="Write R,G,B, such as 0.485,0.456,0.406.")
    return numbers


def _parse_batch_range(text: str) -> tuple[int, int, int]:
    parts = _listed(text)
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise UsageError(f"--batch-range is {text!r}.", cure="Write MIN,OPT,MAX, such as 1,8,32.")
    low, best, high = (int(part) for part in parts)
    if not 1 <= low <= best <= high:
        raise UsageError(f"--batch-range is {text!r}.", cure="It must be 1 <= MIN <= OPT <= MAX.")
    return low, best, high


def _reporter(quiet: bool) -> Any:  # noqa: ANN401 - ConsoleReporter, imported when needed
    from resedge.console import ConsoleReporter

    return ConsoleReporter(quiet=quiet)


def _check_json_file(path: Path | None) -> None:
    _check_place(path, "--json")


def _check_place(path: Path | None, option: str) -> None:
    """Refuse a place for a file before the work is done, not after."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder.", where=option, cure="Make it first.")


def _print_result(result: Any, json_file: Path | None) -> None:  # noqa: ANN401 - Exported or Benched
    from resedge import files
    from resedge.artifacts import canonical_json
    from resedge.console import print_verdicts

    print_verdicts(result.verdicts, result.sizes, result.document)
    if json_file is not None:
        files.write_bytes(json_file, canonical_json(result.document).encode())


def _print_changes(result: Any) -> None:  # noqa: ANN401 - Benched
    from resedge.console import print_changes

    if result.changes:
        print_changes(result.changes)


def _print_published(result: Any, path: Path) -> None:  # noqa: ANN401 - Exported
    from resedge.console import print_line

    published = result.published
    if not published.changed and result.all_reused:
        print_line(f"{path} is up to date: nothing had changed, nothing was done again.")
    elif not published.changed:
        print_line(f"{path} is up to date: what was done again came out the same.")
    elif published.dropped_signature:
        counter = published.bundle.manifest.counter
        print_line(f"{path} written, counter {counter}; its old signature was dropped, sign it again.")
    else:
        print_line(f"{path} written, counter {published.bundle.manifest.counter}.")
