"""Where a model comes from: a known architecture by name, its weights from safetensors, and back.

`reference/` of a bundle is `source.json` plus `weights.safetensors`: what `load_reference` rebuilds the
eager model from. A checkpoint is loaded strictly; what does not fit is refused key by key.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from resedge.artifacts import Artifact, TensorSpec, canonical_json, encode, load, sha256_bytes
from resedge.errors import InputRefused, UsageError
from resedge.files import write_bytes
from resedge.gate import read_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn

BatchNormMode = Literal["keep", "split"]

SOURCE_FILE: Final = "source.json"
WEIGHTS_FILE: Final = "weights.safetensors"
_KNOWN: Final = ("notebook",)
_LINES: Final = 8  # a refusal names this many keys of each sort, and counts the rest


@dataclass(frozen=True)
class Source:
    """What the eager model is, apart from its weights.

    `input_shape` is one sample's, such as (3, 28, 28). `split_calls` pairs the path of each BatchNorm
    that was split with its number of call sites; it is empty where `batchnorm` is "keep".
    `checkpoint_sha256` is the digest, in 64 hex digits, of the file that the user gave, before any repair;
    the weights beside this description have another.
    """

    name: str
    batchnorm: BatchNormMode
    split_calls: tuple[tuple[str, int], ...]
    input_shape: tuple[int, ...]
    classes: int
    checkpoint_sha256: str


def instantiate(name: str) -> nn.Module:
    """Return a known architecture with untrained weights.

    Raises:
        UsageError: The name is unknown.
    """
    if name == "notebook":
        from resedge.export.notebook import ResNet

        return ResNet()
    raise UsageError(f"the model {name!r} is unknown.", cure=f"Known models: {', '.join(_KNOWN)}.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file, after its header was checked.

    Raises:
        InputRefused: Missing, unreadable, or not a sound safetensors file.
    """
    return parse_weights(read_safetensors(path), str(path))


def parse_weights(data: bytes, where: str) -> dict[str, Tensor]:
    """Return every tensor of a safetensors file's bytes, as `resedge.gate.read_safetensors` returns them.

    Args:
        data: The whole file, its header checked.
        where: Named in the error, such as the file's path.

    Raises:
        InputRefused: Not a sound safetensors file.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError) as error:
        raise InputRefused(f"is not a sound safetensors file ({error}).", where=where) from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a checkpoint strictly, in place; nothing is loaded unless everything fits.

    Args:
        module: Receives the tensors.
        tensors: A whole `state_dict`, each entry with the shape and dtype that the module has.
        where: Named in the error, such as the file's path.

    Raises:
        InputRefused: Keys are missing or unexpected, or a tensor has another shape or dtype, or holds
            NaN or Inf; every such key is named, up to a limit.
    """
    needed = module.state_dict()
    misfits = _missing_and_unexpected(needed, tensors)
    for name in needed.keys() & tensors.keys():
        if fault := _tensor_fault(tensors[name], needed[name]):
            misfits.append(f"{name} {fault}")
    if misfits:
        raise InputRefused(
            f"the checkpoint does not fit the model: {_listed(sorted(misfits))}.",
            where=where,
            cure="Give the state_dict of this very architecture, in float32.",
        )
    module.load_state_dict(dict(tensors), strict=True)


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
        UsageError: The architecture is not known to this version.
    """
    from resedge.export.batchnorm import split

    source = load(Source, reference_dir / SOURCE_FILE)
    weights = reference_dir / WEIGHTS_FILE
    module = split(instantiate(source.name), dict(source.split_calls))
    load_weights(module, read_weights(weights), str(weights))
    return module.eval()


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


def _missing_and_unexpected(needed: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    faults = [f"{name} is missing" for name in needed.keys() - given.keys()]
    for name in given.keys() - needed.keys():
        near = difflib.get_close_matches(name, sorted(needed), n=1)
        faults.append(f"{name} is unexpected" + (f" (nearest: {near[0]})" if near else ""))
    return faults


def _tensor_fault(given: Tensor, needed: Tensor) -> str:
    """Return what is wrong with a tensor, or "" where it fits."""
    if given.shape != needed.shape:
        return f"has {_shape(given)}, needs {_shape(needed)}"
    if given.dtype != needed.dtype:
        return f"has {_dtype(given)}, needs {_dtype(needed)}"
    if given.is_floating_point():
        finite = int(given.isfinite().sum())
        if finite != math.prod(given.shape):
            return f"holds NaN or Inf ({math.prod(given.shape) - finite} values)"
    return ""


def _shape(tensor: Tensor) -> str:
    return "(" + ",".join(str(size) for size in tensor.shape) + ")"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(faults: list[str]) -> str:
    shown = "; ".join(faults[:_LINES])
    return shown if len(faults) <= _LINES else f"{shown}; and {len(faults) - _LINES} more"
