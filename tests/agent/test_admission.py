"""What a device refuses before it loads anything: forged, mixed, replayed, expired, of a foreign key."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from resedge import bundle as bundles
from resedge.agent import admission, journal, receiving
from resedge.artifacts import sha256_bytes
from resedge.bundle import Bundle
from resedge.errors import InputRefused
from resedge.shipping import framing, moments

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")

SMALL = {"onnx/fp32.onnx": b"graph", bundles.GOLDEN: b"golden", bundles.THRESHOLDS: b"thresholds"}


def _changed(bundle: Bundle) -> None:
    manifest = bundle.path / bundles.MANIFEST
    manifest.write_text(manifest.read_text().replace('"counter": 3', '"counter": 9'))


def _unsigned(bundle: Bundle) -> None:
    (bundle.path / bundles.SIGNATURE).write_bytes(b"")


def _signature_of_another(maker: Any) -> Callable[[Bundle], None]:  # noqa: ANN401
    def mix(bundle: Bundle) -> None:
        other = maker.bundle(SMALL, counter=4)
        shutil.copyfile(other.path / bundles.SIGNATURE, bundle.path / bundles.SIGNATURE)

    return mix


def _case(maker: Any, name: str) -> tuple[Bundle, Callable[[Bundle], None], str]:  # noqa: ANN401
    def as_it_is(bundle: Bundle) -> None:
        assert bundle.manifest.signing is not None

    made = {
        "tampered": (maker.bundle(SMALL, counter=3), _changed, "no valid signature"),
        "not signed": (maker.bundle(SMALL, counter=3), _unsigned, "no valid signature"),
        "mixed": (maker.bundle(SMALL, counter=3), _signature_of_another(maker), "no valid signature"),
        "replayed": (maker.bundle(SMALL, counter=1), as_it_is, "a bundle of old"),
        "of the same counter": (maker.bundle(SMALL, counter=2, labels=("z",)), as_it_is, "as another bundle"),
        "expired": (maker.bundle(SMALL, counter=3, days=1, age=2), as_it_is, "expired on .* clock of this"),
        "of a foreign key": (
            maker.bundle(SMALL, counter=3, key=maker.other_key()),
            as_it_is,
            "no valid signature",
        ),
    }
    return made[name]


@pytest.mark.parametrize(
    "name",
    ["tampered", "not signed", "mixed", "replayed", "of the same counter", "expired", "of a foreign key"],
)
def test_what_is_refused_leaves_nothing_and_loads_nothing(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context():
        request.getfixturevalue("world")
        first = target.here.install(maker.bundle(SMALL, counter=2))
    request.getfixturevalue("nothing_is_loaded")
    bundle, spoil, reason = _case(maker, name)
    spoil(bundle)
    before = target.state
    with pytest.raises(InputRefused, match=reason):
        target.here.begin(bundle)
    assert target.state == before
    assert list(target.layout.incoming.iterdir()) == []
    assert target.layout.serving() == first.digest
    # and a bundle that was slipped in past `begin` is refused as well
    manifest = (bundle.path / bundles.MANIFEST).read_bytes()
    digest = sha256_bytes(manifest)
    shutil.copytree(bundle.path, target.layout.arriving(digest))
    with pytest.raises(InputRefused, match=reason):
        target.here.order(digest)
    assert [path.name for path in target.layout.releases.iterdir()] == [first.digest]
    assert target.layout.serving() == first.digest
    assert target.left_over() == []


@pytest.mark.parametrize("fault", ["changed", "missing", "extra", "of another bundle"])
def test_files_that_are_not_the_manifests_are_refused(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
    nothing_is_loaded: None,
    fault: str,
) -> None:
    bundle = maker.bundle(SMALL)
    digest = target.here.send(bundle)
    held = target.layout.arriving(digest) / "files"
    file = held / sha256_bytes(b"graph")
    if fault == "changed":
        file.write_bytes(b"graqh")
    elif fault == "missing":
        file.unlink()
    elif fault == "of another bundle":
        file.write_bytes(b"golden")
    else:
        release = target.layout.release(digest)
        shutil.copytree(bundle.path, release / "bundle")
        (release / "bundle" / "engines").mkdir()
        (release / "bundle" / "engines" / "extra.plan").write_bytes(b"plan")
    with pytest.raises(InputRefused, match=r"not arrived|not the file|not in the manifest"):
        target.here.order(digest)
    assert target.layout.serving() is None
    assert list(target.layout.releases.iterdir()) == []


def test_a_device_that_trusts_nobody_takes_nothing(target: Any, maker: Any) -> None:  # noqa: ANN401
    target.layout.signers.unlink()
    with pytest.raises(InputRefused, match="no key is trusted here"):
        target.here.begin(maker.bundle(SMALL))


def test_a_clock_that_was_set_back_brings_no_bundle_back_to_life(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
    world: Any,  # noqa: ANN401
) -> None:
    expired = maker.bundle(SMALL, counter=9, days=1, age=3)
    target.here.install(maker.bundle(SMALL, counter=2))
    now = moments.from_text(expired.manifest.signed_at, "signed_at") - timedelta(days=500)
    world.clock = lambda: now
    with pytest.raises(InputRefused, match=r"expired on .*; a newer bundle that was here says"):
        target.here.begin(expired)


@pytest.mark.parametrize("missing", ["signing", "signed_at", "expires"])
def test_a_manifest_that_names_no_times_is_refused(maker: Any, missing: str) -> None:  # noqa: ANN401
    manifest = replace(maker.bundle(SMALL).manifest, **{missing: None})
    with pytest.raises(InputRefused, match="does not say when"):
        admission.admit(journal.Journal(), "0" * 64, manifest, moments.now())


def test_the_newest_signed_time_is_kept_though_the_bundle_never_comes(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
) -> None:
    bundle = maker.bundle(SMALL)
    target.here.begin(bundle)
    assert target.state["newest_signed"] == bundle.manifest.signed_at


def test_a_request_that_is_signed_and_no_manifest_is_refused(target: Any, maker: Any) -> None:  # noqa: ANN401
    from resedge.shipping import signing

    for data, reason in ((b"\xff", "not UTF-8"), (b"{}", "format version None"), (b"[", "is not JSON")):
        signature = signing.sign(data, maker.private, signing.BUNDLE_NAMESPACE)
        sent = framing.begin_request(data, signature, ())
        with pytest.raises(InputRefused, match=reason):
            receiving.begin(target.layout, io.BytesIO(sent).read)


def test_a_manifest_beyond_its_size_is_not_read(target: Any, tmp_path: Path) -> None:  # noqa: ANN401
    with (tmp_path / bundles.MANIFEST).open("wb") as stream:
        stream.truncate(bundles.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(InputRefused, match="has more than"):
        admission.read_authentic(target.layout, tmp_path)
