"""The first stage of an export: what the model is, before any image is read."""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resedge import data as builtin
from resedge.artifacts import Preprocessing, encode, sha256_file
from resedge.errors import InputRefused
from resedge.export import sources
from resedge.export.checkpoints import Checkpoint, open_checkpoint
from resedge.export.names import Named
from resedge.pipeline.options import ExportOptions
from resedge.pipeline.recording import record_file, recorded
from resedge.pipeline.staging import Done, Site, run_stage, versions
from resedge.store import Key

_LIBRARIES = ("torch", "numpy", "safetensors")
UNTRAINED = (
    "no --weights were given, and nothing is downloaded: the model is untrained. Its latency means "
    "something, its classes mean nothing"
)


@dataclass(frozen=True)
class Model:
    """What a model is: its border, its images, what it was made from, and what is to be said of that.

    `checkpoint` is the digest of the weights as they were given. `code` is that of what the model's code
    computes (its traced graph, its numbers among it), whatever files it is in; `code_sha256` that of the one
    file that was named. None: there is none.
    """

    label: str
    input_shape: tuple[int, ...]
    classes: int
    preprocessing: Preprocessing
    checkpoint: str | None
    code: str | None
    code_sha256: str | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """The model of an export: what it is, and what makes it again."""

    named: Named
    checkpoint: Checkpoint | None
    about: Model


def loaded(site: Site, named: Named, options: ExportOptions) -> Loaded:
    """Find out what a model is, and say it.

    Raises:
        ResedgeError: It cannot be made, its weights do not fit, or its images are not known.
    """
    weights = options.weights or (builtin.NOTEBOOK_WEIGHTS if named.kind == "notebook" else None)
    checkpoint = open_checkpoint(weights) if weights else None
    file = record_file(options.weights, named)
    if named.runs_code:
        about = _described(named, checkpoint, options, file)
    else:
        about = _kept(site, named, checkpoint, options, file).value
    for note in about.notes:
        site.reporter.note(note)
    for warning in about.warnings:
        site.reporter.warn(warning)
    return Loaded(named, checkpoint, about)


def _kept(
    site: Site, named: Named, checkpoint: Checkpoint | None, options: ExportOptions, file: Path | None
) -> Done[Model]:
    """Describe a model through the cache: its name and its weights say what it is."""
    library = (named.kind,) if named.kind in ("torchvision", "timm") else ()
    key = Key(
        "model",
        inputs={
            **({"weights": checkpoint.sha256} if checkpoint else {}),
            **({"record": sha256_file(file)} if file else {}),
        },
        options={
            "model": named.label,
            "images": encode(options.images),
            "weights": checkpoint.path.suffix if checkpoint else "",
            "record": file.name if file else "",
        },
        versions=versions(*_LIBRARIES, *library),
    )
    return run_stage(site, key, Model, lambda _folder: _described(named, checkpoint, options, file))


def _described(
    named: Named, checkpoint: Checkpoint | None, options: ExportOptions, file: Path | None
) -> Model:
    """Make the model, run it once, and describe it."""
    made = sources.make(named, checkpoint)
    own_shape = sources.own_shape(made.module) if named.kind == "program" else None
    images = recorded(named, options.images, file, own_shape)
    size = images.preprocessing
    shape = size.input_shape
    classes = _classes(made.module, shape, named.label)
    untrained = checkpoint is None and not named.runs_code
    return Model(
        named.label,
        shape,
        classes,
        images.preprocessing,
        checkpoint.sha256 if checkpoint else None,
        _code_digest(made.module, shape) if named.runs_code else None,
        named.code_sha256(),
        (*made.notes, *((images.note,) if images.note else ())),
        (*((UNTRAINED,) if untrained else ()), *((images.warning,) if images.warning else ())),
    )


def _classes(module: Any, shape: tuple[int, ...], label: str) -> int:  # noqa: ANN401 - a torch module
    """Run a model once, on two grey images."""
    import torch

    from resedge.export.trace import shortened

    try:
        with torch.inference_mode():
            logits = module(torch.zeros(2, *shape))
    except Exception as error:  # a model's own code, or an operator that the size does not suit
        raise InputRefused(
            f"does not take images of (N, {', '.join(map(str, shape))}): {shortened(error)}",
            where=label,
            cure="Say what it takes with --input-shape.",
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != 2:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputRefused(
            f"gives {found} for two images; needed is one tensor (2, classes).",
            where=label,
            cure="Wrap the model so that forward returns its logits alone.",
        )
    if logits.shape[1] < 2:
        raise InputRefused(f"has {logits.shape[1]} class; a classifier has two or more.", where=label)
    return int(logits.shape[1])


def _code_digest(module: Any, shape: tuple[int, ...]) -> str:  # noqa: ANN401 - a torch module
    """Return a digest of what a model computes: its traced graph, and every tensor in it."""
    from resedge.export.trace import trace

    graph = trace(module, shape).graph
    digest = hashlib.sha256(str(graph.graph).encode())
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            tensor = operator.attrgetter(str(node.target))(graph).detach().contiguous()
            digest.update(f"{node.target} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def numbered(model: Model) -> tuple[str, ...]:
    """Return names for classes that nobody has named."""
    return tuple(str(number) for number in range(model.classes))
