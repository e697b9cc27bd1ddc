"""The whole life of a bundle with real agents, over OpenSSH's server, where there is one, and asyncssh's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from resedge import bundle as bundles
from resedge.artifacts import sha256_file
from resedge.bundle import Bundle
from resedge.pipeline import shipping
from resedge.pipeline.fleets import Outcome, Reaching, SilentFleet
from resedge.pipeline.shipping import result_of
from resedge.shipping import wheels, wire
from resedge.shipping.delivery import Delivered, Order

if TYPE_CHECKING:
    from resedge.benchmarks.scripts.loopback import Owner, Relay, Servers
    from tests.shipping.conftest import Place

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "scripts"
PYTHON = Reaching(python=sys.executable, timeout=120)

Make = Callable[..., Bundle]
Start = Callable[..., "Place"]


@pytest.fixture(scope="session")
def small_bundle() -> ModuleType:
    for library in ("onnx", "onnxruntime"):
        pytest.importorskip(library)
    from resedge.benchmarks.scripts import small_bundle

    return small_bundle


@pytest.fixture
def make(small_bundle: ModuleType, sign: Make, tmp_path: Path) -> Make:
    """Write and sign a bundle in the one place of this test's model, so that counters grow."""

    def made(seed: int, **how: Any) -> Bundle:  # noqa: ANN401
        return sign(small_bundle.write(tmp_path / "small.resedge", seed=seed, **how))

    return made


@pytest.fixture(params=["OpenSSH", "asyncssh"])
def device(
    request: pytest.FixtureRequest,
    loopback: ModuleType,
    owner: Owner,
    tmp_path: Path,
) -> Iterator[Place]:
    """A device behind either server, whose commands run in a home of its own."""
    if request.param == "asyncssh":
        yield request.getfixturevalue("place")("home")
        return
    if not loopback.SSHD:
        pytest.skip("sshd, OpenSSH's server, is not installed")
    make_place = request.getfixturevalue("place_of")
    home = tmp_path / "home"
    for folder in (home, tmp_path / "sshd"):
        folder.mkdir()
    server = loopback.Sshd(tmp_path / "sshd", home, owner)
    owner.knows(server.port, server.host_key)
    try:
        yield make_place(server.port, home)
    finally:
        server.close()


def ship(bundle: Bundle, device: Place, **order: Any) -> Outcome[Delivered]:  # noqa: ANN401
    (outcome,) = shipping.ship(bundle.path, [device.host], Order(**order), PYTHON).outcomes
    return outcome


def digest_of(bundle: Bundle) -> str:
    return sha256_file(bundle.path / bundles.MANIFEST)


def serving(device: Place) -> str:
    return (device.root / "current").readlink().name


def test_ship_update_fail_and_roll_back(make: Make, device: Place, key_pair: tuple[Path, Path]) -> None:
    first = make(1)
    digests = [digest_of(first)]
    outcome = ship(first, device, trust=key_pair[1])
    assert outcome.error is None
    assert result_of(outcome) == "updated"
    assert serving(device) == digests[0]
    again = ship(first, device)
    assert (result_of(again), again.sent_bytes) == ("unchanged", 0)

    second = make(2)
    digests.append(digest_of(second))
    assert result_of(ship(second, device)) == "updated"
    assert serving(device) == digests[1]

    bad = ship(make(3, spoiled=True), device)
    assert result_of(bad) == "rejected"
    assert "golden" in shipping.reason_of(bad)
    assert shipping.exit_code(bad) == 1
    assert serving(device) == digests[1]

    (turned,) = shipping.rollback([device.host], None, PYTHON)
    assert turned.answer is not None
    assert (turned.answer.serving.digest, turned.answer.previous) == tuple(digests)
    assert serving(device) == digests[0]
    (asked,) = shipping.status([device.host], PYTHON)
    assert asked.answer is not None
    assert asked.answer.counter == 4
    assert [release.digest for release in asked.answer.releases] == digests
    assert asked.answer.last_failure is not None
    assert asked.answer.last_failure.state == "trial"


def test_limits_and_the_owners_own_check_can_refuse(
    make: Make, place: Start, key_pair: tuple[Path, Path]
) -> None:
    device, bundle = place(), make(1)
    slow = ship(bundle, device, trust=key_pair[1], limits=wire.Limits(p50_ms=1e-6))
    assert result_of(slow) == "rejected"
    assert not (device.root / "current").exists()
    unhealthy = ship(bundle, device, confirm_command="echo no answer >&2; exit 3")
    assert result_of(unhealthy) == "rejected"
    assert "no answer" in shipping.reason_of(unhealthy)
    assert not (device.root / "current").exists()
    assert result_of(ship(bundle, device, confirm_command='[ -n "$RESEDGE_RELEASE" ]')) == "updated"


