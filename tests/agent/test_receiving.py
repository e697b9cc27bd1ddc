from __future__ import annotations

import os
import random
import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from resedge import bundle as bundles
from resedge.artifacts import sha256_bytes
from resedge.bundle import Bundle
from resedge.errors import InputRefused, MachineFailure
from resedge.shipping import framing, wire
from resedge.shipping.chunks import CHUNK_BYTES

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")

LARGE = random.Random(3).randbytes(3 * CHUNK_BYTES + 17)
CONTENTS = {
    "onnx/fp32.onnx": LARGE,
    bundles.GOLDEN: b"golden",
    bundles.THRESHOLDS: b"thresholds",
    "verdicts/a.json": b"",
    "verdicts/b.json": b"golden",  # two names of one content
}
GRAPH = sha256_bytes(LARGE)


@pytest.fixture(scope="module")
def bundle(maker: Any) -> Bundle:  # noqa: ANN401
    made: Bundle = maker.bundle(CONTENTS)
    return made


def _chunks(missing: tuple[wire.Missing, ...]) -> dict[str, tuple[int, ...]]:
    return {found.sha256: found.chunks for found in missing}


def test_every_content_is_asked_for_once_and_no_empty_one(target: Any, bundle: Bundle) -> None:  # noqa: ANN401
    begun = target.here.begin(bundle)
    assert begun.digest == target.sent(bundle).digest
    assert _chunks(begun.missing)[GRAPH] == (0, 1, 2, 3)
    assert len(begun.missing) == len({a.sha256 for a in bundle.manifest.files}) - 1
    assert begun.missing_bytes == sum(file.size for file in target.sent(bundle).files)


def test_a_stream_that_breaks_off_loses_no_whole_chunk(target: Any, bundle: Bundle) -> None:  # noqa: ANN401
    sent = target.sent(bundle)
    target.here.begin(bundle)
    frames = sent.frames([wire.Missing(GRAPH, (2, 0, 1))])
    received = target.here.receive(sent.digest, frames[: 2 * (CHUNK_BYTES + 72) + 1000])
    assert received.refused == ()
    assert _chunks(received.missing)[GRAPH] == (1, 3)  # 2 and 0 are there, 1 is a hole
    begun = target.here.begin(bundle)
    assert _chunks(begun.missing)[GRAPH] == (1, 3)
    last = target.here.receive(sent.digest, sent.frames(begun.missing))
    assert (last.refused, last.missing) == ((), ())
    assert target.here.begin(bundle).missing == ()


def test_a_part_that_was_damaged_on_the_disk_is_asked_for_again(target: Any, bundle: Bundle) -> None:  # noqa: ANN401
    sent = target.sent(bundle)
    target.here.begin(bundle)
    target.here.receive(sent.digest, sent.frames([wire.Missing(GRAPH, (0, 1))]))
    part = target.layout.arriving(sent.digest) / "files" / f"{GRAPH}.part"
    with part.open("r+b") as stream:
        stream.seek(10)
        stream.write(b"!")
    assert _chunks(target.here.begin(bundle).missing)[GRAPH] == (0, 2, 3)


def test_a_damaged_chunk_is_refused_and_named(target: Any, bundle: Bundle) -> None:  # noqa: ANN401
    sent = target.sent(bundle)
    target.here.begin(bundle)
    frames = bytearray(sent.frames([wire.Missing(GRAPH, (0, 1))]))
    frames[1000] ^= 1
    received = target.here.receive(sent.digest, bytes(frames))
    assert received.refused == (f"chunk 0 of {GRAPH[:12]} was damaged on its way",)
    assert _chunks(received.missing)[GRAPH] == (0, 2, 3)


def test_chunks_of_something_else_are_refused(target: Any, bundle: Bundle) -> None:  # noqa: ANN401
    sent = target.sent(bundle)
    target.here.begin(bundle)
    frames = [
        framing.chunk_frame(GRAPH, 0, b"another content"),
        framing.chunk_frame(GRAPH, 4, b"beyond the end"),
        framing.chunk_frame("0" * 64, 0, b"no file of the bundle"),
    ]
    received = target.here.receive(sent.digest, b"".join(frames))
    assert [text.split(" ", 4)[4] for text in received.refused] == [
        "is not the one that was offered",
        "is none of the bundle",
        "is none of the bundle",
    ]
    assert _chunks(received.missing)[GRAPH] == (0, 1, 2, 3)


