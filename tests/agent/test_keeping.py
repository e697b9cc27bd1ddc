"""Going back to former releases, and dropping those beyond the last ones."""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import replace
from typing import Any

import pytest

from resedge import bundle as bundles
from resedge.agent import journal, releases, rolling_back
from resedge.errors import InputRefused, StaleArtifact
from resedge.shipping import wire

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")


@pytest.fixture
def digests(target: Any, maker: Any, world: Any) -> list[str]:  # noqa: ANN401
    """Four releases that were committed one after the other; the last one serves."""
    found = []
    for number in range(1, 5):
        contents = {
            "onnx/fp32.onnx": b"%d" % number,
            bundles.GOLDEN: b"golden",
            bundles.THRESHOLDS: b"thresholds",
        }
        found.append(target.here.install(maker.bundle(contents, counter=number)).digest)
    return found


def back(target: Any, digest: str | None = None) -> wire.RolledBack:  # noqa: ANN401
    return rolling_back.roll_back(target.layout, digest, lambda _: None)


def collect(target: Any, keep: int) -> releases.Dropped:  # noqa: ANN401
    with target.layout.alone():
        return releases.collect(target.layout, journal.read(target.layout), keep)


def test_each_rollback_goes_one_release_further_back(target: Any, digests: list[str]) -> None:  # noqa: ANN401
    for previous, expected in zip(digests[:0:-1], digests[-2::-1], strict=True):
        done = back(target)
        assert (done.serving.digest, done.previous) == (expected, previous)
        assert target.layout.serving() == expected
    with pytest.raises(InputRefused, match="no release to go back to"):
        back(target)
    assert (target.state["counter"], target.state["operation"]) == (4, None)


def test_a_rollback_can_name_its_release_and_be_made_twice(target: Any, digests: list[str]) -> None:  # noqa: ANN401
    assert back(target, digests[1]).serving.digest == digests[1]
    assert back(target, digests[1]).serving.digest == digests[1]
    assert back(target, digests[3]).previous == digests[1]


def test_what_was_never_committed_here_is_not_gone_back_to(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
    digests: list[str],
) -> None:
    arrived = target.here.send(maker.bundle(counter=5))
    for digest in (arrived, "0" * 64):
        with pytest.raises(InputRefused, match="never committed here"):
            back(target, digest)
    assert target.layout.serving() == digests[3]


def test_a_release_that_was_damaged_is_not_gone_back_to(target: Any, digests: list[str]) -> None:  # noqa: ANN401
    path = target.layout.bundle(digests[2]) / "onnx" / "fp32.onnx"
    path.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(StaleArtifact):
        back(target)
    assert (target.layout.serving(), target.state["operation"]) == (digests[3], None)


def test_the_highest_counter_stays_when_one_goes_back(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
    digests: list[str],
) -> None:
    back(target, digests[0])
    with pytest.raises(InputRefused, match="a bundle of old"):
        target.here.begin(maker.bundle(counter=3))
    with pytest.raises(InputRefused, match="a bundle of old"):
        target.here.order(digests[1])  # which is kept, and is what `rollback` is for
    assert target.layout.serving() == digests[0]


def test_a_rollback_that_was_interrupted_goes_no_further_when_it_is_made_again(
    target: Any,  # noqa: ANN401
    digests: list[str],
) -> None:
    known = journal.read(target.layout)
    operation = wire.Operation("rollback", digests[2], "rollback", digests[3], "2026-01-01T00:00:00Z")
    journal.write(target.layout, replace(known, operation=operation))
    done = back(target)
    assert (done.serving.digest, done.previous) == (digests[2], digests[3])
    assert target.state["operation"] is None


def test_the_last_releases_and_the_one_that_serves_are_kept(target: Any, digests: list[str]) -> None:  # noqa: ANN401
    back(target, digests[0])
    assert collect(target, 2) == releases.Dropped((digests[1],), ())
    assert {path.name for path in target.layout.releases.iterdir()} == {digests[i] for i in (0, 2, 3)}
    assert [release["digest"] for release in target.state["releases"]] == [digests[i] for i in (0, 2, 3)]
    assert collect(target, 2) == releases.Dropped((), ())


def test_a_release_that_an_application_holds_open_is_kept(target: Any, digests: list[str]) -> None:  # noqa: ANN401
    descriptor = os.open(target.layout.release(digests[1]), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        found = target.ask(wire.Collected, "collect", "--keep", "1")
        assert found.dropped == tuple(sorted((digests[0], digests[2])))
        assert found.in_use == (digests[1],)
    finally:
        os.close(descriptor)
    assert back(target).serving.digest == digests[1]


def test_what_was_never_committed_is_collected(target: Any, digests: list[str]) -> None:  # noqa: ANN401
    orphan = target.layout.release("0" * 64)
    orphan.mkdir()
    (target.layout.releases / "a note").write_text("mine")
    assert collect(target, 9).dropped == (orphan.name,)
    assert (target.layout.releases / "a note").exists()
