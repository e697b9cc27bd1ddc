"""Take every ResNet of torchvision and timm through the export, and say what became of each.

    python benchmarks/scripts/zoo.py --json benchmarks/results/zoo.json --markdown benchmarks/results/zoo.md

Needs torchvision and timm beside resedge's own libraries. Nothing is downloaded: weights are random, with
seeded BatchNorm (scales of 0.5 to 1.5, statistics of the images themselves), so that activations have the
sizes of a trained network's; the predictions mean nothing, and what is compared are logits. Each model goes
through the work of `resedge export`: weights read from a safetensors file, traced, folded and proved, written
as ONNX, calibrated, INT8 placed by both schemes, built for OpenVINO and ONNX Runtime. The search for the best
ranges, which is the same for every architecture, is left out: they are of one method.

The file is written after each model, and a run that is started again goes on with those that it lacks.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import platform
import re
import resource
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from resedge import files
from resedge.errors import ResedgeError
from resedge.pipeline.options import available_threads
from resedge.protocols import BuildOptions, NoProgress, RunOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resedge.artifacts import Artifact

IMAGES: Final = 32
PROOF_IMAGES: Final = 8
METHOD: Final = "minmax"
SEED: Final = 0
LARGEST: Final = 70e6  # parameters; a model of timm above it is named and left out
LIMIT_SECONDS: Final = 900
FP32_TOLERANCE: Final = 1e-3  # of the largest logit
PATTERNS: Final = {
    "torchvision": ("resnet*", "resnext*", "wide_resnet*"),
    "timm": (
        *("resnet*", "resnext*", "wide_resnet*", "seresnet*", "seresnext*", "legacy_seres*", "skresne*"),
        *("ecaresne*", "resnetv2*", "resnest*", "gcresne*", "nf_resnet*", "nf_seresnet*", "nf_ecaresnet*"),
        *("resnetblur*", "resnetaa*", "resnetrs*", "seresnetaa*", "tresnet*", "res2ne*", "senet*"),
        *("ese*resnet*", "cspresne*", "lambda_resnet*", "halo*resne*", "bat_resne*", "bot*resne*"),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a model; `reason` is that of a refusal, "" where it passed.

    `fp32_error` is the largest difference of an engine's logits from eager's, of the largest logit;
    `int8_snr_db` the power of eager's logits over that of the difference.
    """

    model: str
    outcome: str
    reason: str
    parameters: int
    folded: int
    left: tuple[str, ...]
    fp32_error: dict[str, float]
    int8_snr_db: dict[str, float]
    cpu_seconds: float
    peak_mib: int


@dataclass(frozen=True)
class Exported:
    """What the work came to: BatchNorms folded and left, (N, classes) logits by engine and of eager."""

    folded: int
    left: tuple[str, ...]
    logits: dict[str, np.ndarray]
    eager: np.ndarray


# --- one model -----------------------------------------------------------------------------------


