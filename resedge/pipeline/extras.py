"""Which extras are installed, asked without importing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from resedge.errors import RuntimeUnavailable

_MODULES = {
    "export": ("torch", "onnx", "onnxscript", "onnx_ir"),
    "onnxruntime": ("onnxruntime",),
    "bench": ("scipy",),
    "loadgen": ("mlperf_loadgen",),
    "ship": ("asyncssh",),
}


def require(what: str, *extras: str) -> None:
    """Check that extras are installed, before any work is done that would need them.

    Raises:
        RuntimeUnavailable: A module of one is missing; the install command is the cure.
    """
    require_modules(what, {extra: _MODULES[extra] for extra in extras})


def require_modules(what: str, needed: Mapping[str, Sequence[str]]) -> None:
    """Check that modules are installed of which an extra, its key, installs each.

    Raises:
        RuntimeUnavailable: As `require`.
    """
    missing = {
        extra: [name for name in modules if find_spec(name) is None] for extra, modules in needed.items()
    }
    lacking = [extra for extra, modules in missing.items() if modules]
    if lacking:
        modules = ", ".join(module for extra in lacking for module in missing[extra])
        raise RuntimeUnavailable(
            f"{what} needs {modules}, not installed here.",
            cure=f"Try: pip install 'resedge[{','.join(lacking)}]'",
        )
