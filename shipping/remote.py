"""What a workstation does on a device: plain sh until the agent is there, then the agent.

    ROOT/trust/allowed_signers     the keys whose signatures count there
    ROOT/agent/SHA256.pyz  .sig    agents, by the digest of each; `current.pyz` leads to the newest
    ROOT/site-packages/            what `--bootstrap` installed

The agent is verified by the device's own ssh-keygen each time before it runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from resedge.artifacts import sha256_bytes
from resedge.errors import InputRefused, MachineFailure, RuntimeUnavailable
from resedge.shipping import signing, wire
from resedge.shipping.ssh import Device, Feed, Ran

LEAST_PYTHON: Final = (3, 10)

_UNVERIFIED: Final = 97  # the scripts' own exit codes
_THERE_ALREADY: Final = 98
_NO_AGENT: Final = 99

T = TypeVar("T")
OnProgress = Callable[[wire.Progress], None]

_ROOT: Final = "root=${root:-${RESEDGE_DEVICE_ROOT:-$HOME/.local/share/resedge-device}}\n"
_SURVEY: Final = """
say() { printf '%s=%s\\n' "$1" "$2"; }
say root "$root"
say machine "$(uname -m)"
say python "$("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null)"
say keygen "$(command -v ssh-keygen)"
say signers "$(cat "$root/trust/allowed_signers" 2>/dev/null | tr '\\n' '|')"
file=$root/agent/$agent.pyz
say agent "$(cat "$file" 2>/dev/null | sha256sum | cut -c -64)"
say signature "$(cat "$file.sig" 2>/dev/null | sha256sum | cut -c -64)"
place=$root; while [ ! -d "$place" ]; do place=$(dirname "$place"); done
say disk "$(df -Pk "$place" | awk 'NR == 2 { print $4 }')"
say memory "$(awk '$1 == "MemAvailable:" { print $2 }' "${RESEDGE_SYSROOT:-}/proc/meminfo" 2>/dev/null)"
say l4t "$(head -n 1 "${RESEDGE_SYSROOT:-}/etc/nv_tegra_release" 2>/dev/null)"
"""
_PUT: Final = """
set -e; umask 077
target=$root/$folder/$name; mkdir -p "$root/$folder"
aside=$root/$folder/.$name.$$; trap 'rm -f "$aside"' EXIT
cat > "$aside"
[ "$(sha256sum < "$aside" | cut -c -64)" = "$digest" ] || { echo 'it arrived damaged' >&2; exit 1; }
sync "$aside" 2>/dev/null || sync
if [ "$replace" = yes ]; then mv -f "$aside" "$target"
elif ! ln "$aside" "$target" 2>/dev/null; then
    [ -e "$target" ] || exit 1
    cmp -s "$aside" "$target" || exit 98
fi
sync "$root/$folder" 2>/dev/null || sync
"""
_LINK: Final = """
set -e
ln -sfn "$agent.pyz" "$root/agent/.current.$$"
mv -fT "$root/agent/.current.$$" "$root/agent/current.pyz"
cd "$root/agent"
ls -t | grep '^[0-9a-f]*[.]pyz$' | tail -n +4 | while read -r old; do
    [ "$old" = "$agent.pyz" ] || rm -f "$old" "$old.sig"
done
"""
_AGENT: Final = """
if [ -z "$agent" ]; then
    agent=$(readlink "$root/agent/current.pyz" 2>/dev/null) || exit 99
    agent=${agent%.pyz}
fi
file=$root/agent/$agent.pyz
[ -f "$file" ] && [ -f "$file.sig" ] || exit 99
ssh-keygen -Y verify -f "$root/trust/allowed_signers" -I "$principal" -n "$namespace" -s "$file.sig" \
    < "$file" > /dev/null || exit 97