def taken_through(name: str, side: int) -> Outcome:
    """Take one model through the stages, in this process."""
    started = time.process_time()
    parameters, folded = 0, 0
    left: tuple[str, ...] = ()
    errors: dict[str, float] = {}
    noise: dict[str, float] = {}
    outcome, reason = "passed", ""
    try:
        with _at_most(LIMIT_SECONDS), tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            parameters = write_weights(name, side, weights)
            found = exported(name, side, weights, Path(folder))
        folded, left = found.folded, found.left
        errors = {key: relative_error(x, found.eager) for key, x in found.logits.items() if "fp32" in key}
        noise = {key: snr_db(x, found.eager) for key, x in found.logits.items() if "int8" in key}
        if max(errors.values()) > FP32_TOLERANCE:
            outcome, reason = "differs", "the FP32 logits are not eager's"
    except ResedgeError as error:
        outcome, reason = "refused", str(error)
    except (MemoryError, TimeoutError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        outcome, reason = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = round(time.process_time() - started, 1)
    return Outcome(name, outcome, reason, parameters, folded, left, errors, noise, seconds, peak)


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def write_weights(name: str, side: int, path: Path) -> int:
    """Make the model with seeded weights and sane BatchNorm, write them; return how many there are."""
    import torch
    from safetensors.torch import save_file

    from resedge.export import names, sources

    torch.manual_seed(SEED)
    module = sources.make(names.parse(name), None).module
    frames = torch.from_numpy(as_input(pictures(side, 16)))
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.momentum = None  # the mean over all batches
                if layer.affine:
                    layer.weight.uniform_(0.5, 1.5)
                    layer.bias.uniform_(-0.2, 0.2)
        module.train()
        for _ in range(2):
            module(frames)
    tensors = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
    save_file(tensors, path)
    return sum(parameter.numel() for parameter in module.parameters())


def pictures(side: int, count: int, seed: int = SEED) -> np.ndarray:
    """Return (count, side, side, 3) uint8: colours that change slowly, with noise on them."""
    random = np.random.default_rng(seed)
    coarse = random.normal(128, 60, (count, 5, 5, 3))
    smooth = _stretched(_stretched(coarse, 1, side), 2, side)
    return np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def _stretched(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Interpolate along an axis, linearly, to that length."""
    at = np.linspace(0, values.shape[axis] - 1, length)
    low = np.minimum(at.astype(int), values.shape[axis] - 2)
    part = np.expand_dims(at - low, tuple(i for i in range(values.ndim) if i != axis))
    stretched: np.ndarray = values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part
    return stretched


def exported(name: str, side: int, weights: Path, folder: Path) -> Exported:
    """Do an export's work on one model: what was folded, what not, the logits of each engine and of eager."""
    import torch

    from resedge import machine
    from resedge.calibration.histograms import Instrument
    from resedge.calibration.placement import place
    from resedge.calibration.ranges import METHODS
    from resedge.export import names, sources
    from resedge.export.checkpoints import open_checkpoint
    from resedge.export.fold import fold
    from resedge.export.onnxfile import write_onnx
    from resedge.export.trace import trace

    shape, threads = (3, side, side), available_threads()
    made = sources.make(names.parse(name), open_checkpoint(weights))
    calibration, test = as_input(pictures(side, IMAGES, SEED + 1)), as_input(pictures(side, IMAGES, SEED + 2))
    folded = fold(trace(made.module, shape), calibration[:PROOF_IMAGES])
    fp32 = write_onnx(folded.graph, shape, folder / "fp32.onnx")
    with torch.inference_mode():
        eager = made.module(torch.from_numpy(test)).numpy()

    histograms = Instrument(fp32, threads).collect([calibration], NoProgress())
    ranges = METHODS[METHOD](histograms, graph_sha256=fp32.sha256, dataset_sha256="", images=IMAGES)
    pair_safe = machine.describe().saturates_pairs
    int8 = place(fp32, ranges, "cpu", folder / "int8.cpu.onnx", pair_safe=pair_safe)
    place(fp32, ranges, "tensorrt", folder / "int8.tensorrt.onnx")  # it must be one; there is no GPU to ask
    logits = {
        f"{library}:{precision}": logits_of(library, precision, graph, test, folder)
        for precision, graph in (("fp32", fp32), ("int8", int8))
        for library in ("openvino", "onnxruntime")
    }
    left = tuple(f"{site.batchnorm}: {site.reason}" for site in folded.report.refused)
    return Exported(len(folded.report.folded), left, logits, eager)


def as_input(frames: np.ndarray) -> np.ndarray:
    """Map frames, (N, H, W, 3) uint8, to the model's input, (N, 3, H, W) float32 in -0.5..0.5."""
    return np.ascontiguousarray((frames.astype(np.float32) / 255 - 0.5).transpose(0, 3, 1, 2))


def logits_of(library: str, precision: str, graph: Artifact, test: np.ndarray, folder: Path) -> np.ndarray:
    """Build an engine and return its logits, (N, classes) float32."""
    from resedge.runtimes.table import runtime

    engine = runtime(library).build(graph, folder, BuildOptions(precision))
    with runtime(library).open(engine, RunOptions(available_threads())) as run:
        return np.asarray(run(test))


def relative_error(found: np.ndarray, eager: np.ndarray) -> float:
    """Return the largest difference, as a fraction of the largest logit."""
    return float(f"{np.abs(found - eager).max() / np.abs(eager).max():.2e}")


def snr_db(found: np.ndarray, eager: np.ndarray) -> float:
    """Return the power of what differs between images in eager's logits over that of the error, decibels."""
    signal_power = np.square(eager - eager.mean(axis=0)).mean()
    return round(float(10 * np.log10(signal_power / np.square(found - eager).mean())), 1)


# --- all of them ---------------------------------------------------------------------------------


def models() -> tuple[list[str], list[str]]:
    """Return the models of both libraries by their names for resedge, and those that are left out."""
    import torch

    from resedge.export.architectures import library as library_named

    torchvision, timm = library_named("torchvision").models, library_named("timm")
    listed = {
        "torchvision": torchvision.list_models(module=torchvision),
        "timm": timm.list_models(exclude_filters=["*_clip*"]),
    }
    make = {"torchvision": torchvision.get_model, "timm": timm.create_model}
    taken: list[str] = []
    large: list[str] = []
    for library, known in listed.items():
        for name in known:
            if any(fnmatch.fnmatch(name, pattern) for pattern in PATTERNS[library]):
                with torch.device("meta"):
                    module = make[library](name)
                count = sum(parameter.numel() for parameter in module.parameters())
                (large if library == "timm" and count > LARGEST else taken).append(f"{library}:{name}")
    return taken, large


def conditions(side: int, large: list[str]) -> dict[str, object]:
    """Return what the table was made with."""
    libraries = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "numpy")
    return {
        "input": f"3 x {side} x {side}",
        "images": IMAGES,
        "ranges": METHOD,
        "seed": SEED,
        "weights": "random; BatchNorm scales 0.5 to 1.5, statistics of 16 images",
        "left_out": {"reason": f"more than {LARGEST / 1e6:.0f} million parameters", "models": large},
        "fp32_tolerance": FP32_TOLERANCE,
        "libraries": {name: version(name) for name in libraries},
        "machine": platform.machine(),
        "python": re.sub(r" .*", "", sys.version),
    }


def main() -> None:
    """Take all models through, and write what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--side", type=int, default=64, help="height and width of the images, pixels")
    parser.add_argument("--only", action="append", help="models, by resedge's names")
    parser.add_argument("--markdown", type=Path, help="also write the table as Markdown")
    options = parser.parse_args()

    taken, large = models()
    wanted = options.only or taken
    table: list[dict[str, Any]] = []
    if options.json.exists():
        table = json.loads(options.json.read_text())["models"]
    done = {row["model"] for row in table}
    for name in [name for name in wanted if name not in done]:
        # A process each: a model that crashes a library is a row of the table, and memory is its own.
        with ProcessPoolExecutor(1) as pool:
            try:
                row = asdict(pool.submit(taken_through, name, options.side).result())
            except BrokenProcessPool:
                row = asdict(Outcome(name, "failed", "the process died", 0, 0, (), {}, {}, 0.0, 0))
        table.append(row)
        print(f"{len(table)}/{len(wanted)} {name}: {row['outcome']} {row['reason']}", flush=True)
        document = {"conditions": conditions(options.side, large), "models": table}
        files.write_bytes(options.json, (json.dumps(document, indent=1) + "\n").encode())
    if options.markdown:
        files.write_bytes(options.markdown, "\n".join(table_of(table)).encode() + b"\n")


def table_of(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table: a line a model, refusals with their reason."""
    passed = sum(row["outcome"] == "passed" for row in rows)
    yield f"{passed} of {len(rows)} models pass: FP32 equals eager on both runtimes, INT8 is built on both."
    yield ""
    yield "| model | parameters, M | folded | left | FP32 error | INT8 SNR, dB | outcome |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for row in rows:
        error = max(row["fp32_error"].values(), default=None)
        noise = min(row["int8_snr_db"].values(), default=None)
        cells = (
            row["model"],
            f"{row['parameters'] / 1e6:.1f}",
            str(row["folded"]),
            str(len(row["left"])),
            "-" if error is None else f"{error:.0e}",
            "-" if noise is None else f"{noise:.1f}",
            f"{row['outcome']}: {row['reason']}" if row["reason"] else row["outcome"],
        )
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


if __name__ == "__main__":
    main()
