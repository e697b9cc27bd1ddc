from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import replace
from typing import Any

import pytest

from resedge import bundle as bundles
from resedge.agent import installing, journal, releases
from resedge.bundle import Bundle, Target
from resedge.errors import InputRefused, MachineFailure, RuntimeUnavailable, StaleArtifact
from resedge.shipping import wire

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")

WHOLE = ("stage", "verify", "build", "trial", "switch", "confirm", "commit")


def _contents(name: str = "one") -> dict[str, bytes]:
    return {"onnx/fp32.onnx": name.encode(), bundles.GOLDEN: b"golden", bundles.THRESHOLDS: b"thresholds"}


@pytest.fixture
def first(maker: Any) -> Bundle:  # noqa: ANN401
    made: Bundle = maker.bundle(_contents(), counter=1)
    return made


@pytest.fixture
def second(maker: Any) -> Bundle:  # noqa: ANN401
    made: Bundle = maker.bundle(_contents("two"), counter=2)
    return made


def test_a_bundle_goes_through_every_state_and_is_left_alone_the_second_time(
    target: Any,  # noqa: ANN401
    first: Bundle,
    world: Any,  # noqa: ANN401
) -> None:
    states: list[str] = []
    digest = target.here.send(first)
    order = installing.Order(digest)
    done = installing.install(target.layout, order, lambda progress: states.append(progress.state))
    assert (done.outcome, done.states, done.serving) == ("committed", WHOLE, digest)
    assert tuple(states) == WHOLE
    assert done.trial is not None
    assert done.trial.passed
    status = target.ask(wire.Status, "status")
    assert status.serving is not None
    assert (status.serving.digest, status.serving.engine) == (digest, "openvino:fp32")
    assert (status.serving.trial, status.counter, status.operation) == (done.trial, 1, None)
    assert [release.digest for release in status.releases] == [digest]
    again = target.here.install(first)
    assert (again.outcome, again.states, again.trial) == ("unchanged", (), done.trial)
    assert target.left_over() == []


@pytest.mark.parametrize(
    ("fault", "limits", "reason"),
    [
        ({"agreement": 0.5}, wire.Limits(), "golden images do not agree"),
        ({"milliseconds": 9.0}, wire.Limits(p50_ms=5.0), "too slow"),
    ],
)
def test_what_fails_its_trial_never_serves(
    target: Any,  # noqa: ANN401
    first: Bundle,
    second: Bundle,
    world: Any,  # noqa: ANN401
    fault: dict[str, float],
    limits: wire.Limits,
    reason: str,
) -> None:
    served = target.here.install(first).digest
    for name, value in fault.items():
        setattr(world, name, value)
    done = target.here.install(second, limits=limits)
    assert (done.outcome, done.states, done.serving) == ("rejected", WHOLE[:4], served)
    assert reason in str(done.reason)
    assert target.layout.serving() == served
    failed = target.state["last_failure"]
    assert (failed["digest"], failed["state"]) == (done.digest, "trial")
    assert [path.name for path in target.layout.releases.iterdir()] == [served]
    assert target.left_over() == []
    assert target.state["counter"] == 1
    for name in fault:
        setattr(world, name, type(world).__dataclass_fields__[name].default)
    assert target.here.install(second).outcome == "committed"


def test_what_the_machine_failed_at_is_not_sent_again(
    target: Any,  # noqa: ANN401
    first: Bundle,
    second: Bundle,
    world: Any,  # noqa: ANN401
) -> None:
    served = target.here.install(first).digest
    world.memory = False
    digest = target.here.send(second)
    with pytest.raises(MachineFailure, match="memory"):
        target.here.order(digest)
    assert target.layout.serving() == served
    assert target.here.begin(second).missing == ()
    world.memory = True
    assert target.here.order(digest).outcome == "committed"


def test_a_runtime_that_is_not_there_is_said(target: Any, first: Bundle, world: Any) -> None:  # noqa: ANN401
    world.runtime = False
    digest = target.here.send(first)
    with pytest.raises(RuntimeUnavailable, match="it was taken away"):
        target.here.order(digest)
    assert target.layout.serving() is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": Target(("openvino",), jetpack="6.2")}, "it is for JetPack 6.2, and there is none"),
        ({"target": Target(("openvino",), tensorrt="10.3")}, "it is for TensorRT 10.3, and there is"),
        ({"target": Target(("openvino",), compute_capability="8.7")}, "for compute capability 8.7"),
        ({"target": Target(("tensorrt",))}, "the bundle is for tensorrt"),
    ],
)
def test_a_bundle_for_another_device_is_refused(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
    world: Any,  # noqa: ANN401
    change: dict[str, Any],
    reason: str,
) -> None:
    with pytest.raises(InputRefused, match=reason):
        target.here.install(maker.bundle(_contents(), **change))
    assert target.layout.serving() is None