def test_an_offer_that_lies_about_a_file_is_found_out(target: Any, bundle: Bundle) -> None:  # noqa: ANN401
    import io

    from resedge.agent import receiving
    from resedge.shipping.chunks import FileChunks

    sent = target.sent(bundle)
    manifest, signature = (
        (bundle.path / name).read_bytes() for name in (bundles.MANIFEST, bundles.SIGNATURE)
    )
    wrong = FileChunks(GRAPH, 3, (sha256_bytes(b"bad"),))
    offer = [wrong, *(file for file in sent.files if file.sha256 != GRAPH)]
    receiving.begin(target.layout, io.BytesIO(framing.begin_request(manifest, signature, offer)).read)
    received = target.here.receive(sent.digest, framing.chunk_frame(GRAPH, 0, b"bad"))
    assert "is not the file of its name" in received.refused[0]
    assert _chunks(received.missing)[GRAPH] == (0,)
    assert _chunks(target.here.begin(bundle).missing)[GRAPH] == (0, 1, 2, 3)
    with pytest.raises(InputRefused, match="not among the files that are offered"):
        receiving.begin(target.layout, io.BytesIO(framing.begin_request(manifest, signature, offer[1:])).read)


def test_a_stream_that_is_out_of_step_keeps_what_came_before(target: Any, bundle: Bundle) -> None:  # noqa: ANN401
    sent = target.sent(bundle)
    target.here.begin(bundle)
    golden = sha256_bytes(b"golden")
    frames = sent.frames([wire.Missing(golden, (0,))])
    with pytest.raises(InputRefused, match="was announced"):
        target.here.receive(sent.digest, frames + b"\xff" * 100)
    assert golden not in _chunks(target.here.begin(bundle).missing)


def test_what_a_kept_release_has_is_not_sent_again(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
    bundle: Bundle,
    world: Any,  # noqa: ANN401
) -> None:
    first = target.here.install(bundle)
    again = target.here.begin(bundle)
    assert again.missing == ()
    more = maker.bundle({**CONTENTS, "verdicts/c.json": b"new"}, counter=2)
    begun = target.here.begin(more)
    assert set(_chunks(begun.missing)) == {sha256_bytes(b"new")}
    held = target.layout.bundle(first.digest) / "onnx" / "fp32.onnx"
    held.unlink()
    held.write_bytes(LARGE[:-1] + b"!")  # what is damaged there is no help
    assert target.layout.arriving(begun.digest).exists()
    shutil.rmtree(target.layout.arriving(begun.digest))
    assert set(_chunks(target.here.begin(more).missing)) == {sha256_bytes(b"new"), GRAPH}


def test_another_bundle_makes_room(target: Any, maker: Any, bundle: Bundle) -> None:  # noqa: ANN401
    first, second = target.here.begin(bundle), target.here.begin(maker.bundle(CONTENTS, counter=2))
    assert [path.name for path in target.layout.incoming.iterdir()] == [second.digest]
    with pytest.raises(InputRefused, match="was not begun here"):
        target.here.receive(first.digest, b"")


def test_a_disk_without_room_is_said_before_anything_is_sent(
    target: Any,  # noqa: ANN401
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=4096))
    with pytest.raises(MachineFailure, match=r"has 4\.1 MB free; .* need 3\.5 MB, and 16\.8 MB must stay"):
        target.here.begin(bundle)


def test_a_file_system_without_links_copies(
    target: Any,  # noqa: ANN401
    bundle: Bundle,
    world: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert target.here.install(bundle).outcome == "committed"


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system takes a superuser")
def test_a_disk_that_fills_up_for_real(target: Any, bundle: Bundle) -> None:  # noqa: ANN401
    import subprocess

    sent = target.sent(bundle)
    target.here.begin(bundle)
    place = target.layout.arriving(sent.digest) / "files"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(MachineFailure, match=r"No space left on device.*Free some space"):
            target.here.receive(sent.digest, sent.frames([wire.Missing(GRAPH, (0, 1, 2, 3))]))
        assert _chunks(target.here.receive(sent.digest, b"").missing)[GRAPH] == (2, 3)
        subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
        missing = target.here.begin(bundle).missing
        received = target.here.receive(sent.digest, sent.frames(missing))
        assert (received.refused, received.missing) == ((), ())
    finally:
        subprocess.run(["umount", str(place)], check=True)
