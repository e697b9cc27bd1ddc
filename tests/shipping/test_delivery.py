"""The workstation's side, against an agent that does as it is told, on SSH servers of this process."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from resedge.bundle import Bundle, Target
from resedge.errors import InputRefused
from resedge.pipeline import fleets, keys, shipping
from resedge.pipeline.fleets import Outcome, Reaching
from resedge.pipeline.shipping import result_of
from resedge.shipping.delivery import Delivered, Order

if TYPE_CHECKING:
    from resedge.benchmarks.scripts.loopback import Owner, Servers
    from tests.shipping.conftest import Place

MB = 1 << 20
CONTENTS = {"engines/a.onnx": os.urandom(5 * MB // 2), "golden/g": b"golden", "onnx/fp32.onnx": b"graph"}
PYTHON = Reaching(python="python", timeout=60)

Start = Callable[..., "Place"]
Fake = Callable[["Place"], "Place"]


@pytest.fixture
def bundle(write_bundle: Callable[..., Bundle], sign: Callable[..., Bundle], faked: Fake) -> Bundle:
    return sign(write_bundle(CONTENTS, ("engines/a.onnx",)))


def ship(
    bundle: Bundle,
    *devices: Place,
    reaching: Reaching = PYTHON,
    **order: Any,  # noqa: ANN401
) -> list[Outcome[Delivered]]:
    shipped = shipping.ship(bundle.path, [device.host for device in devices], Order(**order), reaching)
    return list(shipped.outcomes)


def test_a_bundle_is_sent_once_and_installed(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path]
) -> None:
    device = faked(place())
    (outcome,) = ship(bundle, device, trust=key_pair[1])
    assert outcome.error is None
    assert result_of(outcome) == "updated"
    assert outcome.sent_bytes > 2.5 * MB
    assert device.calls == ["probe", "begin", "receive", "install", "collect"]
    (again,) = ship(bundle, device)
    assert (result_of(again), again.sent_bytes) == ("unchanged", 0)
    assert device.calls[5:] == ["probe", "begin", "install", "collect"]


def test_devices_side_by_side_and_one_that_is_not_there(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path], loopback: ModuleType
) -> None:
    devices = [faked(place(f"device{number}")) for number in range(3)]
    devices[1].tell(rejects="the golden images do not agree")
    hosts = [*(device.host for device in devices), f"127.0.0.1:{loopback.free_port()}"]
    shipped = shipping.ship(bundle.path, hosts, Order(trust=key_pair[1]), PYTHON)
    assert [result_of(o) for o in shipped.outcomes] == ["updated", "rejected", "updated", "unreachable"]
    assert [shipping.exit_code(o) for o in shipped.outcomes] == [0, 1, 0, 4]
    assert shipped.exit_code == 4
    assert isinstance(shipped.document, dict)
    assert [row["host"] for row in shipped.document["devices"]] == hosts


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no numpy": ({"numpy": None}, "has no numpy.*--bootstrap"),
    "no runtime": ({"bare": True}, "no onnxruntime"),
    "no memory": ({"memory_available": 1}, "MB of memory to spare"),
    "a newer bundle was there": ({"counter": 9}, "has had a bundle with counter 9"),
    "a clock beyond the expiry": ({"clock": "2100-01-01T00:00:00Z"}, "its clock says 2100"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bundle_that_cannot_fit_is_refused_before_a_byte_of_it_is_sent(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path], case: str
) -> None:
    facts, words = REFUSED[case]
    device = faked(place())
    device.tell(facts=facts)
    (outcome,) = ship(bundle, device, trust=key_pair[1])
    assert re.search(words, outcome.failure), outcome.failure
    assert device.calls == ["probe"]
    assert outcome.sent_bytes == 0


@pytest.mark.parametrize(
    ("target", "jetson", "words"),
    [
        ({"jetpack": "6.2"}, None, "for JetPack 6.2, and there is none"),
        ({"jetpack": "6.2"}, {"jetpack": "5.1.2"}, "for JetPack 6.2, and there is 5.1.2"),
        ({"tensorrt": "10.3"}, {"jetpack": "6.2"}, "for TensorRT 10.3, and there is none"),
        ({"compute_capability": "8.7"}, {"compute_capability": "7.2"}, "capability 8.7, and there is 7.2"),
        ({"jetpack": "6", "compute_capability": "8.7"}, {"jetpack": "6.2", "compute_capability": "8.7"}, ""),
    ],
)
def test_a_bundle_for_another_jetson_is_refused(
    write_bundle: Callable[..., Bundle],
    sign: Callable[..., Bundle],
    place: Start,
    faked: Fake,
    key_pair: tuple[Path, Path],
    target: dict[str, str],
    jetson: dict[str, str] | None,
    words: str,
) -> None:
    device = faked(place())
    device.tell(facts={"jetson": jetson} if jetson else {})
    bundle = write_bundle(CONTENTS, ("engines/a.onnx",), target=Target(("onnxruntime",), **target))  # type: ignore[arg-type]
    (outcome,) = ship(sign(bundle), device, trust=key_pair[1])
    if not words:
        assert result_of(outcome) == "updated"
        return
    assert words in str(outcome.error)
    assert device.calls == ["probe"]


def test_a_full_disk_is_refused_before_a_chunk_is_sent(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path]
) -> None:
    device = faked(place())
    device.tell(facts={"disk_free": 65 * MB})
    (outcome,) = ship(bundle, device, trust=key_pair[1])
    assert "MB free on its disk" in str(outcome.error)
    assert device.calls == ["probe", "begin"]


def test_a_device_without_a_trusted_key_gets_nothing(bundle: Bundle, place: Start, faked: Fake) -> None:
    device = faked(place())
    (outcome,) = ship(bundle, device)
    assert "trusts no key yet" in str(outcome.error)
    assert sorted(path.name for path in device.root.iterdir()) == ["site-packages"]


def test_another_key_is_neither_accepted_nor_put_in_the_place_of_the_first(
    bundle: Bundle,
    place: Start,
    faked: Fake,
    key_pair: tuple[Path, Path],
    tmp_path: Path,
    sign: Any,  # noqa: ANN401
) -> None:
    device = faked(place())
    ship(bundle, device, trust=key_pair[1])
    private, public = keys.generate(tmp_path / "others")
    sign(bundle, key=private)
    before = (device.root / "trust/allowed_signers").read_text()
    (outcome,) = ship(bundle, device)
    assert "has no valid signature of a key that is trusted here" in str(outcome.error)
    (outcome,) = ship(bundle, device, trust=public)
    assert "trusts another key already" in str(outcome.error)
    assert (device.root / "trust/allowed_signers").read_text() == before
    (outcome,) = ship(bundle, device, trust=public, replace_trust=True)
    assert result_of(outcome) == "updated"
    assert (device.root / "trust/allowed_signers").read_text() != before


def test_a_dry_run_sends_and_writes_nothing(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path]
) -> None:
    device = faked(place())
    (outcome,) = ship(bundle, device, trust=key_pair[1], dry_run=True)
    assert outcome.answer is not None
    assert result_of(outcome) == "rehearsed"
    assert [plan.split(",")[0] for plan in outcome.answer.plan] == [
        "the key resedge.pub",
        "the agent",
        "the bundle",
    ]
    assert sorted(path.name for path in device.root.iterdir()) == ["site-packages"]
    ship(bundle, device, trust=key_pair[1])
    (outcome,) = ship(bundle, device, dry_run=True)
    assert outcome.answer is not None
    assert outcome.answer.facts is not None
    assert outcome.answer.plan == ()
    assert device.calls[-1] == "probe"


def test_a_cut_network_is_gone_on_with_where_it_stopped(
    bundle: Bundle,
    place: Start,
    faked: Fake,
    key_pair: tuple[Path, Path],
    loopback: ModuleType,
    owner: Owner,
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleets, "_PAUSE_SECONDS", 0.01)
    device = faked(place())
    ship(bundle, device, trust=key_pair[1], dry_run=True)
    relay = loopback.Relay(device.port)
    owner.knows(relay.port, servers.host_key)
    relay.budget = 2 * MB
    reached = type(device)(f"127.0.0.1:{relay.port}", relay.port, device.root)
    (outcome,) = ship(bundle, reached, trust=key_pair[1])
    relay.close()
    assert outcome.error is None
    assert relay.cuts == 1
    assert device.calls.count("begin") == 2
    assert outcome.sent_bytes < 2 * sum(map(len, CONTENTS.values()))


def test_chunks_that_are_refused_are_sent_again_and_then_given_up(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path]
) -> None:
    device = faked(place())
    device.tell(refuses_chunks=[1])
    (outcome,) = ship(bundle, device, trust=key_pair[1])
    assert "did not take the bundle in 5 attempts (chunk 1)" in str(outcome.error)
    assert device.calls.count("receive") == 5


def _begun(missing: list[dict[str, Any]]) -> str:
    answer = {"digest": "0" * 64, "missing": missing, "missing_bytes": 1}
    return json.dumps({"wire": 1, "error": None, "answer": answer})


BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "an agent that is killed": ({"dies": ["install"]}, "failed", r"killed there \(SIGKILL\)"),
    "no JSON": ({"raw": {"probe": "hello"}}, "refused", "is not JSON"),
    "another version": ({"raw": {"probe": '{"wire": 7}'}}, "refused", "answers in version 7"),
    "chunks of another bundle": (
        {"raw": {"begin": _begun([{"sha256": "0" * 64, "chunks": [0]}])}},
        "refused",
        "asks for what is none of the bundle",
    ),
    "another answer": (
        {"raw": {"probe": '{"wire": 1, "error": null, "answer": {"digest": "x"}}'}},
        "refused",
        "unknown key 'digest'",
    ),
    "nothing": ({"raw": {"install": ""}, "code": 3}, "failed", "failed there with exit code 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_agent_that_answers_badly_is_an_error_of_that_device_alone(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path], case: str
) -> None:
    told, result, words = BROKEN[case]
    device, other = faked(place()), faked(place("other"))
    device.tell(**told)
    outcome, good = ship(bundle, device, other, trust=key_pair[1])
    assert result_of(outcome) == result
    assert re.search(words, outcome.failure), outcome.failure
    assert result_of(good) == "updated"


def test_an_agent_that_was_changed_on_the_device_is_sent_anew_and_never_run(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path]
) -> None:
    device = faked(place())
    ship(bundle, device, trust=key_pair[1])
    (agent,) = (device.root / "agent").glob("*[0-9a-f].pyz")
    agent.write_text("print('evil')")
    (asked,) = shipping.status([device.host], PYTHON)
    assert "the agent is not signed by a key that is trusted there" in str(asked.error)
    (outcome,) = ship(bundle, device)
    assert result_of(outcome) == "unchanged"


def test_what_devices_serve_and_going_back(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path]
) -> None:
    device, empty = faked(place()), faked(place("empty"))
    (outcome,) = ship(bundle, device, trust=key_pair[1])
    assert outcome.answer is not None
    asked = shipping.status([device.host, empty.host], PYTHON)
    assert asked[0].answer is not None
    assert asked[0].answer.serving is not None
    assert asked[0].answer.serving.engine == "onnxruntime:fp32"
    assert "nothing has been shipped there" in str(asked[1].error)
    assert shipping.worst_of(asked) == 5
    digest = asked[0].answer.serving.digest
    (turned,) = shipping.rollback([device.host], digest[:8], PYTHON)
    assert turned.answer is not None
    assert turned.answer.previous == digest
    (turned,) = shipping.rollback([device.host], "none", PYTHON)
    assert "has 0 releases that begin with 'none'" in str(turned.error)


def test_an_unknown_host_key_is_refused_with_the_command_that_accepts_it(
    bundle: Bundle,
    place: Start,
    faked: Fake,
    owner: Owner,
    loopback: ModuleType,
    tmp_path: Path,
) -> None:
    device = faked(place())
    owner.known_hosts.write_text("")
    (outcome,) = ship(bundle, device)
    assert isinstance(outcome.error, InputRefused)
    assert f"ssh-keyscan -p {device.port} 127.0.0.1 >> ~/.ssh/known_hosts" in outcome.error.cure
    assert "SHA256:" in outcome.error.what
    owner.knows(device.port, loopback.make_key(tmp_path / "another"))
    (outcome,) = ship(bundle, device)
    assert isinstance(outcome.error, InputRefused)
    assert f"ssh-keygen -R '[127.0.0.1]:{device.port}'" in outcome.error.cure
    assert not device.calls


def test_a_key_that_the_device_does_not_know_is_refused(
    bundle: Bundle, place: Start, faked: Fake, loopback: ModuleType, tmp_path: Path
) -> None:
    device = faked(place())
    stranger = loopback.make_key(tmp_path / "stranger")
    (outcome,) = ship(bundle, device, reaching=Reaching(identity=stranger))
    assert "does not let this user in" in str(outcome.error)
    assert shipping.exit_code(outcome) == 4


def test_a_device_without_a_fit_python_is_refused(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path]
) -> None:
    device = faked(place())
    (outcome,) = ship(bundle, device, reaching=Reaching(python="python9"), trust=key_pair[1])
    assert "has no Python" in str(outcome.error)


def test_a_device_that_takes_too_long_is_given_up(
    bundle: Bundle, place: Start, faked: Fake, key_pair: tuple[Path, Path]
) -> None:
    device = faked(place())
    device.tell(sleeps=["install"])
    (outcome,) = ship(bundle, device, reaching=Reaching(python="python", timeout=5), trust=key_pair[1])
    assert "was not done within 5 seconds" in str(outcome.error)
    assert shipping.exit_code(outcome) == 4
