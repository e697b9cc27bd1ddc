"""What TensorRT says, and its failures as exceptions.

Its calls return None or False when they fail; why, and the error's name, is in the log alone. A process has
one logger for each TensorRT library: the library keeps the first that it is given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

_ERRORS: Final = ("ERROR", "INTERNAL_ERROR")
_TABLE_MARK: Final = "LayerType: "
_OUT_OF_MEMORY: Final = ("out of memory", "outofmemory", "memory allocation", "bad_alloc")
_LENGTH: Final = 300
_MOST: Final = 100


class TensorRTError(RuntimeError):
    """A TensorRT call failed; each argument is one reason.

    A reason is the call and what TensorRT said, its error's name included, or a node and why it is refused.
    """

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


class OutOfMemory(TensorRTError):
    """A TensorRT call failed for lack of memory."""


@dataclass
class Heard:
    """What was logged while somebody listened; `tables` are the layers that a builder lists at its end."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def note(self, severity: str, message: str) -> None:
        """Keep a message of that severity's name, if it is of a kind that matters and there are not many."""
        if severity in _ERRORS:
            kind = self.errors
        elif severity == "WARNING":
            kind = self.warnings
        elif _TABLE_MARK in message:
            kind = self.tables
        else:
            return
        if len(kind) < _MOST:
            kind.append(message)

    def failure(self, call: str) -> TensorRTError:
        """Return the exception for a call that failed; the errors are then told, and forgotten."""
        said = "; ".join(dict.fromkeys(one_line(error) for error in self.errors)) or "it gives no reason"
        self.errors.clear()
        lacking = any(mark in said.lower() for mark in _OUT_OF_MEMORY)
        return (OutOfMemory if lacking else TensorRTError)(f"{call}: {said}")


@functools.cache
def logger(trt: Any) -> Any:  # noqa: ANN401 - the tensorrt module, its ILogger
    """Return the one logger of this process for a TensorRT library."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.listeners: list[Callable[[str, str], None]] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - ILogger.Severity
            for listener in self.listeners:
                listener(severity.name, message)

    return Log()


@contextmanager
def listening(trt: Any) -> Iterator[Heard]:  # noqa: ANN401 - the tensorrt module
    """Collect what the library says inside the block."""
    heard, log = Heard(), logger(trt)
    # A bound method is made anew each time, so the one that is removed must be the one that was added.
    note = heard.note
    log.listeners.append(note)
    try:
        yield heard
    finally:
        log.listeners.remove(note)


def one_line(text: str) -> str:
    """Return a message on one line, its end cut off where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _LENGTH else f"{line[:_LENGTH]}..."
