"""Where resedge keeps what is this machine's own: the stage cache and the state of devices and engines."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The stage cache; `RESEDGE_HOME` overrides the platform's folder."""
    return _under_home("cache") or platformdirs.user_cache_path("resedge")


def state_folder() -> Path:
    """What this machine made for itself, plans above all; `RESEDGE_HOME` overrides the platform's folder."""
    return _under_home("state") or platformdirs.user_state_path("resedge")


def _under_home(name: str) -> Path | None:
    home = os.environ.get("RESEDGE_HOME")
    return Path(home, name) if home else None
