"""The agent as one file: the modules that it needs, and no others, in an archive that Python runs.

Which modules these are is read from their imports. Equal sources give equal bytes: entries are in order,
their times fixed, and what another version of zlib could change is left out, as they are stored as they are.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Final

from resedge.errors import InputRefused

PACKAGE: Final = "resedge"
# The runtimes of devices are imported by the names in their table, which are texts that nothing here reads.
ROOTS: Final = (
    "resedge.agent.__main__",
    "resedge.agent.child",
    "resedge.agent.opening",
    "resedge.runtimes.onnxruntime",
    "resedge.runtimes.openvino",
    "resedge.runtimes.tensorrt",
)
_PACKAGE_FILE: Final = "__init__.py"
_SHEBANG: Final = b"#!/usr/bin/env python3\n"
_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the first that the format has
_MODE: Final = 0o644 << 16
_MAIN: Final = "from resedge.agent.__main__ import main\n\nmain()\n"


def build(roots: tuple[str, ...] = ROOTS) -> bytes:
    """Return the agent's file.

    Raises:
        InputRefused: A module's source is not there.
    """
    sources = {_entry(name): _file(name).read_bytes() for name in needed(roots)}
    archive = io.BytesIO()
    archive.write(_SHEBANG)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as writer:
        for entry, source in sorted({**sources, "__main__.py": _MAIN.encode()}.items()):
            info = zipfile.ZipInfo(entry, _TIME)
            info.external_attr = _MODE
            writer.writestr(info, source)
    return archive.getvalue()


def needed(roots: tuple[str, ...]) -> tuple[str, ...]:
    """Return the modules of this package that are imported by `roots`, by these, and so on, in order."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            above = name.rpartition(".")[0]
            waiting += [*_imports(name), *([above] if above else [])]
    return tuple(sorted(found))


def _imports(name: str) -> Iterator[str]:
    """Yield the modules of this package that a module imports, at once or in its functions.

    A package counts with what it imports at once: it is there for what lies in it, and not for its functions.
    """
    source = _file(name)
    tree = ast.parse(source.read_bytes())
    for node in _statements(tree, functions=source.name != _PACKAGE_FILE):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [module for module in inner if _is_module(module)]
            yield from modules if len(modules) == len(inner) else [node.module, *modules]


def _statements(node: ast.AST, *, functions: bool) -> Iterator[ast.AST]:
    """Yield what is below a node and is run, leaving out what is there for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and not functions:
            continue
        yield child
        yield from _statements(child, functions=functions)


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


def _is_module(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except ModuleNotFoundError:  # what would be above it is a module and no package
        return False


def _entry(name: str) -> str:
    path = name.replace(".", "/")
    return f"{path}/{_PACKAGE_FILE}" if _file(name).name == _PACKAGE_FILE else f"{path}.py"


def _file(name: str) -> Path:
    spec = util.find_spec(name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise InputRefused(
            "has no source here, so no agent can be made.",
            where=name,
            cure="Install resedge from its wheel, not as an archive.",
        )
    return Path(spec.origin)
