"""Take every ResNet of torchvision and timm through the export, and say what became of each.

    python benchmarks/scripts/zoo.py --json benchmarks/results/zoo.json [--side 64] [--only timm:resnet50]

Needs torchvision and timm beside resedge's own libraries. Nothing is downloaded: weights are random, with
seeded BatchNorm (scales of 0.5 to 1.5, statistics of the images themselves), so that activations have the
sizes of a trained network's; the predictions mean nothing, and what is compared are logits. Each model goes
through the stages of `resedge export` up to its engines: weights read from a safetensors file, traced, folded
and proved, written as ONNX, calibrated, built. Latency and the verdict are left out.

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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resedge.pipeline.staging import Data, Site

IMAGES: Final = 48
SEED: Final = 0
LARGEST: Final = 70e6  # parameters; above it a model is named and left out
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
ENGINES: Final = (
    *(("openvino", "fp32"), ("onnxruntime", "fp32")),
    *(("openvino", "int8"), ("onnxruntime", "int8")),
)


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
            folded, left, logits, eager = exported(name, side, weights, Path(folder))
        errors = {key: relative_error(logits[key], eager) for key in logits if key.endswith("fp32")}
        noise = {key: snr_db(logits[key], eager) for key in logits if key.endswith("int8")}
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
    frames = torch.from_numpy(pictures(side, 16).astype(np.float32) / 255 - 0.5).permute(0, 3, 1, 2)
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
    return values.take(low, axis) * (1 - part) + values.take(low + 1, axis) * part


def exported(
    name: str, side: int, weights: Path, folder: Path
) -> tuple[int, tuple[str, ...], dict[str, np.ndarray], np.ndarray]:
    """Run the stages of an export; return what was folded and what not, each engine's logits and eager's."""
    from resedge.export import names
    from resedge.export.sources import given
    from resedge.pipeline import machine, measuring
    from resedge.pipeline.datasets import export_data
    from resedge.pipeline.modelling import loaded
    from resedge.pipeline.options import GRAPHS, ExportOptions, ImageOptions, Measuring, select
    from resedge.pipeline.preparing import prepare
    from resedge.pipeline.reporting import Silent
    from resedge.pipeline.staging import Site
    from resedge.store import Store

    np.savez(folder / "images.npz", images=pictures(side, IMAGES, SEED + 1))
    options = ExportOptions(
        model=name,
        weights=weights,
        images=ImageOptions(input_shape=(3, side, side)),
        data=folder / "images.npz",
        selection=select([f"{runtime}:{precision}" for runtime, precision in ENGINES], []),
        measuring=Measuring(max_drop=0.99),
        thorough=False,
    )
    named = names.parse(name)
    here = machine.describe()
    site = Site(Store(folder / "cache"), here.digest, options.measuring.threads, Silent())
    with given(named):
        model = loaded(site, named, options)
        data = export_data(options, model.about, site.reporter)
        prepared = prepare(site, data, model, options, here)
        graph_of = {artifact.path: artifact for artifact in prepared.files}
        eager = np.load(prepared.answers.value.test_logits.path)
        logits = {}
        for engine in ENGINES:
            graph = graph_of[prepared.places[GRAPHS[engine]]]
            built = measuring.built_engine(site, engine, graph, prepared.places)
            logits[":".join(engine)] = logits_of(built.value, data, site)
    found = prepared.graphs.value
    return found.folded, tuple(found.refused), logits, eager


def logits_of(engine: Any, data: Data, site: Site) -> np.ndarray:  # noqa: ANN401 - an Engine
    """Return an engine's logits of the test images, (N, classes) float32."""
    from resedge.pipeline.running import evaluate, evaluation_batch
    from resedge.protocols import RunOptions
    from resedge.runtimes.table import runtime

    with runtime(engine.runtime).open(engine, RunOptions(site.threads)) as run:
        size = evaluation_batch(engine)
        return np.asarray(evaluate(run, data.test, data.outside, site.reporter, "", size))


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
    import timm
    import torch
    import torchvision

    listed = {
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "timm": timm.list_models(exclude_filters=["*_clip*"]),
    }
    make = {"torchvision": torchvision.models.get_model, "timm": timm.create_model}
    taken, large = [], []
    for library, known in listed.items():
        for name in known:
            if any(fnmatch.fnmatch(name, pattern) for pattern in PATTERNS[library]):
                with torch.device("meta"):
                    module = make[library](name)
                count = sum(parameter.numel() for parameter in module.parameters())
                (large if count > LARGEST else taken).append(f"{library}:{name}")
    return taken, large


def conditions(side: int, large: list[str]) -> dict[str, object]:
    """Return what the table was made with."""
    libraries = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "numpy")
    return {
        "input": f"3 x {side} x {side}",
        "images": IMAGES,
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


if __name__ == "__main__":
    main()
