"""Libraries for devices without internet: a folder of wheels is sent, and the device's own pip installs it.

ROOT/wheels/                 the wheels, as they were sent
ROOT/sites/SHA256/           what was installed of them, by the digest of the set
ROOT/site-packages           leads to the newest, and is what the agent's Python looks into first
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resedge.artifacts import sha256_file, sha256_json
from resedge.errors import InputRefused, MachineFailure, RuntimeUnavailable
from resedge.shipping.remote import Remote

_NAME: Final = re.compile(
    r"([A-Za-z0-9_.]+)-[A-Za-z0-9_.!+]+(?:-[0-9][A-Za-z0-9_.]*)?(?:-[A-Za-z0-9_.]+){3}\.whl"
)
_NO_PIP: Final = 96
_PIECE: Final = 1 << 20

_HELD: Final = """
[ -d "$root/sites/$site" ] && [ "$(readlink "$root/site-packages")" = "sites/$site" ] && echo installed
cd "$root/wheels" 2>/dev/null && sha256sum -- *.whl 2>/dev/null
true
"""
_INSTALL: Final = """
set -e; umask 022
wheels=$root/wheels; new=$root/sites/.new.$$
trap 'rm -rf "$new"' EXIT
if "$python" -m pip --version > /dev/null 2>&1; then set -- -m pip
else set -- "$wheels"/pip-*.whl; [ -f "$1" ] || exit 96; set -- "$1/pip"
fi
mkdir -p "$root/sites"
"$python" "$@" install --quiet --disable-pip-version-check --no-index -f "$wheels" --target "$new" $names >&2
rm -rf "$root/sites/$site"
mv "$new" "$root/sites/$site"
ln -sfn "sites/$site" "$root/.site-packages.$$"
mv -fT "$root/.site-packages.$$" "$root/site-packages"
for old in "$root"/sites/*; do [ "$old" = "$root/sites/$site" ] || rm -rf "$old"; done
"""


@dataclass(frozen=True)
class Wheels:
    """A folder of wheels: each file's path and digest."""

    files: tuple[tuple[Path, str], ...]

    @property
    def size(self) -> int:
        """Their bytes."""
        return sum(path.stat().st_size for path, _ in self.files)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the distributions, each once."""
        return tuple(sorted({name.split("-")[0] for name in (path.name for path, _ in self.files)}))

    @property
    def digest(self) -> str:
        """The digest of the set."""
        return sha256_json([[path.name, digest] for path, digest in self.files])


def read(folder: Path) -> Wheels:
    """Return the wheels of a folder; those for several kinds of devices may lie side by side.

    Raises:
        InputRefused: There are none, or a name is not that of a wheel.
    """
    paths = sorted(folder.glob("*.whl"))
    if not paths:
        raise InputRefused(
            "has no wheels.", where=str(folder), cure="Fill it where there is internet: pip download -d."
        )
    for path in paths:
        if not _NAME.fullmatch(path.name):
            raise InputRefused("has not the name of a wheel.", where=str(path))
    return Wheels(tuple((path, sha256_file(path)) for path in paths))


async def install(wheels: Wheels, device: Remote, step: Callable[[str], None]) -> None:
    """Send those wheels that a device does not hold, and install all, unless just these are installed.

    Raises:
        RuntimeUnavailable: The device has no pip, and none is among the wheels.
        MachineFailure: They cannot be written, or pip fails.
        DeviceUnreachable: The connection broke.
    """
    site = {"site": wheels.digest}
    lines = (await device.sh(_HELD, site)).output.decode(errors="replace").splitlines()
    if lines[:1] == ["installed"]:
        return
    held = {line[:64] for line in lines}
    for path, digest in wheels.files:
        if digest not in held:
            step(f"sending {path.name}")
            await device.put("wheels", path.name, _content(path), digest)
    step(f"installing {', '.join(wheels.names)}")
    ran = await device.sh(_INSTALL, {**site, "names": " ".join(wheels.names)})
    if ran.code == _NO_PIP:
        raise RuntimeUnavailable(
            "has no pip, and none is among the wheels.",
            where=device.where,
            cure="Put a wheel of pip into the folder.",
        )
    if ran.code != 0:
        raise MachineFailure(
            f"pip cannot install the wheels there ({ran.said}).",
            where=device.where,
            cure="See that the folder has all that they need, for that Python and processor.",
        )


async def _content(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece
