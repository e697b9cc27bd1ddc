"""A device of a test, and a bundle as a workstation sends it; `tests/conftest.py` runs this file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from resedge import bundle as bundles
from resedge.agent import installing, receiving
from resedge.agent.layout import Layout
from resedge.artifacts import sha256_bytes
from resedge.bundle import Bundle
from resedge.shipping import framing, wire
from resedge.shipping.chunks import FileChunks, split_file

AGENT = (sys.executable, "-m", "resedge.agent")

T = TypeVar("T")


@dataclass(frozen=True)
class Sent:
    """A bundle as a workstation sends it."""

    bundle: Bundle

    @property
    def digest(self) -> str:
        return sha256_bytes((self.bundle.path / bundles.MANIFEST).read_bytes())

    @property
    def paths(self) -> dict[str, Path]:
        return {a.sha256: self.bundle.path / a.path for a in self.bundle.manifest.files}

    @property
    def files(self) -> tuple[FileChunks, ...]:
        return tuple(split_file(path) for path in self.paths.values())

    @property
    def request(self) -> bytes:
        manifest, signature = (
            (self.bundle.path / n).read_bytes() for n in (bundles.MANIFEST, bundles.SIGNATURE)
        )
        return framing.begin_request(manifest, signature, self.files)

    def frames(self, missing: Sequence[wire.Missing]) -> bytes:
        files = {file.sha256: file for file in self.files}
        pieces = []
        for wanted in missing:
            data = self.paths[wanted.sha256].read_bytes()
            for index in wanted.chunks:
                start, length = files[wanted.sha256].span(index)
                pieces.append(framing.chunk_frame(wanted.sha256, index, data[start : start + length]))
        return b"".join(pieces)


@dataclass(frozen=True)
class Device:
    """A device of a test: its folder, and its agent as a process of its own."""

    layout: Layout

    def call(
        self, *arguments: str, given: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*AGENT, arguments[0], "--root", str(self.layout.root), *arguments[1:]],
            input=given,
            capture_output=True,
            env={**os.environ, **environment},
            check=False,
        )

    @property
    def here(self) -> Here:
        """Its agent in this process."""
        return Here(self.layout)

    @property
    def sent(self) -> type[Sent]:
        """What makes of a bundle what is sent."""
        return Sent

    def ask(self, kind: type[T], *arguments: str, given: bytes = b"", **environment: str) -> T:
        done = self.call(*arguments, given=given, **environment)
        assert done.stdout, done.stderr.decode()
        return wire.read_answer(kind, done.stdout.decode(), "device")

    def send(self, bundle: Bundle) -> Sent:
        sent = Sent(bundle)
        begun = self.ask(wire.Begun, "begin", given=sent.request)
        received = self.ask(wire.Received, "receive", sent.digest, given=sent.frames(begun.missing))
        assert (received.refused, received.missing) == ((), ())
        return sent

    def install(self, bundle: Bundle, *arguments: str) -> wire.Installed:
        return self.ask(wire.Installed, "install", self.send(bundle).digest, *arguments)

    def left_over(self) -> list[str]:
        """What an operation that has ended must not leave."""
        found = [path for path in self.layout.root.rglob("*.resedge-aside")]
        return [str(path) for path in (*found, *self.layout.incoming.glob("*"))]

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.layout.state.read_text())
        return found


@dataclass(frozen=True)
class Here:
    """The agent of a device in this process."""

    layout: Layout

    def begin(self, bundle: Bundle) -> wire.Begun:
        return receiving.begin(self.layout, io.BytesIO(Sent(bundle).request).read)

    def receive(self, digest: str, frames: bytes) -> wire.Received:
        return receiving.receive(self.layout, digest, io.BytesIO(frames).read, lambda _: None)

    def send(self, bundle: Bundle) -> str:
        sent = Sent(bundle)
        self.receive(sent.digest, sent.frames(self.begin(bundle).missing))
        return sent.digest

    def install(self, bundle: Bundle, **order: Any) -> wire.Installed:  # noqa: ANN401
        return self.order(self.send(bundle), **order)

    def order(self, digest: str, **order: Any) -> wire.Installed:  # noqa: ANN401
        return installing.install(self.layout, installing.Order(digest, **order), lambda _: None)
