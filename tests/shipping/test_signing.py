from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from resedge.errors import InputRefused, RuntimeUnavailable
from resedge.shipping import signing

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")

DATA = b'{"format_version": 1}\n'
NAMESPACE = signing.BUNDLE_NAMESPACE


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    signing.generate(folder)
    return folder


@pytest.fixture(scope="module")
def signers(keys: Path) -> Path:
    path = keys / "allowed_signers"
    path.write_text(signing.allowed_signers(keys / "resedge.pub"))
    return path


def test_a_pair_of_keys_is_two_files_and_the_private_one_is_its_owners_alone(tmp_path: Path) -> None:
    private, public = signing.generate(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resedge", "resedge.pub"]
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public.read_text().startswith("ssh-ed25519 ")
    assert signing.fingerprint(private) == signing.fingerprint(public)


@pytest.mark.parametrize("name", ["resedge", "resedge.pub"])
def test_a_key_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputRefused, match="exists"):
        signing.generate(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_key_into_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="no key can be written"):
        signing.generate(tmp_path / "nowhere")


def test_a_signature_says_whose_it_is(keys: Path, signers: Path) -> None:
    signature = signing.sign(DATA, keys / "resedge", NAMESPACE)
    assert signature.startswith(b"-----BEGIN SSH SIGNATURE-----")
    found = signing.verify(DATA, signature, signers, NAMESPACE, "manifest.json")
    assert found == signing.fingerprint(keys / "resedge.pub")


@pytest.mark.parametrize("case", ["data", "signature", "namespace", "key", "no signature", "nobody trusted"])
def test_what_is_not_signed_by_a_trusted_key_is_refused(
    keys: Path, signers: Path, tmp_path: Path, case: str
) -> None:
    data, key, trusted = DATA, keys / "resedge", signers
    if case == "key":
        key, _ = signing.generate(tmp_path)
    namespace = signing.AGENT_NAMESPACE if case == "namespace" else NAMESPACE
    signature = signing.sign(data, key, namespace)
    if case == "data":
        data += b" "
    if case == "signature":
        lines = signature.split(b"\n")
        lines[2] = lines[2][::-1]
        signature = b"\n".join(lines)
    if case == "no signature":
        signature = b""
    if case == "nobody trusted":
        trusted = tmp_path / "allowed_signers"
    with pytest.raises(InputRefused, match="trusted here"):
        signing.verify(data, signature, trusted, NAMESPACE, "manifest.json")


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resedge.pub"
    for content in ("", "ssh-rsa AAAA", "ssh-ed25519 AA;AA\nssh-ed25519 BB"):
        path.write_text(content)
        with pytest.raises(InputRefused, match="public key"):
            signing.public_key(path)
    with pytest.raises(InputRefused, match="cannot be read"):
        signing.public_key(tmp_path / "none.pub")
    with pytest.raises(InputRefused, match="is not a key"):
        signing.fingerprint(path)
    with pytest.raises(InputRefused, match="cannot sign"):
        signing.sign(DATA, path, NAMESPACE)


def test_no_ssh_keygen_is_said_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match="Install OpenSSH"):
        signing.generate(tmp_path)