[ -d "$root/site-packages" ] && export PYTHONPATH="$root/site-packages${PYTHONPATH:+:$PYTHONPATH}"
"""


@dataclass(frozen=True)
class Survey:
    """What plain sh says of a device; None where it does not know.

    `signers` is the content of the file of trusted keys; `agent` and `signature` are the digests of what lies
    where the agent that was asked for belongs. Bytes.
    """

    root: str
    machine: str | None
    python: str | None
    keygen: bool
    signers: str | None
    agent: str
    signature: str
    disk_free: int | None
    memory_available: int | None
    l4t: str | None


@dataclass(frozen=True)
class Remote:
    """A device, where resedge's folder is on it, which Python runs the agent there, and which agent.

    `root` None: the device's own default; `agent` is its SHA-256, None for the newest that is there.
    """

    device: Device
    root: str | None = None
    python: str = "python3"
    agent: str | None = None

    @property
    def where(self) -> str:
        """How the device is named in errors."""
        return self.device.host.text

    async def survey(self) -> Survey:
        """Ask what can be asked without the agent.

        Raises:
            InputRefused: It answers otherwise than a POSIX shell would.
            DeviceUnreachable: The connection broke.
        """
        ran = await self.sh(_SURVEY)
        found = dict(
            line.split("=", 1) for line in ran.output.decode(errors="replace").splitlines() if "=" in line
        )
        if not found.get("root", "").startswith("/"):
            raise InputRefused(
                f"does not answer as a POSIX shell does ({ran.said or ran.output[:200]!r}).",
                where=self.where,
                cure="resedge ships to Linux devices with sh, coreutils and OpenSSH.",
            )
        signers = found.get("signers", "").replace("|", "\n")  # no key has one
        return Survey(
            root=found["root"],
            machine=found.get("machine") or None,
            python=found.get("python") or None,
            keygen=bool(found.get("keygen")),
            signers=signers or None,
            agent=found.get("agent", ""),
            signature=found.get("signature", ""),
            disk_free=_kilobytes(found.get("disk", "")),
            memory_available=_kilobytes(found.get("memory", "")),
            l4t=found.get("l4t") or None,
        )

    async def trust(self, signers: str, *, replace: bool) -> None:
        """Write the file of trusted keys, where none stands or it is to be replaced.

        Raises:
            InputRefused: One stands there already.
            MachineFailure: It cannot be written.
        """
        content = signers.encode()
        ran = await self._put("trust", "allowed_signers", content, sha256_bytes(content), replace=replace)
        if ran.code == _THERE_ALREADY:
            raise another_key(self.where)
        self._demand(ran, "the trusted key cannot be written")

    async def put(self, folder: str, name: str, content: Feed | bytes, digest: str) -> None:
        """Write a file below the root, atomically; its bytes are compared with a digest there.

        Raises:
            MachineFailure: It cannot be written, or arrived damaged.
        """
        ran = await self._put(folder, name, content, digest)
        self._demand(ran, f"{name} cannot be written")

    async def send_agent(self, agent: bytes, signature: bytes) -> None:
        """Put the agent on the device, and let the link to the newest lead to it.

        Raises:
            MachineFailure: It cannot be written.
        """
        await self.put("agent", f"{self.agent}.pyz", agent, sha256_bytes(agent))
        await self.put("agent", f"{self.agent}.pyz.sig", signature, sha256_bytes(signature))
        self._demand(await self.sh(_LINK), "the agent cannot be put in its place")

    async def ask(
        self,
        kind: type[T],
        *arguments: str,
        feed: Feed | bytes = b"",
        on_progress: OnProgress | None = None,
    ) -> T:
        """Have the agent do something; return its answer.

        Raises:
            ResedgeError: The one that the agent reports.
            InputRefused: There is no agent, or its signature does not hold; or it gives no such answer.
            DeviceUnreachable: The connection broke.
            MachineFailure: It was killed, or cannot run.
        """

        def heard(line: str) -> bool:
            progress = wire.read_progress(line)
            if progress is not None and on_progress is not None:
                on_progress(progress)
            return progress is not None

        script = f'{_AGENT}exec "$python" "$file" {arguments[0]} --root "$root" {shlex.join(arguments[1:])}'
        names = {"principal": signing.PRINCIPAL, "namespace": signing.AGENT_NAMESPACE}
        ran = await self.sh(script, names, feed, on_line=heard)
        self._demand_answer(ran, arguments[0])
        return wire.read_answer(kind, ran.output.decode(errors="replace"), self.where)

    async def sh(
        self,
        script: str,
        variables: Mapping[str, str] | None = None,
        feed: Feed | bytes = b"",
        on_line: Callable[[str], bool] | None = None,
    ) -> Ran:
        """Run a script with sh, whatever the user's own shell is."""
        values = {
            "root": self.root or "",
            "python": self.python,
            "agent": self.agent or "",
            **(variables or {}),
        }
        set_up = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
        return await self.device.run(f"exec sh -c {shlex.quote(set_up + _ROOT + script)}", feed, on_line)

    async def _put(
        self,
        folder: str,
        name: str,
        content: Feed | bytes,
        digest: str,
        *,
        replace: bool = True,
    ) -> Ran:
        where = {"folder": folder, "name": name, "digest": digest, "replace": "yes" if replace else "no"}
        return await self.sh(_PUT, where, content)

    def _demand_answer(self, ran: Ran, command: str) -> None:
        """Refuse what is no answer of an agent: it was not there, not to be trusted, or said nothing."""
        if ran.code == _NO_AGENT:
            raise InputRefused(
                "nothing has been shipped there.",
                where=self.where,
                cure="Ship a bundle: resedge ship BUNDLE HOST.",
            )
        if ran.code == _UNVERIFIED:
            raise InputRefused(
                f"the agent is not signed by a key that is trusted there ({ran.said}).",
                where=self.where,
                cure="Sign the bundle with a key that the device trusts, or have its owner trust this key.",
            )
        if not ran.output.strip():
            raise MachineFailure(
                f"`{command}` failed there with exit code {ran.code} ({ran.said or 'nothing was said'}).",
                where=self.where,
                cure="See that Python and the runtime work there.",
            )

    def _demand(self, ran: Ran, what: str) -> None:
        if ran.code != 0:
            raise MachineFailure(
                f"{what} ({ran.said or f'exit code {ran.code}'}).",
                where=self.where,
                cure="See that its disk has room and that the folder may be written to.",
            )


def another_key(where: str) -> InputRefused:
    """Return the refusal to trust a second key."""
    return InputRefused(
        "trusts another key already.",
        where=where,
        cure="If its owner wants this one in the place of the other: --replace-trust.",
    )


def check_base(survey: Survey, where: str) -> None:
    """Refuse a device that cannot run the agent at all.

    Raises:
        RuntimeUnavailable: Python or ssh-keygen is missing or too old.
    """
    least = ".".join(map(str, LEAST_PYTHON))
    version = tuple(int(part) for part in re.findall(r"\d+", survey.python or "")[:2])
    if version < LEAST_PYTHON:
        raise RuntimeUnavailable(
            f"has Python {survey.python}; the agent needs {least}." if survey.python else "has no Python.",
            where=where,
            cure=f"Install Python {least} or later there, or name one with --python.",
        )
    if not survey.keygen:
        raise RuntimeUnavailable(
            "has no ssh-keygen, which checks signatures.", where=where, cure="Install OpenSSH's client there."
        )


def _kilobytes(text: str) -> int | None:
    return int(text) * 1024 if text.isdecimal() else None
