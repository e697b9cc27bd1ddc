"""The serving example: no request fails while releases come and go."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resedge.agent.layout import Layout
from resedge.shipping import wire

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"
BACKEND = ("--backend", "onnxruntime:fp32")


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Run the example; yields its address."""
    command = [sys.executable, str(EXAMPLE), "--root", str(root), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd="/", text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        address = next(found[1] for line in lines if (found := re.search(r"listening on (\S+)", line)))
        reader = threading.Thread(target=list, args=(lines,))
        reader.start()
        try:
            yield f"http://{address}"
        finally:
            process.send_signal(signal.SIGTERM)
            reader.join()
            assert process.wait(30) == 0


def health(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/health", timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def predict(url: str, array: Any) -> dict[str, Any]:  # noqa: ANN401
    body = io.BytesIO()
    np.save(body, array)
    with urllib.request.urlopen(f"{url}/predict", data=body.getvalue(), timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def refusal(call: Callable[..., object], *arguments: Any, **options: Any) -> int:  # noqa: ANN401
    """Return the code that a request is refused with."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        call(*arguments, **options)
    caught.value.close()
    return caught.value.code


class Client(threading.Thread):
    """Asks without a pause, and keeps what it was answered."""

    def __init__(self, url: str, images: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.url, self.images = url, images
        self.answers: list[str] = []
        self.failures: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            try:
                self.answers.append(predict(self.url, self.images)["release"])
            except OSError as error:
                self.failures.append(repr(error))


def test_no_request_fails_while_releases_come_and_go(target: Any, maker: Any) -> None:  # noqa: ANN401
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    first = target.install(maker.bundle(maker.contents(1), counter=1), *BACKEND)
    assert first.outcome == "committed"
    with serving(target.layout.root) as url:
        check = ("--confirm-command", f"{sys.executable} {EXAMPLE} --wait-for {url}")
        client = Client(url, images)
        client.start()
        try:
            second = target.install(maker.bundle(maker.contents(2), counter=2), *BACKEND, *check)
            wrong = target.install(maker.bundle(maker.contents(3, wrong=True), counter=3), *BACKEND)
            served = health(url)
            back = target.ask(wire.RolledBack, "rollback")
            target.ask(wire.Collected, "collect", "--keep", "1")
            environment = {**os.environ, "RESEDGE_RELEASE": first.digest}
            waited = subprocess.run(
                [sys.executable, str(EXAMPLE), "--wait-for", url], env=environment, check=False
            )
        finally:
            client.done.set()
            client.join()
    assert (second.outcome, second.reason) == ("committed", None)
    assert wrong.outcome == "rejected"
    assert served == {"release": second.digest, "engine": "onnxruntime:fp32"}
    assert back.serving.digest == first.digest
    assert waited.returncode == 0
    assert client.failures == []
    changes = [d for d, before in zip(client.answers, [None, *client.answers], strict=False) if d != before]
    assert changes == [first.digest, second.digest, first.digest]


def test_an_owners_check_that_fails_takes_the_release_back(target: Any, maker: Any) -> None:  # noqa: ANN401
    first = target.install(maker.bundle(counter=1), *BACKEND)
    check = ("--confirm-command", "echo no $RESEDGE_RELEASE; exit 3")
    second = target.install(maker.bundle(maker.contents(2), counter=2), *BACKEND, *check)
    assert second.outcome == "rejected"
    assert second.reason is not None
    assert f"(exit code 3: no {second.digest})" in second.reason
    assert second.states[-2:] == ("confirm", "rollback")
    assert target.layout.serving() == second.serving == first.digest
    assert target.left_over() == []


def test_before_anything_is_shipped_it_says_so_and_then_serves(target: Any, maker: Any) -> None:  # noqa: ANN401
    with serving(target.layout.root) as url:
        assert refusal(health, url) == 503
        assert refusal(urllib.request.urlopen, f"{url}/else", timeout=20) == 404
        check = ("--confirm-command", f"{sys.executable} {EXAMPLE} --wait-for {url}")
        installed = target.install(maker.bundle(), *BACKEND, *check)
        assert (installed.outcome, installed.reason) == ("committed", None)
        frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
        by_frames = predict(url, frames)
        prepared = ((frames.astype(np.float32) / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2)
        assert by_frames == predict(url, prepared)
        assert by_frames["labels"] == ["abcdef"[number] for number in by_frames["classes"]]
        for wrong in (frames[:, :4], frames[0], prepared.astype(np.float64), prepared[:0]):
            assert refusal(predict, url, wrong) == 400


def test_an_agent_whose_signature_does_not_hold_is_not_imported(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
) -> None:
    installed = target.install(maker.bundle(), *BACKEND)
    agent = Layout(target.layout.root).bundle(installed.digest) / "device" / "resedge-agent.pyz"
    agent.write_bytes(agent.read_bytes() + b"\0")
    with serving(target.layout.root) as url:
        assert refusal(health, url) == 503
