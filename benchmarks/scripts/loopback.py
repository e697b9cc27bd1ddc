"""Devices on this machine: SSH servers on loopback that run real programs, each with a home of its own.

`Sshd` is OpenSSH's own server, where it is installed; `Servers` are asyncssh's, any number in one process.
`Owner` is who connects to them: a home with keys and known_hosts, for `HOME`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncssh

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin") or ""
LOOPBACK = "127.0.0.1"

_PIECE = 1 << 16


def make_key(path: Path) -> Path:
    """Make an Ed25519 key pair for SSH."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


class Owner:
    """Who owns the devices: a home with a key to log in with and the host keys that are known."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        self.key = make_key(home / ".ssh" / "id_ed25519")
        self.public = self.key.with_suffix(".pub")
        self.known_hosts = home / ".ssh" / "known_hosts"

    def knows(self, port: int, host_key: Path) -> None:
        """Take the host key of a port as known."""
        line = f"[{LOOPBACK}]:{port} {host_key.with_suffix('.pub').read_text()}"
        with self.known_hosts.open("a") as stream:
            stream.write(line)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this owner's commands: no SSH agent of anybody else's."""
        kept = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
        return {**kept, "HOME": str(self.home)}


class Sshd:
    """OpenSSH's server on a free port of loopback; logins have `home` as their home."""

    def __init__(self, folder: Path, home: Path, owner: Owner) -> None:
        self.host_key = make_key(folder / "host_key")
        self.port = free_port()
        config = folder / "sshd_config"
        config.write_text(
            f"ListenAddress {LOOPBACK}\nPort {self.port}\nHostKey {self.host_key}\n"
            f"AuthorizedKeysFile {owner.public}\nPidFile none\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nSetEnv HOME={home}\nMaxStartups 100\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._log = (folder / "sshd.log").open("wb")
        self._server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=self._log)
        wait_for(self.port, self._server)

    def close(self) -> None:
        """Stop the server."""
        self._server.terminate()
        self._server.wait()
        self._log.close()


class Servers:
    """asyncssh's servers in a thread of this process, one a device."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self._owner = owner
        self.host_key = make_key(folder / "host_key")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listening: list[asyncssh.SSHAcceptor] = []
        self._running: set[asyncio.subprocess.Process] = set()
        self._serving: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Servers:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wait(self._closed())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, home: Path, environment: dict[str, str] | None = None) -> int:
        """Start a server whose commands run in `home`, known to the owner; return its port."""
        port = int(self._wait(self._start(home, environment or {})))
        self._owner.knows(port, self.host_key)
        return port

    async def _start(self, home: Path, environment: dict[str, str]) -> int:
        variables = {"PATH": os.environ["PATH"], "HOME": str(home), **environment}

        def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
            task = self._loop.create_task(self._run(process, home, variables))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

        acceptor = await asyncssh.listen(
            LOOPBACK,
            0,
            server_host_keys=[str(self.host_key)],
            authorized_client_keys=str(self._owner.public),
            process_factory=serve,
            encoding=None,
        )
        self._listening.append(acceptor)
        return acceptor.get_port()

    async def _run(
        self, process: asyncssh.SSHServerProcess[bytes], home: Path, environment: dict[str, str]
    ) -> None:
        """Run one command as a login shell would; what it starts ends with it, or with the connection."""
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_shell(
            process.command or "exec sh",
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=home,
            env=environment,
            start_new_session=True,
        )
        self._running.add(child)
        assert child.stdin
        assert child.stdout
        assert child.stderr
        feeding = asyncio.ensure_future(_feed(process.stdin, child.stdin))
        try:
            await asyncio.gather(_tell(child.stdout, process.stdout), _tell(child.stderr, process.stderr))
            code = await child.wait()
            if code < 0:
                process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
            else:
                process.exit(code)
        finally:
            feeding.cancel()
            self._running.discard(child)

    async def _closed(self) -> None:
        for acceptor in self._listening:
            acceptor.close()
        for acceptor in self._listening:
            await acceptor.wait_closed()
        while self._serving:  # one that is about to start a program is waited for
            for child in self._running:
                with contextlib.suppress(ProcessLookupError):  # it may end by itself just now
                    if child.returncode is None:
                        os.killpg(child.pid, signal.SIGKILL)
            await asyncio.wait(self._serving, timeout=0.1)

    def _wait(self, task: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - what the coroutine returns
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(60)


class Relay:
    """A network between a port of its own and a device's, to be cut after so many bytes to the device.

    `budget` cuts it once; `cut_each` cuts every connection.
    """

    def __init__(self, port: int, cut_each: int | None = None) -> None:
        self._to = port
        self._cut_each = cut_each
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.budget: int | None = None
        self.cuts = 0
        self._carried: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop accepting."""
        self._listener.close()

    def cut(self) -> None:
        """Cut what is connected now."""
        self.cuts += 1
        _shut(*self._carried)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        """Carry one connection until one of its sides ends it, or it is cut."""
        with near, socket.create_connection((LOOPBACK, self._to)) as far:
            self._carried |= {near, far}
            back = threading.Thread(target=self._pump, args=(far, near, False), daemon=True)
            back.start()
            self._pump(near, far, True)
            back.join()
            self._carried -= {near, far}

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        left = self._cut_each if counted else None
        while True:
            try:
                data = source.recv(_PIECE)
                if counted and self.budget is not None:
                    left, self.budget = self.budget, None
                if left is not None:
                    data, left = data[:left], left - len(data)
                target.sendall(data)
            except OSError:
                data = b""
            if left is not None and left <= 0:
                self.cuts += 1
                data = b""
            if not data:
                _shut(source, target)
                return


async def _feed(source: asyncssh.SSHReader[bytes], target: asyncio.StreamWriter) -> None:
    """Copy what a client sends to a program, until one of the two ends."""
    try:
        while data := await source.read(_PIECE):
            target.write(data)
            await target.drain()
    except (asyncssh.Error, OSError):
        pass
    finally:
        target.close()


async def _tell(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    """Copy what a program says to a client, as long as there is one."""
    while data := await source.read(_PIECE):
        try:
            target.write(data)
            await target.drain()
        except (asyncssh.Error, OSError):
            continue


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


def free_port() -> int:
    """Return a port of loopback that nobody listens on at this moment."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def wait_for(port: int, server: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    """Wait until somebody listens on a port.

    Raises:
        RuntimeError: The server ended, or did not listen in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"no server on port {port}: exit code {server.poll()}")
