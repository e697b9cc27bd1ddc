from __future__ import annotations

import pytest

from resedge.errors import UsageError
from resedge.shipping import hosts


@pytest.mark.parametrize(
    ("text", "name", "user", "port", "ssh"),
    [
        ("nano", "nano", None, None, "nano"),
        ("nano:2222", "nano", None, 2222, "-p 2222 nano"),
        ("me@10.0.0.7", "10.0.0.7", "me", None, "me@10.0.0.7"),
        ("me@nano.local:22", "nano.local", "me", 22, "-p 22 me@nano.local"),
        ("[fe80::1%eth0]", "fe80::1%eth0", None, None, "fe80::1%eth0"),
        ("me@[::1]:2222", "::1", "me", 2222, "-p 2222 me@::1"),
    ],
)
def test_a_device_is_user_host_and_port(
    text: str, name: str, user: str | None, port: int | None, ssh: str
) -> None:
    host = hosts.parse(text)
    assert (host.text, host.name, host.user, host.port) == (text, name, user, port)
    assert host.ssh_arguments == ssh


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@nano",
        "nano:",
        "nano:0",
        "nano:65536",
        "nano:ssh",
        "::1",
        "a b",
        "-oProxyCommand=x",
        "me@-x",
        "[nano",
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"Write \[user@\]host\[:port\]"):
        hosts.parse(text)
