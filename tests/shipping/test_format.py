"""A bundle of format version 1, as it was signed and packed when that was new: it opens for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from resedge import bundle as bundles
from resedge.artifacts import canonical_json, encode, sha256_file
from resedge.golden import read_golden, read_thresholds
from resedge.pipeline import keys
from resedge.shipping import moments
from resedge.shipping.pack import pack, unpack

DATA = Path(__file__).parents[1] / "data"
PACKED, PUBLIC = DATA / "bundle-v1.resedge", DATA / "bundle-v1.pub"
SHA256 = "0bde0b2aef0830841ebac39b9657a1903348860bb62fe3aea43064119600eb2b"


def test_it_is_the_file_that_was_written_then() -> None:
    assert sha256_file(PACKED) == SHA256


@pytest.mark.usefixtures("keygen")
def test_it_opens_and_its_signature_holds(tmp_path: Path) -> None:
    bundle = unpack(PACKED, tmp_path / "v1.resedge")
    signed = keys.verify(bundle.path, PUBLIC, moments.from_text("2026-11-26T00:00:00Z", "now"))
    assert moments.to_text(signed.signed_at) == "2026-11-25T12:00:00Z"
    manifest = bundle.manifest
    assert (manifest.format_version, manifest.counter) == (1, 3)
    assert manifest.target.jetpack == "6.2"
    assert bundle.engine("onnxruntime", "fp32") is not None
    images, logits = read_golden(bundle.file(bundles.GOLDEN))
    assert len(images) == len(logits) == read_thresholds(bundle.file(bundles.THRESHOLDS)).images


def test_it_is_written_as_it_was(tmp_path: Path) -> None:
    bundle = unpack(PACKED, tmp_path / "v1.resedge")
    text = (bundle.path / bundles.MANIFEST).read_text(encoding="utf-8")
    assert canonical_json(encode(bundle.manifest)) == text
    pack(bundle, tmp_path / "again.tar")
    assert sha256_file(tmp_path / "again.tar") == SHA256