def test_a_second_agent_is_refused_while_the_first_is_at_work(
    target: Any,  # noqa: ANN401
    first: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resedge.agent.layout._LOCK_SECONDS", 0.0)
    descriptor = os.open(target.layout.root, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(InputRefused, match="another agent is at work here"):
            target.here.begin(first)
        assert target.ask(wire.Status, "status").serving is None  # which takes no lock
    finally:
        os.close(descriptor)
    assert target.here.begin(first).missing


def test_a_release_keeps_its_engine(target: Any, first: Bundle, world: Any) -> None:  # noqa: ANN401
    target.here.install(first, engine=("openvino", "fp32"))
    assert target.here.install(first, engine=("openvino", "fp32")).outcome == "unchanged"
    with pytest.raises(InputRefused, match="a release keeps its engine"):
        target.here.install(first, engine=("onnxruntime", "fp32"))


@pytest.mark.parametrize("name", ["bundle/onnx/fp32.onnx", "bundle/manifest.sig", "engine/engine.bin"])
def test_a_release_that_was_damaged_while_it_serves_is_mended_by_the_same_bundle(
    target: Any,  # noqa: ANN401
    first: Bundle,
    world: Any,  # noqa: ANN401
    name: str,
) -> None:
    digest = target.here.install(first).digest
    path = target.layout.release(digest) / name
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-2])
    done = target.here.install(first)
    assert (done.outcome, done.serving) == ("committed", digest)
    assert path.read_bytes() == whole
    assert [release["digest"] for release in target.state["releases"]] == [digest]
    assert target.left_over() == []


def test_a_kept_release_that_was_damaged_is_dropped_and_can_be_sent_again(
    target: Any,  # noqa: ANN401
    first: Bundle,
    second: Bundle,
    world: Any,  # noqa: ANN401
) -> None:
    back, newest = target.here.install(first).digest, target.here.install(second).digest
    target.ask(wire.RolledBack, "rollback")
    path = target.layout.bundle(newest) / "onnx" / "fp32.onnx"
    path.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(StaleArtifact, match="not the file that the manifest names"):
        target.here.order(newest)
    assert target.layout.serving() == back
    assert [release["digest"] for release in target.state["releases"]] == [back]
    assert target.here.install(second).outcome == "committed"
    assert target.layout.serving() == newest


def test_an_interrupted_installation_of_another_bundle_is_given_up(
    target: Any,  # noqa: ANN401
    first: Bundle,
    second: Bundle,
    maker: Any,  # noqa: ANN401
    world: Any,  # noqa: ANN401
) -> None:
    served = target.here.install(first).digest
    digest = target.here.send(second)
    known = journal.read(target.layout)
    operation = wire.Operation("install", digest, "build", served, "2026-01-01T00:00:00Z")
    with target.layout.alone():
        releases.stage(target.layout, digest, second.manifest)
        journal.write(target.layout, replace(known, operation=operation))
    third = maker.bundle(_contents("three"), counter=3)
    done = target.here.install(third)
    assert done.outcome == "committed"
    assert {path.name for path in target.layout.releases.iterdir()} == {served, done.digest}


def test_what_switched_and_cannot_be_confirmed_after_a_reboot_is_taken_back(
    target: Any,  # noqa: ANN401
    first: Bundle,
    second: Bundle,
    world: Any,  # noqa: ANN401
) -> None:
    served = target.here.install(first).digest
    digest = target.here.send(second)
    with target.layout.alone():
        releases.stage(target.layout, digest, second.manifest)
        known = journal.read(target.layout)
        operation = wire.Operation("install", digest, "switch", served, "2026-01-01T00:00:00Z")
        journal.write(target.layout, replace(known, operation=operation))
        target.layout.point(digest)
        found = installing.recover(target.layout, lambda _: None)  # it has no engine
    assert found.operation is None
    assert found.last_failure is not None
    assert target.layout.serving() == served
    assert [path.name for path in target.layout.releases.iterdir()] == [served]


def test_a_journal_of_another_version_is_refused(target: Any, first: Bundle) -> None:  # noqa: ANN401
    target.here.begin(first)
    state = target.state
    target.layout.state.write_text(json.dumps({**state, "journal_version": 2}))
    with pytest.raises(InputRefused, match="is of version 2"):
        target.here.begin(first)


def test_a_link_that_leads_elsewhere_is_refused(target: Any, first: Bundle) -> None:  # noqa: ANN401
    target.layout.current.symlink_to("/usr")
    with pytest.raises(InputRefused, match="not to a release"):
        target.ask(wire.Status, "status")
    target.layout.current.unlink()
    target.layout.current.mkdir()
    with pytest.raises(InputRefused, match="is not a link"):
        target.ask(wire.Status, "status")


def test_a_release_that_is_ruined_stands_in_nobodys_way(
    target: Any,  # noqa: ANN401
    first: Bundle,
    second: Bundle,
    world: Any,  # noqa: ANN401
) -> None:
    served = target.here.install(first).digest
    shutil.rmtree(target.layout.bundle(served))
    (target.layout.release(served) / "trial.json").write_text("{")
    status = target.ask(wire.Status, "status")
    assert status.serving is not None
    assert (status.serving.digest, status.serving.trial) == (served, None)
    done = target.here.install(second)
    assert (done.outcome, done.serving) == ("committed", done.digest)
