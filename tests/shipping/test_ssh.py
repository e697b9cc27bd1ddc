from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from resedge.errors import DeviceUnreachable, InputRefused, MachineFailure
from resedge.shipping import hosts, remote, ssh
from resedge.shipping.remote import Remote, Survey

if TYPE_CHECKING:
    from resedge.benchmarks.scripts.loopback import Owner, Servers
    from tests.shipping.conftest import Place

T = TypeVar("T")
Start = Callable[..., "Place"]


def on(place: Place, task: Callable[[ssh.Device], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        async with ssh.connected(hosts.parse(place.host)) as device:
            return await task(device)

    return asyncio.run(run())


def test_a_program_is_fed_heard_and_its_exit_code_known(place: Start) -> None:
    told: list[str] = []

    def listen(line: str) -> bool:
        told.append(line)
        return line.startswith("for us")

    async def feed() -> AsyncIterator[bytes]:
        for number in range(3):
            yield bytes([number]) * 1_000_000

    ran = on(
        place(),
        lambda device: device.run(
            "cat; echo for us >&2; printf 'a library\\nthe end' >&2; exit 7", feed(), listen
        ),
    )
    assert ran.code == 7
    assert ran.output == b"".join(bytes([number]) * 1_000_000 for number in range(3))
    assert told == ["for us", "a library"]
    assert ran.said == "a library; the end"


def test_a_program_that_is_killed_is_the_machines_failure(place: Start) -> None:
    with pytest.raises(MachineFailure, match=r"killed there \(SIGKILL\)"):
        on(place(), lambda device: device.run("kill -9 $$"))


def test_a_program_that_ends_before_it_has_read_everything_is_heard_all_the_same(place: Start) -> None:
    ran = on(place(), lambda device: device.run("echo enough; exit 5", bytes(8 << 20)))
    assert (ran.code, ran.output) == (5, b"enough\n")


def test_an_answer_without_end_is_refused(place: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "MOST_ANSWER_BYTES", 100_000)
    with pytest.raises(InputRefused, match="answers with more than 100,000 bytes"):
        on(place(), lambda device: device.run("yes"))


def test_a_connection_that_breaks_is_said(
    place: Start,
    loopback: ModuleType,
    owner: Owner,
    servers: Servers,
) -> None:
    device = place()
    relay = loopback.Relay(device.port, cut_each=100_000)
    owner.knows(relay.port, servers.host_key)
    reached = type(device)(f"127.0.0.1:{relay.port}", relay.port, device.root)
    with pytest.raises(DeviceUnreachable, match="cannot be reached"):
        on(reached, lambda there: there.run("cat", bytes(1 << 20)))
    relay.close()


def test_an_identity_that_is_no_key_is_refused(place: Start, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("none")

    async def run(place: Place) -> None:
        async with ssh.connected(hosts.parse(place.host), tmp_path / "key"):
            raise AssertionError

    with pytest.raises(InputRefused, match="key: cannot be used"):
        asyncio.run(run(place()))


def test_names_of_a_device_come_from_the_users_own_configuration(
    place: Start,
    owner: Owner,
) -> None:
    device = place()
    (owner.home / ".ssh" / "config").write_text(f"Host nano\n  HostName 127.0.0.1\n  Port {device.port}\n")
    named = type(device)("nano", device.port, device.root)
    assert on(named, lambda there: there.run("echo $HOME")).output.decode().strip().endswith("device")


def test_a_survey_tells_what_plain_sh_can(place: Start) -> None:
    device = place(RESEDGE_DEVICE_ROOT="/nowhere/yet")

    async def survey(there: ssh.Device) -> Survey:
        return await Remote(there, python="python3", agent="0" * 64).survey()

    found = on(device, survey)
    remote.check_base(found, device.host)
    assert found.root == "/nowhere/yet"
    assert found.keygen
    assert found.signers is None
    assert found.disk_free is not None
    assert found.memory_available is not None
    assert found.memory_available > 1 << 20


def test_what_is_put_arrives_whole_or_not_at_all(place: Start) -> None:
    device = place()

    async def put(there: ssh.Device) -> None:
        away = Remote(there)
        await away.put("wheels", "it's.whl", b"content", "0" * 64)

    with pytest.raises(MachineFailure, match="it arrived damaged"):
        on(device, put)
    assert list((device.root / "wheels").iterdir()) == []
