"""Devices as a user names them: [user@]host[:port], the host as ~/.ssh/config knows it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from resedge.errors import UsageError

_FORM: Final = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<literal>[0-9A-Fa-f:.%\w]+)\]|(?P<name>[^@:\s\[\]]+))(?::(?P<port>\d{1,5}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Host:
    """A device: what the user wrote, and its parts; None is what ~/.ssh/config or SSH itself says."""

    text: str
    name: str
    user: str | None = None
    port: int | None = None

    @property
    def ssh_arguments(self) -> str:
        """What to give to `ssh` to reach it."""
        port = f"-p {self.port} " if self.port else ""
        return f"{port}{f'{self.user}@' if self.user else ''}{self.name}"


def parse(text: str) -> Host:
    """Return the device that [user@]host[:port] names; an IPv6 address stands in brackets.

    Raises:
        UsageError: It has another form.
    """
    found = _FORM.fullmatch(text)
    name = (found["literal"] or found["name"]) if found else ""
    port = int(found["port"]) if found and found["port"] else None
    if found is None or name.startswith("-") or not (port is None or 0 < port < 65536):
        raise UsageError(
            f"{text!r} names no device.", cure="Write [user@]host[:port], such as nano@10.0.0.7."
        )
    return Host(text, name, found["user"], port)
