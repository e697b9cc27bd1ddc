"""Serve over HTTP whatever release a device's link leads to; a new one takes over between two requests.

    python3 serve.py [--root DIR] [--port 8080]

    POST /predict    the body is a .npy array: frames (N, H, W, 3) uint8 RGB of the model's size, or prepared
                     inputs (N, 3, H, W) float32; the answer has the classes, their labels, and the release
    GET /health      which release answers, and with which engine; 503 while there is none

It needs Python 3.10, numpy and the runtime of the engine. How engines are opened it takes from the agent that
each signed bundle brings, whose signature is checked before it is imported. The link is looked at every half
second. When it leads elsewhere, the new engine is opened first, then requests go to it, and the old one is
closed once the last request that it has is answered; if the new one cannot be opened, the old one stays.

    python3 serve.py --wait-for http://127.0.0.1:8080

waits until the server there answers with the release named by RESEDGE_RELEASE, which is what
`resedge ship --confirm-command` sets: then a release is only kept once the application runs on it.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from resedge.agent.opening import Opened

LOOK_SECONDS = 0.5
WAIT_SECONDS = 30.0
MOST_BYTES = 64 << 20
log = logging.getLogger("serve")


class Engine:
    """An engine that is open, and how many requests it has; one call at a time."""

    def __init__(self, root: Path) -> None:
        from resedge.agent.opening import open_current

        self._stack = ExitStack()
        self.opened: Opened = self._stack.enter_context(open_current(root))
        self.users = 0
        self._one_call = threading.Lock()

    def logits(self, batch: Any) -> Any:  # noqa: ANN401 - arrays
        """Return the logits of prepared inputs, (N, classes) float32."""
        with self._one_call:
            return np.concatenate([self.opened.run(image[np.newaxis]) for image in batch])

    def close(self) -> None:
        """Let go of the engine and of its release."""
        self._stack.close()


class Current:
    """The engine that the link leads to; whoever borrowed an old one keeps it until the answer is out."""

    def __init__(self, root: Path, kept: Path) -> None:
        self._root = root
        self._kept = kept
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._refused: str | None = None

    @contextmanager
    def borrowed(self) -> Iterator[Engine | None]:
        """Yield the engine that is current now, or None while there is none."""
        with self._lock:
            engine = self._engine
            if engine is not None:
                engine.users += 1
        try:
            yield engine
        finally:
            if engine is not None:
                with self._lock:
                    engine.users -= 1
                    unused = engine is not self._engine and engine.users == 0
                if unused:
                    engine.close()

    def look(self) -> None:
        """Open what the link leads to, if that is something new, and let it take over."""
        digest = linked(self._root)
        if digest is None or (self._engine and self._engine.opened.digest == digest):
            return
        try:
            import_agent(self._root, self._kept)
            new = Engine(self._root)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old engine goes on serving
            if digest != self._refused:
                log.error("release %.12s cannot be opened: %s", digest, error)
            self._refused = digest
            return
        with self._lock:
            old, self._engine = self._engine, new
            unused = old is not None and old.users == 0
        log.info("release %.12s serves with %s", new.opened.digest, new.opened.engine)
        if old is not None and unused:
            old.close()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    timeout = 10
    current: Current

    def do_GET(self) -> None:
        """Say which release answers."""
        with self.current.borrowed() as engine:
            if self.path != "/health":
                self._answer(404, {"error": "there are GET /health and POST /predict"})
            elif engine is None:
                self._answer(503, {"error": "no release serves yet"})
            else:
                self._answer(200, {"release": engine.opened.digest, "engine": engine.opened.engine})

    def do_POST(self) -> None:
        """Classify what was sent."""
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(min(size, MOST_BYTES))
        with self.current.borrowed() as engine:
            if engine is None:
                self._answer(503, {"error": "no release serves yet"})
                return
            try:
                answer = predict(engine, np.load(io.BytesIO(body), allow_pickle=False))
            except ValueError as error:
                self._answer(400, {"error": str(error)})
                return
        self._answer(200, answer)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing of single requests."""

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """A thread for each connection; those that are open are answered before it ends."""

    daemon_threads = False
    request_queue_size = 128


def predict(engine: Engine, array: Any) -> dict[str, Any]:  # noqa: ANN401 - an array
    """Return the classes of frames or of prepared inputs.

    Raises:
        ValueError: The array is neither.
    """
    manifest = engine.opened.manifest
    if array.dtype == np.uint8:
        recipe = manifest.preprocessing
        if array.ndim != 4 or array.shape[1:] != (recipe.height, recipe.width, 3):
            raise ValueError(f"frames are (N, {recipe.height}, {recipe.width}, 3), not {array.shape}")
        mean, std = (np.array(values, np.float32) for values in (recipe.mean, recipe.std))
        array = ((array.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    if array.ndim != 4 or not len(array):
        raise ValueError("an array of at least one image is needed")
    classes = engine.logits(array).argmax(axis=1).tolist()
    labels = [manifest.labels[number] for number in classes]
    return {"classes": classes, "labels": labels, "release": engine.opened.digest}


def linked(root: Path) -> str | None:
    """Return the digest of the release that the link leads to."""
    try:
        return (root / "current").readlink().name
    except FileNotFoundError:
        return None


def import_agent(root: Path, kept: Path) -> None:
    """Make the modules of the first release's agent importable, once its signature is checked.

    Args:
        root: The device's folder.
        kept: A folder for a copy, of the very bytes that were checked: the release may go before this does.

    Raises:
        subprocess.CalledProcessError: The signature does not hold.
    """
    if "resedge" in sys.modules:
        return
    agent = (root / "current").resolve() / "bundle" / "device" / "resedge-agent.pyz"
    data, signers = agent.read_bytes(), root / "trust" / "allowed_signers"
    command = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "resedge", "-n", "resedge-agent"]
    subprocess.run([*command, "-s", f"{agent}.sig"], input=data, stdout=subprocess.DEVNULL, check=True)
    copy = kept / agent.name
    copy.write_bytes(data)
    sys.path.insert(0, str(copy))


def serve(root: Path, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    kept = tempfile.TemporaryDirectory(prefix="resedge-serve-")
    current, stopped = Current(root, Path(kept.name)), threading.Event()
    current.look()
    server = Server((host, port), type("Bound", (Handler,), {"current": current}))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log.info("listening on %s:%d", *server.server_address[:2])
    while not stopped.wait(LOOK_SECONDS):
        current.look()
    server.shutdown()
    server.server_close()
    kept.cleanup()


def wait_for(url: str, digest: str) -> int:
    """Wait until a server answers with a release; return the exit code."""
    deadline, found = time.monotonic() + WAIT_SECONDS, "nothing"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                found = json.load(answer)["release"]
        except (OSError, ValueError, KeyError) as error:
            found = str(error)
        if found == digest:
            return 0
        time.sleep(LOOK_SECONDS / 2)
    log.error("%s answers with %.80s, not with %.12s", url, found, digest)
    return 1


def main() -> int:
    """Read the command line."""
    default = os.environ.get("RESEDGE_DEVICE_ROOT", str(Path.home() / ".local/share/resedge-device"))
    parser = argparse.ArgumentParser(description="Serve the release that a device's link leads to.")
    parser.add_argument("--root", type=Path, default=Path(default), help="the device's folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free")
    parser.add_argument("--wait-for", metavar="URL", help="wait for RESEDGE_RELEASE to answer there")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.wait_for:
        return wait_for(options.wait_for, os.environ["RESEDGE_RELEASE"])
    serve(options.root.absolute(), options.host, options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
