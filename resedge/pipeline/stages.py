"""The stages that make a bundle's content, each from frozen values to a frozen value, through the cache.

Libraries are imported inside what a stage makes: a stage that is found in the cache costs none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resedge import files
from resedge.artifacts import (
    Artifact,
    canonical_json,
    encode,
    sha256_bytes,
    sha256_file,
)
from resedge.golden import THRESHOLDS_VERSION, Thresholds, surest
from resedge.pipeline.halving import try_in_half
from resedge.pipeline.modelling import Loaded
from resedge.pipeline.running import eager_runtime, evaluate, tracked
from resedge.pipeline.staging import Data, Done, Site, run_stage, versions
from resedge.protocols import BuildOptions, Float32Array, RunOptions
from resedge.store import Key

PROOF_IMAGES = 16  # every fold is proved on the activations of these
BATCHNORM_BATCH = 128  # order and batch are part of what re-estimation computes
COMPARED_IMAGES = 256  # shared BatchNorm shows in any of them; all would cost half a minute
GOLDEN_IMAGES = 64
_GAP_IMAGES = 32
_FAR = 2.0  # other photographs change the spread by less, another mean and std by more
_WRITING_LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "safetensors", "numpy")


# --- the reference -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Modes:
    """Evaluation mode against batch statistics, on the first calibration images. Fractions."""

    agreement: float
    top1_eval: float | None
    top1_batch: float | None


@dataclass(frozen=True)
class Gap:
    """What a BatchNorm gets from the calibration images against its own statistics.

    `shift` is between the means, in trained standard deviations; `spread` is the standard deviation over
    the trained one; both the median over channels.
    """

    batchnorm: str
    shift: float
    spread: float

    @property
    def wide(self) -> bool:
        """Whether the images are hardly those that the model was trained on, or not normalised alike."""
        return self.shift > _FAR or not 1 / _FAR < self.spread < _FAR


@dataclass(frozen=True)
class Reference:
    """The eager model that every verdict is against.

    `checkpoint` is the digest of the weights as they were given, or of `weights` where none were. `shared`
    has the call sites of each BatchNorm that is called more than once in a forward pass; `trained` compares
    the modes of the model as it was trained, `repaired` of the one with statistics of their own for each call
    site (`--batchnorm split`). `gap` is that of the first BatchNorm that is called once. None: there is
    nothing to compare.
    """

    source: Artifact
    weights: Artifact
    checkpoint: str
    shared: Mapping[str, int]
    trained: Modes | None
    repaired: Modes | None
    gap: Gap | None


def reference(
    site: Site, data: Data, model: Loaded, *, batchnorm: Literal["keep", "split"]
) -> Done[Reference]:
    """Make the model, look for shared BatchNorms, repair them if asked, and write reference/.

    Raises:
        ResedgeError: The model cannot be made, or its weights do not fit.
    """
    about = model.about
    origins = {"weights": about.checkpoint, "code": about.code, "file": about.code_sha256}
    library = (model.named.kind,) if model.named.kind in ("torchvision", "timm") else ()
    key = Key(
        "reference",
        inputs={
            **{name: digest for name, digest in origins.items() if digest},
            "calibration": data.calibration.sha256,
        },
        options={
            "model": about.label,
            "batchnorm": batchnorm,
            "preprocessing": encode(data.preprocessing),
        },
        versions=versions(*_WRITING_LIBRARIES, *library),
        machine=site.machine,
    )

    def make(folder: Path) -> Reference:
        from resedge.export import batchnorm as norms
        from resedge.export import sources

        module = sources.make(model.named, model.checkpoint).module
        batches = list(data.calibration.batches(BATCHNORM_BATCH, data.preprocessing))
        image = batches[0][:1]
        shared = norms.shared(norms.call_counts(module, image))
        gap = norms.first_gap(module, batches[0][:_GAP_IMAGES], shared)
        splitting = bool(shared) and batchnorm == "split"
        trained = repaired = None
        if shared:
            trained = _modes(site, data, module, batches, "as trained")
        if splitting:
            module = norms.split(module, shared)
            norms.reestimate(module, tracked(batches, site.reporter, "BatchNorm, re-estimating"))
            repaired = _modes(site, data, module, batches, "split")
        (folder / "reference").mkdir()
        source = sources.Source(
            about.label,
            "split" if splitting else "keep",
            tuple(sorted(shared.items())) if splitting else (),
            about.input_shape,
            about.classes,
            about.checkpoint,
            about.code_sha256,
        )
        tensors, described = sources.write_reference(module, source, folder / "reference")
        found = None if gap is None else Gap(gap.batchnorm, gap.shift, gap.spread)
        digest = about.checkpoint or tensors.sha256
        return Reference(described, tensors, digest, dict(shared), trained, repaired, found)

    return run_stage(site, key, Reference, make)


def _modes(
    site: Site,
    data: Data,
    module: Any,  # noqa: ANN401 - a torch module
    batches: Sequence[Float32Array],
    label: str,
) -> Modes:
    from resedge.export.batchnorm import compare_modes

    compared = batches[: -(-COMPARED_IMAGES // BATCHNORM_BATCH)]
    labels = data.calibration.labels
    if labels is not None:
        labels = labels[: sum(len(batch) for batch in compared)]
    watched = tracked(compared, site.reporter, f"BatchNorm, {label}")
    found = compare_modes(module, watched, labels)
    return Modes(found.agreement, found.top1_eval, found.top1_batch)


# --- the graphs ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graphs:
    """The fp32 graph, what folding did, and what FP16 does to it.

    The whole of these is in onnx/folding.json (a `FoldReport`) and onnx/half.json (a `HalfReport`), from
    which `wide` names the nodes that must stay FP32. `pixels` is what INT8 graphs are made from where the
    normalisation of frames is folded into the first convolution, with the residual of its proof, or the
    reason why it is not; it is no file of the bundle.
    """

    fp32: Artifact
    folding: Artifact
    half: Artifact
    folded: int
    refused: tuple[str, ...]
    largest_residual: float
    wide: tuple[str, ...]
    pixels: Artifact | None = None
    pixels_residual: float = 0.0
    pixels_reason: str = ""

    @property
    def for_integers(self) -> Artifact:
        """The FP32 graph that Q/DQ graphs are made from."""
        return self.pixels or self.fp32


def graphs(site: Site, data: Data, built: Done[Reference]) -> Done[Graphs]:
    """Trace the reference, fold conv + BatchNorm and prove it, write onnx/fp32.onnx, try it in half.

    Raises:
        InputRefused: The model cannot be traced or written as ONNX.
        NotFinite: It gives NaN or infinity on the first images; the module is named.
    """
    sample_images = data.calibration.select(range(min(PROOF_IMAGES, len(data.calibration))))
    key = Key(
        "graphs",
        inputs={
            "source": built.value.source.sha256,
            "weights": built.value.weights.sha256,
            "sample": sample_images.sha256,
        },
        options={"preprocessing": encode(data.preprocessing), "input": data.input},
        versions=versions(*_WRITING_LIBRARIES),
        machine=site.machine,
    )

    def make(folder: Path) -> Graphs:
        from resedge.export.fold import fold
        from resedge.export.frames import take_frames
        from resedge.export.onnxfile import write_onnx
        from resedge.export.pixels import PixelFold, fold_pixels
        from resedge.export.sources import load_reference
        from resedge.export.trace import trace

        module = load_reference(built.value.source.path.parent)
        sample = sample_images.prepared(data.preprocessing)
        folded = fold(trace(module, sample.shape[1:]), sample)
        (folder / "onnx").mkdir()
        parents = (built.value.source.sha256, built.value.weights.sha256)
        fp32 = write_onnx(folded.graph, sample.shape[1:], folder / "onnx" / "fp32.onnx", parents=parents)
        tried = try_in_half(folded.graph, fp32, sample)
        folded_pixels = PixelFold(None)
        if data.input == "uint8":
            fp32 = take_frames(fp32, data.preprocessing, fp32.path)
            (folder / "between").mkdir()
            frames = sample_images.decode(range(len(sample_images)))
            folded_pixels = fold_pixels(fp32, data.preprocessing, frames, folder / "between" / "pixels.onnx")
        report = folded.report
        folding = write_json(folder / "onnx" / "folding.json", report, "folding", (fp32.sha256,))
        return Graphs(
            fp32,
            folding,
            write_json(folder / "onnx" / "half.json", tried, "half", (fp32.sha256,)),
            folded=len(report.folded),
            refused=tuple(f"{site.batchnorm}: {site.reason}" for site in report.refused),
            largest_residual=max((site.residual_float64 for site in report.folded), default=0.0),
            wide=tried.wide,
            pixels=folded_pixels.graph,
            pixels_residual=folded_pixels.residual,
            pixels_reason=folded_pixels.reason,
        )

    return run_stage(site, key, Graphs, make)


# --- eager's answers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class EagerAnswers:
    """Eager's logits on tuning and test images (files of the cache), and the golden images.

    `golden` holds inputs and logits of images on which eager is sure of itself, `trial` what a device's
    replay of them must reach.
    """

    tuning_logits: Artifact
    test_logits: Artifact
    golden: Artifact
    trial: Artifact


def eager_answers(site: Site, data: Data, built: Done[Reference]) -> Done[EagerAnswers]:
    """Run eager over the tuning and the test images, and choose the golden ones among the former."""
    parents = (built.value.source.sha256, built.value.weights.sha256)
    key = Key(
        "eager",
        inputs={
            "source": parents[0],
            "weights": parents[1],
            "tuning": data.tuning.sha256,
            "test": data.test.sha256,
        },
        options={
            "preprocessing": encode(data.preprocessing),
            "input": data.input,
            "threads": site.threads,
        },
        versions=versions("torch", "numpy", "safetensors"),
        machine=site.machine,
    )

    def make(folder: Path) -> EagerAnswers:
        runtime = eager_runtime("contiguous")
        engine = runtime.build(built.value.source, folder, BuildOptions("fp32"))
        with runtime.open(engine, RunOptions(site.threads)) as run:
            on_tuning = evaluate(run, data.tuning, data.preprocessing, site.reporter, "eager, tuning")
            on_test = evaluate(run, data.test, data.preprocessing, site.reporter, "eager, test")
        (folder / "logits").mkdir()
        (folder / "golden").mkdir()
        golden, trial = _write_golden(folder / "golden", data, on_tuning, parents)
        return EagerAnswers(
            _write_logits(folder / "logits" / "tuning.npy", on_tuning, parents),
            _write_logits(folder / "logits" / "test.npy", on_test, parents),
            golden,
            trial,
        )

    return run_stage(site, key, EagerAnswers, make)


def _write_golden(
    folder: Path, data: Data, logits: Float32Array, parents: tuple[str, ...]
) -> tuple[Artifact, Artifact]:
    """Write the golden images as engines take them, with eager's logits."""
    from safetensors.numpy import save

    sure = surest(logits, GOLDEN_IMAGES)
    chosen = data.tuning.select(sure.tolist())
    tensors = {
        "input": chosen.all_inputs(data.outside),
        "logits": np.ascontiguousarray(logits[sure]),
    }
    golden = _write_bytes(folder / "golden.safetensors", save(tensors), "golden", parents)
    trial = Thresholds(THRESHOLDS_VERSION, len(chosen), min_agreement=1.0)
    return golden, write_json(folder / "trial.json", trial, "golden/trial", (golden.sha256,))


# --- writing -------------------------------------------------------------------------------------


def _write_bytes(path: Path, content: bytes, kind: str, parents: tuple[str, ...]) -> Artifact:
    files.write_bytes(path, content)
    return Artifact(path, sha256_bytes(content), kind, parents=parents)


def write_json(path: Path, value: object, kind: str, parents: tuple[str, ...]) -> Artifact:
    """Write a value of ours as canonical JSON."""
    return _write_bytes(path, canonical_json(encode(value)).encode(), kind, parents)


def _write_logits(path: Path, logits: Float32Array, parents: tuple[str, ...]) -> Artifact:
    with files.disk_errors(path):
        np.save(path, logits, allow_pickle=False)
    return Artifact(path, sha256_file(path), "logits", parents=parents)