def test_the_facts_of_a_jetson_decide(
    make: Make, place: Start, key_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    system = tmp_path / "system"
    for name, content in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "proc/device-tree/compatible": "nvidia,p3767-0005\0nvidia,tegra234\0",
        "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    }.items():
        (system / name).parent.mkdir(parents=True)
        (system / name).write_text(content)
    device = place(RESEDGE_SYSROOT=str(system))
    other = ship(make(1, jetpack="7.2"), device, trust=key_pair[1])
    assert "is for JetPack 7.2, and there is 6.2" in str(other.error)
    assert not (device.root / "incoming").exists()
    outcome = ship(make(2, jetpack="6.2"), device)
    assert outcome.error is None
    assert outcome.answer is not None
    assert outcome.answer.facts is not None
    assert outcome.answer.facts.jetson is not None
    assert outcome.answer.facts.jetson.power_mode == "2"


def test_two_controllers_at_once_leave_what_one_would(
    make: Make, place: Start, key_pair: tuple[Path, Path]
) -> None:
    device, bundle = place(), make(1, channels=64)
    outcomes: list[Outcome[Delivered]] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(ship(bundle, device, trust=key_pair[1])))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcome in outcomes:
        assert outcome.error is None or "another agent is at work here" in str(outcome.error)
    assert any(outcome.error is None for outcome in outcomes)
    assert result_of(ship(bundle, device)) == "unchanged"
    assert serving(device) == digest_of(bundle)


class _Cutter(SilentFleet):
    """Cuts the network when a device says that it has come to a state."""

    def __init__(self, relay: Relay, state: str) -> None:
        self.relay, self.state, self.steps = relay, state, list[str]()

    def step(self, host: str, text: str) -> None:
        self.steps.append(text)
        if text == self.state and not self.relay.cuts:
            self.relay.cut()


def test_a_network_that_is_cut_while_the_device_installs(
    make: Make,
    place: Start,
    key_pair: tuple[Path, Path],
    loopback: ModuleType,
    owner: Owner,
    servers: Servers,
) -> None:
    device, bundle = place(), make(1)
    relay = loopback.Relay(device.port)
    owner.knows(relay.port, servers.host_key)
    cutter = _Cutter(relay, "trial")
    host = f"127.0.0.1:{relay.port}"
    shipped = shipping.ship(bundle.path, [host], Order(trust=key_pair[1]), PYTHON, cutter)
    relay.close()
    assert shipped.exit_code == 0, shipping.reason_of(shipped.outcomes[0])
    assert "the connection broke; once more" in cutter.steps
    assert serving(device) == digest_of(bundle)


def test_an_interrupted_shipment_goes_on(
    make: Make,
    place: Start,
    owner: Owner,
    key_pair: tuple[Path, Path],
) -> None:
    device, bundle = place(), make(1, channels=512)
    command = [sys.executable, "-m", "resedge", "ship", str(bundle.path), device.host]
    command += ["--python", sys.executable, "--trust", str(key_pair[1])]
    process = subprocess.Popen(
        command, env=owner.environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.rstrip().endswith("sending"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    assert "run the same command again" in rest
    assert not (device.root / "current").exists()
    assert result_of(ship(bundle, device)) == "updated"


def test_a_device_without_the_runtime_gets_it_from_wheels(
    make: Make, place: Start, key_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """A wheel that holds no code shows the way of one: sent once, installed aside, found by the agent."""
    (tmp_path / "wheels").mkdir()
    _write_wheel(tmp_path / "wheels" / "shipped_marker-1.0-py3-none-any.whl")
    device, bundle = place(), make(1)
    outcome = ship(bundle, device, trust=key_pair[1], wheels=wheels.read(tmp_path / "wheels"))
    assert result_of(outcome) == "updated"
    installed = device.root / "site-packages" / "shipped_marker.py"
    assert installed.read_text() == "HERE = True\n"
    before = installed.stat()
    ship(bundle, device, wheels=wheels.read(tmp_path / "wheels"))
    assert installed.stat() == before


def _write_wheel(path: Path) -> None:
    name = "shipped_marker-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("shipped_marker.py", "HERE = True\n")
        wheel.writestr(f"{name}/METADATA", "Metadata-Version: 2.1\nName: shipped-marker\nVersion: 1.0\n")
        wheel.writestr(
            f"{name}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{name}/RECORD", "")


@pytest.mark.slow
def test_a_fleet_with_faults(tmp_path: Path) -> None:
    out = tmp_path / "fleet.json"
    command = [sys.executable, str(SCRIPTS / "fleet.py"), "--json", str(out)]
    command += ["--devices", "10", "--faulty", "8", "--channels", "128"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["wrong"] == []
    assert document["outcomes"]["first"] == {"updated": 10}
    assert document["outcomes"]["second"]["updated"] == 2
