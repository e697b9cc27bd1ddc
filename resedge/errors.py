"""Every error that resedge raises on purpose.

    ResedgeError
      UsageError            exit 2   wrong usage, unknown names among it
      InputRefused          exit 5   a file, a folder or a value was refused
        GraphRefused                 an ONNX graph breaks a stated rule
        NotFinite                    a model or an engine gives NaN or infinite logits
        StaleArtifact                a file no longer matches the digest that it is known by
        DeviceBusy                   another agent is at work on a device
      MachineFailure        exit 6   the machine failed us: disk, memory, a crashed child
      RuntimeUnavailable    exit 4   a backend or a device is not there
        BuildFailed                  a runtime could not build or open an engine
        DeviceUnreachable            a device does not answer, does not let one in, or its connection broke

A message says what, where, and what to do; foreign errors are translated at the border, `from error`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class ResedgeError(Exception):
    """Base of the tree.

    Args:
        what: One plain sentence: what is wrong.
        where: The file, key, node or option at fault.
        cure: What the reader can do about it.
    """

    exit_code: ClassVar[int] = 5

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        super().__init__(what, where, cure)
        self.what = what
        self.where = where
        self.cure = cure

    def __str__(self) -> str:
        message = f"{self.where}: {self.what}" if self.where else self.what
        return f"{message} {self.cure}" if self.cure else message


class UsageError(ResedgeError):
    """Wrong usage: an unknown backend, precision, option or model name."""

    exit_code = 2


class InputRefused(ResedgeError):
    """Something that the user gave is missing, unreadable, or not what it must be."""

    exit_code = 5


class GraphRefused(InputRefused):
    """An ONNX graph breaks a stated rule; `where` names the node or tensor."""


class StaleArtifact(InputRefused):
    """A file's bytes no longer match the digest that it is known by."""


class DeviceBusy(InputRefused):
    """Another agent is at work on a device; it may be one that a broken connection left behind."""


class NotFinite(InputRefused):
    """A model or an engine gives NaN or infinite logits."""


class MachineFailure(ResedgeError):
    """Disk full, folder not writable, out of memory, or a child process that crashed."""

    exit_code = 6


class RuntimeUnavailable(ResedgeError):
    """A runtime, a precision of it, or its device is not there; `cure` says how to get it."""

    exit_code = 4


class BuildFailed(RuntimeUnavailable):
    """A runtime is there and could not build or open this engine."""


class DeviceUnreachable(RuntimeUnavailable):
    """A device does not answer, does not let one in, or the connection to it broke."""


_WORST_FIRST = (2, 5, 6, 4, 1, 3, 0)


def worst(codes: Iterable[int]) -> int:
    """Return the exit code of several things that were done at once: that of the worst; 0 for none."""
    return min(codes, key=_WORST_FIRST.index, default=0)
