"""Models made by their names: resedge's own, those of libraries, and code that the user named.

Libraries give architectures alone, never weights: nothing is downloaded. torch and the libraries are imported
inside the functions.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from resedge.artifacts import sha256_bytes
from resedge.errors import InputRefused, RuntimeUnavailable, StaleArtifact, UsageError
from resedge.export.names import Named

if TYPE_CHECKING:
    from torch import Tensor, nn

CIFAR_CLASSES: Final = 10
_SEED: Final = 0  # of untrained weights: the same model every time
_LARGEST_SOURCE: Final = 16 << 20


def instantiate(named: Named, classes: int | None = None, code_sha256: str | None = None) -> nn.Module:
    """Return the model, with the weights that it starts with; untrained ones are the same every time.

    Args:
        named: What is made. Code is run: the caller has it from the user's own words.
        classes: Of its last layer; None: the architecture's own number. Code decides that itself.
        code_sha256: What the digest of a file of code must be; None: any.

    Raises:
        UsageError: A library has no such model.
        RuntimeUnavailable: The library is not installed.
        InputRefused: The code fails, or gives no nn.Module.
        StaleArtifact: The code is another than that of `code_sha256`.
    """
    import torch

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(_SEED)
        return _make(named, classes, code_sha256)


def _make(named: Named, classes: int | None, code_sha256: str | None) -> nn.Module:
    if named.kind == "notebook":
        from resedge.export.notebook import ResNet

        return ResNet()
    if named.kind == "cifar":
        from resedge.export.cifar import cifar

        family, _, layers = named.part.partition("-")
        return cifar(int(layers), residual=family == "resnet", classes=classes or CIFAR_CLASSES)
    if named.kind == "torchvision":
        return _from_torchvision(named.part, classes)
    if named.kind == "timm":
        return _from_timm(named.part, classes)
    if named.kind == "object":
        return _evaluated(copy.deepcopy(named.module), named.label)
    assert named.path is not None  # of a file
    data = _read(named.path, code_sha256)
    if named.kind == "file":
        return _evaluated(_run(named.path, data, named.part), named.label)
    return load_program(named.path, data)


def classes_of(module: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the classes of a checkpoint whose last layer is as deep as the model's and of another width.

    None: it has the model's own number, or is not told by a linear last layer.
    """
    from torch import nn

    linear = [(path, part) for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        return None
    path, last = linear[-1]
    weight = tensors.get(f"{path}.weight")
    if weight is None or weight.dim() != 2 or weight.shape[1] != last.in_features:
        return None
    return None if weight.shape[0] == last.out_features else int(weight.shape[0])


def library(name: str) -> ModuleType:
    """Import torchvision or timm.

    Raises:
        RuntimeUnavailable: It is not installed, or does not fit the torch that is.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, AttributeError) as error:  # what a build for another torch raises
        raise RuntimeUnavailable(
            f"cannot be imported ({' '.join(str(error).split())[:200]}).",
            where=name,
            cure=f"Try: pip install 'resedge[{name}]'",
        ) from error


def _from_torchvision(name: str, classes: int | None) -> nn.Module:
    models = library("torchvision").models
    _demand_known(name, models.list_models(module=models), "torchvision")
    how = {} if classes is None else {"num_classes": classes}
    made: nn.Module = models.get_model(name, weights=None, **how)
    return made


def _from_timm(name: str, classes: int | None) -> nn.Module:
    timm = library("timm")
    _demand_known(name.partition(".")[0], timm.list_models(), "timm")
    how = {} if classes is None else {"num_classes": classes}
    made: nn.Module = timm.create_model(name, pretrained=False, **how)
    return made


def _demand_known(name: str, known: list[str], where: str) -> None:
    import difflib

    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3))
        raise UsageError(f"has no model {name!r}.", where=where, cure=f"The nearest: {near}." if near else "")


# --- code ----------------------------------------------------------------------------------------


def load_program(path: Path, data: bytes) -> nn.Module:
    """Load a program of torch.export, which can run code.

    Raises:
        InputRefused: It cannot be loaded, or its batch size is fixed.
    """
    import io

    import torch

    from resedge.export.trace import plain_graph, shortened

    try:
        program = torch.export.load(io.BytesIO(data))
    except Exception as error:  # whatever a damaged or a foreign file makes of torch
        raise InputRefused(f"cannot be loaded: {shortened(error)}", where=str(path)) from error
    graph = plain_graph(program)
    _demand_evaluation(graph, path)
    shape = program_input(graph)
    if len(shape) != 4 or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
        raise InputRefused(
            f"takes ({', '.join(map(str, shape))}); needed is an input (N, C, H, W) with N free.",
            where=str(path),
            cure="Export it with dynamic_shapes=({0: torch.export.Dim('batch')},).",
        )
    return graph


def _demand_evaluation(graph: Any, path: Path) -> None:  # noqa: ANN401 - an fx.GraphModule
    """Refuse a program that was exported in training mode: that stands in its operators, and stays."""
    import torch

    aten = torch.ops.aten
    dropouts = (aten.dropout.default, aten.dropout_.default)

    def trains(node: Any) -> bool:  # noqa: ANN401 - an fx.Node
        if node.target in dropouts:
            return bool(node.args[2])
        # Without running statistics batch statistics are what evaluation uses, too.
        return node.target is aten.batch_norm.default and bool(node.args[5]) and node.args[3] is not None

    if any(map(trains, graph.graph.nodes)):
        raise InputRefused(
            "was exported in training mode.", where=str(path), cure="Call model.eval() and export it again."
        )


def program_input(graph: Any) -> tuple[Any, ...]:  # noqa: ANN401 - an fx.GraphModule
    """Return the shape that a program's first input was exported with, a free size as torch's symbol."""
    first = next(node for node in graph.graph.nodes if node.op == "placeholder")
    return tuple(first.meta["val"].shape)


def _read(path: Path, code_sha256: str | None) -> bytes:
    """Read code: the very bytes that are run."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputRefused(f"cannot be read ({error.strerror}).", where=str(path)) from error
    if code_sha256 is not None and sha256_bytes(data) != code_sha256:
        raise StaleArtifact(
            f"is another file than the model was exported from (SHA-256 {code_sha256[:12]}).",
            where=str(path),
            cure="Restore it, or export again.",
        )
    return data


def _run(path: Path, data: bytes, name: str) -> object:
    """Run a Python file, and return what its callable returns; the file may import from its folder."""
    from resedge.export.trace import shortened

    if len(data) > _LARGEST_SOURCE:
        raise InputRefused(f"has {len(data):,} bytes, more than {_LARGEST_SOURCE:,}.", where=str(path))
    module = ModuleType(f"resedge_model_{path.stem}")
    module.__file__ = str(path)
    with _importing_from(path.parent, module):
        try:
            exec(compile(data, str(path), "exec"), module.__dict__)
            value = getattr(module, name, None)
            return value() if callable(value) and not _is_module(value) else value
        except Exception as error:  # the user's code may raise anything
            raise InputRefused(
                f"raised {type(error).__name__}: {shortened(error)}",
                where=f"{path}:{name}",
                cure="The callable is called without arguments.",
            ) from error


@contextmanager
def _importing_from(folder: Path, module: ModuleType) -> Iterator[None]:
    """Let code import its neighbours, and find itself, as classes that are pickled or copied must."""
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _is_module(value: object) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)


def _evaluated(value: object, where: str) -> nn.Module:
    from torch import nn

    if not isinstance(value, nn.Module):
        raise InputRefused(
            f"gives {type(value).__name__}, not an nn.Module.",
            where=where,
            cure="Name a callable without arguments that returns the model.",
        )
    return value
