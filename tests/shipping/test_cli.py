"""The commands about devices, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from resedge import bundle as bundles
from resedge.bundle import Bundle
from resedge.cli import main

if TYPE_CHECKING:
    from resedge.benchmarks.scripts.loopback import Owner
    from tests.shipping.conftest import Place

CONTENTS = {"engines/a.onnx": b"engine", "onnx/fp32.onnx": b"graph"}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def text(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def bundle(write_bundle: Callable[..., Bundle], faked: object) -> Bundle:
    return write_bundle(CONTENTS, ("engines/a.onnx",))


def test_from_a_key_to_a_device_and_back(
    bundle: Bundle, place: Callable[..., Place], faked: Callable[[Place], Place], tmp_path: Path
) -> None:
    made = run("keys", "generate", "--out", tmp_path / "mine")
    assert made.exit_code == 0, made.output
    private, public = tmp_path / "mine/resedge", tmp_path / "mine/resedge.pub"
    assert private.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in private.parent.iterdir()) == ["resedge", "resedge.pub"]
    signed = run("keys", "sign", bundle.path, "--key", private, "--expires", "7")
    assert signed.exit_code == 0, signed.output
    assert "counter 2" in text(signed)
    verified = run("keys", "verify", bundle.path, "--key", public)
    assert verified.exit_code == 0, verified.output
    assert "4 files, each as it was signed" in text(verified)

    device, out = faked(place()), tmp_path / "out.json"
    shipped = run(
        "ship", bundle.path, device.host, "--trust", public, "--python", "python", "--json", out, "--quiet"
    )
    assert shipped.exit_code == 0, shipped.output
    assert "updated" in text(shipped)
    (row,) = json.loads(out.read_text())["devices"]
    assert (row["host"], row["result"], row["exit_code"]) == (device.host, "updated", 0)
    asked = run("status", device.host, "--python", "python", "--json", out)
    assert asked.exit_code == 0, asked.output
    assert "onnxruntime:fp32" in asked.output
    assert "net, counter 2, 1 releases kept" in text(asked)
    (row,) = json.loads(out.read_text())["devices"]
    assert row["answer"]["serving"]["counter"] == 2
    turned = run("rollback", device.host, "--python", "python")
    assert turned.exit_code == 0, turned.output


def test_a_dry_run_prints_what_the_device_is(
    bundle: Bundle,
    place: Callable[..., Place],
    faked: Callable[[Place], Place],
    sign: Callable[..., Bundle],
    key_pair: tuple[Path, Path],
) -> None:
    device = faked(place())
    command = ("ship", sign(bundle).path, device.host, "--trust", key_pair[1], "--python", "python")
    found = run(*command, "--dry-run")
    assert found.exit_code == 0, found.output
    assert "would be sent: the key resedge.pub" in text(found)
    run(*command)
    found = run(*command, "--dry-run")
    assert "onnxruntime 1.32.0 on CPU" in text(found)
    assert "would be sent: nothing" in text(found)


def test_pack_and_unpack(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("bundle", "pack", bundle.path).exit_code == 0
    assert run("bundle", "unpack", "net.resedge.tar").exit_code == 0
    bundles.check(bundles.read(Path("net.resedge")))
    assert run("bundle", "unpack", "net.resedge.tar").exit_code == 5


def refused(result: Result, code: int, *words: str) -> None:
    """One clear line on standard error, the documented exit code, no traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.mark.usefixtures("keygen")
def test_what_cannot_be_meant_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    refused(run("ship", bundle.path, "nano"), 5, "is not signed", "resedge keys sign")
    refused(run("ship", tmp_path, "nano"), 5, "is not a bundle")
    refused(run("ship", bundle.path, "nano", "nano"), 2, "nano is named twice")
    refused(run("ship", bundle.path, "nano:99999"), 2, "names no device")
    refused(run("ship", bundle.path, "nano", "--replace-trust"), 2, "--trust KEY.pub")
    refused(run("status", "nano", "--root", "~/here"), 2, "not an absolute path")
    refused(run("ship", bundle.path, "nano", "--backend", "openvino"), 2, "names no precision")
    refused(run("ship", bundle.path, "nano", "--json", tmp_path / "none/f"), 2, "--json", "is not a folder")
    refused(run("ship", bundle.path, "nano", "--bootstrap", tmp_path), 5, "has no wheels")
    refused(run("status", "a b"), 2, "names no device")
    refused(run("keys", "sign", bundle.path, "--key", tmp_path / "none"), 5, "none")
    refused(run("keys", "sign", bundle.path, "--key", tmp_path / "k", "--expires", "x"), 2, "--expires")
    run("keys", "generate", "--out", tmp_path / "k")
    refused(run("keys", "generate", "--out", tmp_path / "k"), 5, "exists; a key is never replaced")


def test_an_expired_bundle_is_refused_before_anybody_is_reached(
    bundle: Bundle, sign: Callable[..., Bundle]
) -> None:
    signed = sign(bundle, days=-1)
    refused(run("ship", signed.path, "nano"), 5, "has expired on")


def test_a_device_that_is_not_there(
    bundle: Bundle, sign: Callable[..., Bundle], owner: Owner, loopback: ModuleType
) -> None:
    port = loopback.free_port()
    found = run("ship", sign(bundle).path, f"127.0.0.1:{port}", "--quiet")
    assert found.exit_code == 4
    assert "unreachable" in found.output
    assert "cannot be reached" in text(found)
