from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from resedge import bundle as bundles
from resedge.bundle import Bundle
from resedge.errors import InputRefused, StaleArtifact, UsageError
from resedge.pipeline import keys
from resedge.shipping import moments, zipapp

CONTENTS = {"engines/a.onnx": b"engine", "onnx/fp32.onnx": b"graph"}


@pytest.fixture(autouse=True)
def small_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipapp, "build", lambda: b"agent")


@pytest.fixture
def signed(write_bundle: Callable[..., Bundle], sign: Callable[..., Bundle]) -> Bundle:
    return sign(write_bundle(CONTENTS))


def test_signing_adds_the_agent_and_verifying_finds_all_of_it(
    signed: Bundle, key_pair: tuple[Path, Path]
) -> None:
    manifest = signed.manifest
    assert manifest.counter == 2
    assert manifest.signing is not None
    assert manifest.signing.namespace == "resedge-bundle"
    names = [artifact.path.as_posix() for artifact in manifest.files]
    assert names == [bundles.AGENT, bundles.AGENT_SIGNATURE, *CONTENTS]
    found = keys.verify(signed.path, key_pair[1], moments.now())
    assert found.key == manifest.signing.key
    assert moments.to_text(found.expires) == manifest.expires


def test_signing_again_replaces_what_the_first_signing_added(
    signed: Bundle, sign: Callable[..., Bundle], key_pair: tuple[Path, Path]
) -> None:
    again = sign(signed, days=1)
    assert again.manifest.counter == 3
    assert [a.path for a in again.manifest.files] == [a.path for a in signed.manifest.files]
    keys.verify(again.path, key_pair[1], moments.now())


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed file": (_write("onnx/fp32.onnx", b"evil"), "is not the file"),
    "an extra file": (_write("onnx/more.onnx", b""), "is not in the manifest"),
    "a missing file": (lambda folder: (folder / "onnx/fp32.onnx").unlink(), "is missing"),
    "another agent": (_write(bundles.AGENT, b"evil"), "is not the file"),
    "no signature": (lambda folder: (folder / bundles.SIGNATURE).unlink(), "is not signed"),
    "no signature in it": (_write(bundles.SIGNATURE, b"none"), "no valid signature"),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_what_was_changed_after_signing_is_refused(
    signed: Bundle, key_pair: tuple[Path, Path], case: str
) -> None:
    tamper, words = TAMPERING[case]
    tamper(signed.path)
    with pytest.raises(InputRefused, match=words):
        keys.verify(signed.path, key_pair[1], moments.now())


def test_a_manifest_that_was_changed_is_refused(signed: Bundle, key_pair: tuple[Path, Path]) -> None:
    path = signed.path / bundles.MANIFEST
    path.write_text(path.read_text().replace('"counter": 2', '"counter": 9'))
    with pytest.raises(InputRefused, match="no valid signature"):
        keys.verify(signed.path, key_pair[1], moments.now())


def test_another_key_and_an_expired_bundle_are_refused(
    signed: Bundle, key_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    _, public = keys.generate(tmp_path / "others")
    with pytest.raises(InputRefused, match="no valid signature of a key that is trusted"):
        keys.verify(signed.path, public, moments.now())
    with pytest.raises(InputRefused, match="has expired on"):
        keys.verify(signed.path, key_pair[1], moments.now() + timedelta(days=91))


def test_a_damaged_bundle_is_not_signed(
    write_bundle: Callable[..., Bundle], key_pair: tuple[Path, Path]
) -> None:
    bundle = write_bundle(CONTENTS)
    before = (bundle.path / bundles.MANIFEST).read_bytes()
    (bundle.path / "onnx/fp32.onnx").write_bytes(b"evil")
    with pytest.raises(StaleArtifact, match=r"fp32\.onnx"):
        keys.sign(bundle.path, key_pair[0], moments.now(), moments.now())
    assert (bundle.path / bundles.MANIFEST).read_bytes() == before
    assert not (bundle.path / bundles.SIGNATURE).exists()


def test_days_and_dates_of_expiry() -> None:
    now = moments.from_text("2026-03-01T12:00:00Z", "now")
    assert moments.to_text(keys.expiry("90", now)) == "2026-05-30T12:00:00Z"
    assert moments.to_text(keys.expiry("2026-12-31", now)) == "2026-12-31T23:59:59Z"
    assert moments.to_text(keys.expiry("2026-03-01", now)) == "2026-03-01T23:59:59Z"
    for text, words in (("0", "is neither"), ("soon", "is neither"), ("2026-02-28", "is in the past")):
        with pytest.raises(UsageError, match=words):
            keys.expiry(text, now)
