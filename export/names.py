"""What MODEL may be: the names of architectures, and code that only its user may have run. Without torch."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from resedge.artifacts import sha256_file
from resedge.errors import InputRefused, UsageError

Kind = Literal["notebook", "cifar", "torchvision", "timm", "file", "program", "object"]

KNOWN: Final = "notebook, plain-N, resnet-N, torchvision:NAME, timm:NAME, FILE.py:CALLABLE, FILE.pt2"
_CODE: Final = ("file", "program", "object")
_CIFAR: Final = re.compile(r"(plain|resnet)-([1-9]\d{0,3})")
_LIBRARY: Final = re.compile(r"(torchvision|timm):([A-Za-z0-9_][A-Za-z0-9_.]*)")
_FILE: Final = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
_OBJECT: Final = re.compile(r"python:([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Named:
    """A model as its user named it.

    `label` is the name without the folder of a file, as reports and bundles have it; `part` is what follows
    the colon, or the name itself. `path` is a file's, absolute. `module` is an nn.Module given from Python.
    """

    kind: Kind
    label: str
    part: str
    path: Path | None = None
    module: Any = None

    @property
    def runs_code(self) -> bool:
        """Whether making it runs code that is neither resedge's nor an installed library's."""
        return self.kind in _CODE

    def __str__(self) -> str:
        """What `parse` reads in any folder."""
        if self.path is None:
            return self.label
        return f"{self.path}:{self.part}" if self.kind == "file" else str(self.path)

    @property
    def stem(self) -> str:
        """The name of its bundle, without a suffix."""
        return self.path.stem if self.path else self.part

    def code_sha256(self) -> str | None:
        """Return the digest of the file, None where there is none.

        Raises:
            InputRefused: The file cannot be read.
        """
        if self.path is None:
            return None
        try:
            return sha256_file(self.path)
        except OSError as error:
            raise InputRefused(f"cannot be read ({error.strerror}).", where=str(self.path)) from error


def parse(text: str) -> Named:
    """Return what MODEL means; nothing is imported, and no file is opened.

    Raises:
        UsageError: It is none of `KNOWN`.
    """
    if text == "notebook":
        return Named("notebook", text, text)
    if found := _CIFAR.fullmatch(text):
        if int(found[2]) % 6 != 2 or int(found[2]) < 8:
            raise UsageError(f"{text}: there is no such network.", cure="N is 6n + 2: 8, 14, 20, 32, 56 ...")
        return Named("cifar", text, text)
    if found := _LIBRARY.fullmatch(text):
        return Named("torchvision" if found[1] == "torchvision" else "timm", text, found[2])
    if found := _FILE.fullmatch(text):
        path = Path(found[1])
        return Named("file", f"{path.name}:{found[2]}", found[2], path.absolute())
    if text.endswith(".pt2"):
        path = Path(text)
        return Named("program", path.name, path.stem, path.absolute())
    near = difflib.get_close_matches(text, ["notebook", "resnet-20", "plain-20"], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"unknown model {text!r}.", cure=f"Known: {KNOWN}.{hint}")


def recorded(label: str) -> Named:
    """Return what a label that a bundle has recorded means: code among it is named, and not found.

    Raises:
        UsageError: It is a name that this version does not know.
    """
    if found := _OBJECT.fullmatch(label):
        return Named("object", label, found[1])
    return parse(label)


def of_module(module: Any) -> Named:  # noqa: ANN401 - an nn.Module
    """Return the name of a module that was given from Python: its class's."""
    name = type(module).__name__
    return Named("object", f"python:{name}", name, module=module)
