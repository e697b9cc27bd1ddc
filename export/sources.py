"""Where a model comes from: made by its name, given its weights, written as a reference, and back.

`reference/` of a bundle is `source.json` plus `weights.safetensors`: what `load_reference` rebuilds the
eager model from. Code is run where its user named it, and never because a bundle does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from resedge.artifacts import Artifact, TensorSpec, canonical_json, encode, load, sha256_bytes
from resedge.errors import UsageError
from resedge.export.architectures import classes_of, instantiate, program_input
from resedge.export.checkpoints import Checkpoint, fit, load_weights, open_checkpoint, read_weights
from resedge.export.names import Named, recorded
from resedge.files import write_bytes

if TYPE_CHECKING:
    from torch import nn

BatchNormMode = Literal["keep", "split"]

SOURCE_FILE: Final = "source.json"
WEIGHTS_FILE: Final = "weights.safetensors"
_GIVEN: ContextVar[Named | None] = ContextVar("given", default=None)


@dataclass(frozen=True)
class Source:
    """What the eager model is, apart from its weights.

    `input_shape` is one sample's, such as (3, 28, 28). `split_calls` pairs the path of each BatchNorm
    that was split with its number of call sites; it is empty where `batchnorm` is "keep".
    `checkpoint_sha256` is the digest, in 64 hex digits, of the file that the user gave, before any repair;
    the weights beside this description have another. None: the model came with its weights, or has
    untrained ones. `code_sha256` is the digest of the file that makes the model, where one does.
    """

    name: str
    batchnorm: BatchNormMode
    split_calls: tuple[tuple[str, int], ...]
    input_shape: tuple[int, ...]
    classes: int
    checkpoint_sha256: str | None
    code_sha256: str | None = None


@dataclass(frozen=True)
class Made:
    """A model in eval mode, float32 throughout, and what was done to come to it, in sentences."""

    module: nn.Module
    notes: tuple[str, ...]


def make(named: Named, checkpoint: Checkpoint | None) -> Made:
    """Make a model and load its weights; where they have another number of classes, the model gets it.

    Args:
        named: The model. Code is run.
        checkpoint: Its weights; None: those that it starts with.

    Raises:
        ResedgeError: As `instantiate`, `read_weights` and `load_weights`.
    """
    module = instantiate(named)
    notes = _notes_on(module) if named.runs_code else ()
    module = in_float32(module)
    if checkpoint is not None:
        weights = fit(read_weights(checkpoint), module.state_dict())
        notes = (*notes, *weights.notes)
        if not named.runs_code and (classes := classes_of(module, weights.tensors)):
            module = instantiate(named, classes)
        load_weights(module, weights.tensors, str(checkpoint.path))
    return Made(module.eval(), notes)


def _notes_on(module: nn.Module) -> tuple[str, ...]:
    """Say what a model from its user is in, where the deployed one is not."""
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters()} - {"float32"})
    notes = [f"its parameters were converted from {kind}" for kind in kinds]
    if module.training:
        notes.append("it was in training mode; what is deployed is its evaluation mode")
    return tuple(notes)


def own_shape(program: Any) -> tuple[int, ...]:  # noqa: ANN401 - an fx.GraphModule of `load_program`
    """Return one sample's shape as a program was exported for it, such as (3, 224, 224)."""
    return tuple(int(size) for size in program_input(program)[1:])


def in_float32(module: nn.Module) -> nn.Module:
    """Convert what is floating point and not float32, in place."""
    import torch

    anything: Any = module  # torch's own types leave the memory format out
    converted: nn.Module = anything.to(torch.float32).to(memory_format=torch.contiguous_format)
    return converted


@contextmanager
def given(named: Named | None) -> Iterator[None]:
    """Let `load_reference` run the code of this model within the block: its user named it.

    A bundle says what code it was made from. That is never enough to run it.
    """
    token = _GIVEN.set(named)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def write_reference(module: nn.Module, source: Source, out_dir: Path) -> tuple[Artifact, Artifact]:
    """Write the eager model into the existing folder `out_dir`; equal models give equal bytes.

    Returns:
        The weights ("reference/weights") and the source ("reference/source", made from the weights).

    Raises:
        InputRefused, MachineFailure: The folder cannot be written to.
    """
    import safetensors.torch

    # Cloned: safetensors refuses tensors that share memory, as a module under two names has.
    state = {key: value.detach().clone() for key, value in module.state_dict().items()}
    weights = _write(out_dir / WEIGHTS_FILE, safetensors.torch.save(state), "reference/weights")
    text = canonical_json(encode(source))
    described = _write(
        out_dir / SOURCE_FILE,
        text.encode(),
        "reference/source",
        inputs=(TensorSpec("input", ("batch", *source.input_shape), "float32"),),
        outputs=(TensorSpec("logits", ("batch", source.classes), "float32"),),
        parents=(weights.sha256,),
    )
    return weights, described


def load_reference(reference_dir: Path) -> nn.Module:
    """Rebuild the eager model, in eval mode, from what `write_reference` wrote.

    Raises:
        InputRefused: A file is missing or malformed, or the weights do not fit.
        UsageError: The architecture is not known to this version, or is code that nobody named (`given`).
    """
    from resedge.export.batchnorm import split

    source = load(Source, reference_dir / SOURCE_FILE)
    weights = reference_dir / WEIGHTS_FILE
    module = split(_rebuild(source), dict(source.split_calls))
    tensors = read_weights(open_checkpoint(weights)).tensors
    load_weights(module, tensors, str(weights))
    return module.eval()


def _rebuild(source: Source) -> nn.Module:
    named = recorded(source.name)
    if not named.runs_code:
        return instantiate(named, source.classes)
    by_user = _GIVEN.get()
    if by_user is None or not by_user.runs_code:
        raise UsageError(
            f"its eager model is made by code, {source.name}, which runs only where you name it.",
            where="reference/source.json",
            cure="Name the same file again: --model FILE.py:CALLABLE, or --model FILE.pt2.",
        )
    return in_float32(instantiate(by_user, code_sha256=source.code_sha256))


def _write(
    path: Path,
    data: bytes,
    kind: str,
    inputs: tuple[TensorSpec, ...] = (),
    outputs: tuple[TensorSpec, ...] = (),
    parents: tuple[str, ...] = (),
) -> Artifact:
    write_bytes(path, data)
    return Artifact(path.absolute(), sha256_bytes(data), kind, inputs, outputs, parents)
