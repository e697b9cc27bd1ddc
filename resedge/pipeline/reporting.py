"""Where the pipeline says what it does; the command line prints it, an application may ignore it."""

from __future__ import annotations

from typing import Protocol

from resedge.protocols import NoProgress, Progress


class Reporter(Progress, Protocol):
    """One line a stage, warnings, and progress within a stage."""

    def stage(self, name: str, detail: str, *, reused: bool = False) -> None:
        """Say that a stage is done, and what came of it."""

    def warn(self, text: str) -> None:
        """Say what the user should know before trusting the result."""

    def note(self, text: str) -> None:
        """Say what helps to read the result."""


class Silent(NoProgress):
    """Reports to nobody."""

    def stage(self, name: str, detail: str, *, reused: bool = False) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
