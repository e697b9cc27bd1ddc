"""A connection to a device: a program runs there, is fed, and what it says is heard.

Host keys are checked against known_hosts and never accepted here. What asyncssh raises becomes an error of
this package that names the device.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resedge.errors import DeviceUnreachable, InputRefused, MachineFailure
from resedge.shipping.hosts import Host

if TYPE_CHECKING:
    import asyncssh

MOST_ANSWER_BYTES: Final = 16 << 20

_CONNECT_SECONDS: Final = 20
_LOGIN_SECONDS: Final = 30
_KEEPALIVE_SECONDS: Final = 10
_KEEPALIVES_MISSED: Final = 3
_SSH_PORT: Final = 22
_PIECE: Final = 64 << 10
_LONGEST_LINE: Final = 64 << 10
_LAST_LINES: Final = 5

Feed = AsyncIterator[bytes]


@dataclass(frozen=True)
class Ran:
    """What a program on a device came to: its exit code, its standard output, its last lines of errors."""

    code: int
    output: bytes
    said: str


@dataclass(frozen=True)
class _Offered:
    """The host key that a device has, and where that was."""

    host: str
    port: int
    fingerprint: str


@asynccontextmanager
async def connected(host: Host, identity: Path | None = None) -> AsyncIterator[Device]:
    """Connect to a device for the length of the block.

    Args:
        host: The device; ~/.ssh/config is heeded.
        identity: A private key to log in with; None: the SSH agent's and the user's own keys.

    Raises:
        InputRefused: Its host key is not known, or is another one; the cure has the command that accepts it.
        DeviceUnreachable: It does not answer or does not let one in.
    """
    connection = await _connect(host, identity)
    try:
        yield Device(host, connection)
    finally:
        connection.abort()


class Device:
    """A device that one is connected to."""

    def __init__(self, host: Host, connection: asyncssh.SSHClientConnection) -> None:
        self.host = host
        self._connection = connection

    async def run(
        self, command: str, feed: Feed | bytes = b"", on_line: Callable[[str], bool] | None = None
    ) -> Ran:
        """Run a command in the device's shell until it ends.

        Args:
            command: For the shell that the user has there.
            feed: What it is given on its standard input, which is closed behind it.
            on_line: Is told each line of its standard error, and returns whether it was meant for it; the
                last lines that were not are `Ran.said`.

        Raises:
            DeviceUnreachable: The connection broke.
            MachineFailure: The program was killed there.
            InputRefused: It answers with more than `MOST_ANSWER_BYTES`.
        """
        with _errors(self.host):
            process = await self._connection.create_process(command, encoding=None)
            try:
                output, said, _ = await asyncio.gather(
                    self._answer(process), _listen(process, on_line), _fed(process, feed)
                )
                await process.wait_closed()
            finally:
                process.close()
        if process.exit_signal is not None:
            raise MachineFailure(
                f"a program was killed there (SIG{process.exit_signal[0]}).",
                where=self.host.text,
                cure="See how much memory it has left, and run the same command again.",
            )
        if process.exit_status is None:
            raise _lost(self.host, "the connection broke")
        return Ran(process.exit_status, output, said)

    async def _answer(self, process: asyncssh.SSHClientProcess[bytes]) -> bytes:
        answer = bytearray()
        while piece := await process.stdout.read(_PIECE):
            answer += piece
            if len(answer) > MOST_ANSWER_BYTES:
                raise InputRefused(
                    f"answers with more than {MOST_ANSWER_BYTES:,} bytes.", where=self.host.text
                )
        return bytes(answer)


async def _connect(host: Host, identity: Path | None) -> asyncssh.SSHClientConnection:
    import asyncssh

    offered: list[_Offered] = []

    class Client(asyncssh.SSHClient):
        def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
            offered.append(_Offered(host, port, key.get_fingerprint()))
            return False

    options: dict[str, Any] = {"client_keys": [str(identity)]} if identity else {}
    if host.port:
        options["port"] = host.port
    if host.user:
        options["username"] = host.user
    try:
        with _errors(host):
            return await asyncssh.connect(
                host.name,
                client_factory=Client,
                connect_timeout=_CONNECT_SECONDS,
                login_timeout=_LOGIN_SECONDS,
                keepalive_interval=_KEEPALIVE_SECONDS,
                keepalive_count_max=_KEEPALIVES_MISSED,
                **options,
            )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _unknown_key(host, offered[-1] if offered else None, error.reason) from error
    except (asyncssh.KeyImportError, asyncssh.ConfigParseError) as error:
        raise InputRefused(f"cannot be used ({error}).", where=str(identity or "~/.ssh")) from error


def _unknown_key(host: Host, offered: _Offered | None, reason: str) -> InputRefused:
    """Say which key the device has, and how to accept it, or to forget the one that it had before."""
    if offered is None:  # a key that known_hosts revokes
        return InputRefused(f"its host key is not accepted ({reason}).", where=host.text)
    port = "" if offered.port == _SSH_PORT else f"-p {offered.port} "
    kept = f"[{offered.host}]:{offered.port}" if port else offered.host
    scan = f"ssh-keyscan {port}{offered.host} >> ~/.ssh/known_hosts"
    return InputRefused(
        f"its host key {offered.fingerprint} is not in known_hosts.",
        where=host.text,
        cure="Compare the fingerprint with the device's own and accept it by connecting once: "
        f"ssh {host.ssh_arguments}. Where you trust the network: {scan}. "
        f"A key that has changed is forgotten by: ssh-keygen -R '{kept}'.",
    )


@contextmanager
def _errors(host: Host) -> Iterator[None]:
    """Translate what a broken or refused connection raises; the refusal of a host key passes as it is.

    Raises:
        DeviceUnreachable: As said.
    """
    import asyncssh

    try:
        yield
    except asyncssh.HostKeyNotVerifiable:
        raise
    except asyncssh.PermissionDenied as error:
        raise DeviceUnreachable(
            "does not let this user in.",
            where=host.text,
            cure="Load the key into the SSH agent, name it with --identity or in ~/.ssh/config, and see that "
            f"`ssh {host.ssh_arguments}` works.",
        ) from error
    except (asyncssh.DisconnectError, asyncssh.ChannelOpenError) as error:
        raise _lost(host, error.reason or type(error).__name__) from error
    except (OSError, asyncio.TimeoutError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it took too long"
        raise _lost(host, reason) from error


def _lost(host: Host, reason: str) -> DeviceUnreachable:
    return DeviceUnreachable(
        f"cannot be reached ({reason}).",
        where=host.text,
        cure="Run the same command again when it is back; what has arrived is kept.",
    )


async def _fed(process: asyncssh.SSHClientProcess[bytes], feed: Feed | bytes) -> None:
    """Write to a program's standard input; one that has ended says why by other means."""
    import asyncssh

    try:
        if isinstance(feed, bytes):
            process.stdin.write(feed)
            await process.stdin.drain()
        else:
            async for piece in feed:
                process.stdin.write(piece)
                await process.stdin.drain()
        process.stdin.write_eof()
    except (BrokenPipeError, ConnectionError, asyncssh.DisconnectError):
        return


async def _listen(process: asyncssh.SSHClientProcess[bytes], on_line: Callable[[str], bool] | None) -> str:
    """Tell each line of a program's standard error; return the last of those that nobody wanted."""
    rest = b""
    unheard: list[str] = []
    while piece := await process.stderr.read(_PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[-_LONGEST_LINE:]
        for line in lines:
            text = line.decode(errors="replace").strip()
            if text and not (on_line and on_line(text)):
                unheard = [*unheard, text][-_LAST_LINES:]
    if rest.strip():
        unheard.append(rest.decode(errors="replace").strip())
    return "; ".join(unheard)
