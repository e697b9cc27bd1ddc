"""Weights from a file: read without running code, taken out of their wrapping, fitted to a model.

Training frameworks save a state_dict inside a dictionary and under prefixes of their own. What is taken out
and stripped is said; what then does not fit is refused key by key, and nothing is loaded.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resedge.artifacts import sha256_bytes, sha256_file
from resedge.errors import InputRefused, StaleArtifact
from resedge.gate import MAX_RANK, MAX_TENSORS, check_checkpoint, read_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn

ARCHIVES: Final = (".pt", ".pth", ".ckpt")
# An average of the weights is what its training evaluated, so it comes before the weights themselves.
WRAPPERS: Final = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state_dict")
PREFIXES: Final = ("module.", "model.", "backbone.", "_orig_mod.")
_COUNTERS: Final = "num_batches_tracked"  # evaluation never reads it
_AVERAGED: Final = "n_averaged"  # beside the weights in torch.optim.swa_utils.AveragedModel
_DEEPEST: Final = 8
_LINES: Final = 8  # a refusal names this many keys of each sort, and counts the rest


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights that passed the gate, not yet read by torch.

    `data` is the file itself where it was read in whole, as safetensors are; `sha256` is its digest.
    """

    path: Path
    sha256: str
    data: bytes | None = None


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what was done to come to them, in sentences."""

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def open_checkpoint(path: Path) -> Checkpoint:
    """Look at a file of weights; torch is not imported.

    Raises:
        InputRefused: Of no known kind, missing, unreadable, or beyond the limits of `resedge.gate`.
    """
    if path.suffix in ARCHIVES:
        check_checkpoint(path)
        return Checkpoint(path, sha256_file(path))
    if path.suffix == ".safetensors" or path.is_dir():
        data = read_safetensors(path)
        return Checkpoint(path, sha256_bytes(data), data)
    raise InputRefused(
        f"weights are read from {', '.join(('.safetensors', *ARCHIVES))} files only.",
        where=str(path),
        cure="Save them with safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
    )


def read_weights(checkpoint: Checkpoint) -> Weights:
    """Return the tensors of a checkpoint, out of their dictionaries, their prefixes still on.

    Raises:
        InputRefused: It is not sound, holds anything but tensors and plain values, or no weights.
        StaleArtifact: It has changed since it was looked at.
    """
    if checkpoint.data is not None:
        return Weights(parse_safetensors(checkpoint.data, str(checkpoint.path)))
    return _unwrapped(_load_archive(checkpoint), str(checkpoint.path))


def parse_safetensors(data: bytes, where: str) -> dict[str, Tensor]:
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


def fit(weights: Weights, needed: Mapping[str, Tensor]) -> Weights:
    """Strip prefixes that a model lacks, and convert other floating-point types to the model's.

    Args:
        weights: As `read_weights` returns them.
        needed: The model's own state_dict.
    """
    tensors, notes = dict(weights.tensors), list(weights.notes)
    if _AVERAGED in tensors and _AVERAGED not in needed:
        del tensors[_AVERAGED]
        notes.append(f"{_AVERAGED!r} was left out: it counts what was averaged")
    while prefix := _prefix_to_strip(tensors, needed):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"the prefix {prefix!r} was stripped")
    converted: dict[str, int] = {}
    for name in tensors.keys() & needed.keys():
        given, wanted = tensors[name], needed[name].dtype
        if given.dtype != wanted and given.is_floating_point() and wanted.is_floating_point:
            converted[_dtype(given)] = converted.get(_dtype(given), 0) + 1
            tensors[name] = given.to(wanted)
    notes += [f"{count} tensors were converted from {kind}" for kind, count in sorted(converted.items())]
    return Weights(tensors, tuple(notes))


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a checkpoint strictly, in place; nothing is loaded unless everything fits.

    Args:
        module: Receives the tensors.
        tensors: A whole `state_dict`, each entry with the shape and dtype that the module has. Counters
            of batches (`num_batches_tracked`) may be missing.
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
            cure="Give the state_dict of this very architecture.",
        )
    module.load_state_dict({**needed, **tensors}, strict=True)


def _load_archive(checkpoint: Checkpoint) -> object:
    """Read an archive by torch's restricted unpickler alone, its storages mapped and not copied.

    Nothing else is tried where that refuses: whatever is less strict runs code of the file.
    """
    import torch

    where = str(checkpoint.path)
    try:
        content: object = torch.load(checkpoint.path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises all sorts for a damaged or a crafted file
        reason = " ".join(str(error).split()).partition(" (1) ")[0]
        raise InputRefused(
            f"cannot be read without running code of it: {reason[:300]}",
            where=where,
            cure="Load it where it was made, and save the model's state_dict alone.",
        ) from error
    if sha256_file(checkpoint.path) != checkpoint.sha256:
        raise StaleArtifact("changed while it was read.", where=where, cure="Run the same command again.")
    return content


def _unwrapped(content: object, where: str) -> Weights:
    """Find the state_dict in what a training framework saved."""
    notes: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            return Weights(_tensors_of(content, where), tuple(notes))
        beside = ", ".join(sorted(str(key) for key in content if key != wrapper))
        notes.append(f"the weights are those under {wrapper!r}" + (f", beside {beside}" if beside else ""))
        content = content[wrapper]
    raise InputRefused(
        f"holds a {type(content).__name__}, not the tensors of a model by name.",
        where=where,
        cure="Save the model's state_dict.",
    )


def _tensors_of(content: Mapping[object, object], where: str) -> dict[str, Tensor]:
    from torch import Tensor, strided

    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputRefused(
                f"holds {name!r:.60} ({type(value).__name__}) among its tensors; a state_dict was expected, "
                f"alone or under {', '.join(WRAPPERS)}.",
                where=where,
                cure="Save the model's state_dict.",
            )
        if value.layout != strided or value.is_quantized or value.dim() > MAX_RANK:
            raise InputRefused(f"{name!r:.60} is no plain tensor.", where=where)
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputRefused(f"{name!r:.60} claims more numbers than the file holds.", where=where)
        tensors[name] = value.detach()
    if not tensors:
        raise InputRefused("holds no tensor.", where=where)
    if len(tensors) > MAX_TENSORS:
        raise InputRefused(f"has {len(tensors)} tensors, more than {MAX_TENSORS}.", where=where)
    return tensors


def _prefix_to_strip(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> str:
    """Return a known prefix that the model does not have, "" where none is left.

    One that every tensor has goes; one that some have goes if more of them then have the model's names.
    """
    fitting = len(tensors.keys() & needed.keys())
    for prefix in PREFIXES:
        wearing = [name for name in tensors if name.startswith(prefix)]
        if not wearing or any(name.startswith(prefix) for name in needed):
            continue
        bare = {name.removeprefix(prefix) for name in tensors}
        unique = len(bare) == len(tensors)
        if unique and (len(wearing) == len(tensors) or len(bare & needed.keys()) > fitting):
            return prefix
    return ""


def _missing_and_unexpected(needed: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in needed.keys() - given.keys() if not name.endswith(_COUNTERS)]
    faults = [f"{name} {_shape(needed[name])} is missing" for name in missing]
    for name in given.keys() - needed.keys():
        near = difflib.get_close_matches(name, missing or sorted(needed), n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        faults.append(f"{name} {_shape(given[name])} is unexpected{hint}")
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
