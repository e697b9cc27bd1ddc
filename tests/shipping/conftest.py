from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from resedge import bundle as bundles
from resedge.artifacts import Artifact, Engine, Preprocessing, TensorSpec, sha256_bytes
from resedge.bundle import Bundle, Manifest, ModelInfo, Target
from resedge.pipeline import keys
from resedge.shipping import moments, zipapp

if TYPE_CHECKING:
    from resedge.benchmarks.scripts.loopback import Owner, Servers

ROOT = Path(__file__).parents[2]
FAKE_AGENT = Path(__file__).parent / "fake_agent.py"

MakeBundle = Callable[..., Bundle]


def _manifest(contents: Mapping[str, bytes], engines: tuple[str, ...], **change: Any) -> Manifest:  # noqa: ANN401
    files = tuple(Artifact(Path(name), sha256_bytes(c), "any") for name, c in sorted(contents.items()))
    by_name = {file.path.as_posix(): file for file in files}
    fields: dict[str, Any] = {
        "format_version": 1,
        "counter": 0,
        "expires": None,
        "signing": None,
        "signed_at": None,
        "model": ModelInfo(
            "net",
            "eager",
            "keep",
            TensorSpec("input", ("batch", 3, 8, 8), "float32"),
            TensorSpec("logits", ("batch", 2), "float32"),
        ),
        "preprocessing": Preprocessing(8, 8, (0.5,) * 3, (0.5,) * 3),
        "labels": ("a", "b"),
        "target": Target(("onnxruntime",)),
        "files": files,
        "engines": tuple(Engine(by_name[name], "onnxruntime", "1", "CPU", "fp32") for name in engines),
        "toolchain": {},
        "parents": {},
        "trtexec": {},
    }
    return Manifest(**{**fields, **change})


@pytest.fixture
def write_bundle(tmp_path: Path) -> MakeBundle:
    """Write an unsigned bundle of any contents; `engines` are those that are engines for ONNX Runtime."""

    def write(
        contents: Mapping[str, bytes],
        engines: tuple[str, ...] = (),
        name: str = "net.resedge",
        **change: Any,  # noqa: ANN401
    ) -> Bundle:
        sources = {path: tmp_path / f"{name}-{path.replace('/', '-')}" for path in contents}
        for path, source in sources.items():
            source.write_bytes(contents[path])
        return bundles.publish(_manifest(contents, engines, **change), sources, tmp_path / name).bundle

    return write


@pytest.fixture(scope="session")
def keygen() -> str:
    """ssh-keygen, which makes and checks signatures; tests that need it are skipped without it."""
    found = shutil.which("ssh-keygen")
    if found is None:
        pytest.skip("ssh-keygen is not installed")
    return found


@pytest.fixture(scope="session")
def loopback(keygen: str) -> ModuleType:
    """SSH servers on this machine."""
    pytest.importorskip("asyncssh")
    from resedge.benchmarks.scripts import loopback

    return loopback


@pytest.fixture
def owner(loopback: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Owner:
    """Who runs the commands of a test: a home with a key and nobody's agent."""
    made: Owner = loopback.Owner(tmp_path / "owner")
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return made


@pytest.fixture
def servers(loopback: ModuleType, owner: Owner, tmp_path: Path) -> Iterator[Servers]:
    """SSH servers of asyncssh in a thread of this process."""
    (tmp_path / "servers").mkdir()
    with loopback.Servers(tmp_path / "servers", owner) as running:
        yield running


@dataclass(frozen=True)
class Place:
    """A device of a test: how to reach it, and its folders on this machine."""

    host: str
    port: int
    root: Path

    def tell(self, **told: Any) -> None:  # noqa: ANN401
        """Tell the fake agent what to do."""
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "fake.json").write_text(json.dumps(told))

    @property
    def calls(self) -> list[str]:
        """What the fake agent was asked to do, in order."""
        path = self.root / "calls.txt"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def place_of() -> Callable[[int, Path], Place]:
    """Name a device by its port and the home of its user."""
    return lambda port, home: Place(f"127.0.0.1:{port}", port, home / ".local/share/resedge-device")


@pytest.fixture
def place(
    servers: Servers,
    place_of: Callable[[int, Path], Place],
    tmp_path: Path,
) -> Callable[..., Place]:
    """Start a device with a home of its own."""

    def start(name: str = "device", **environment: str) -> Place:
        home = tmp_path / name
        home.mkdir()
        path = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        port = servers.start(home, {**path, **environment})
        return place_of(port, home)

    return start


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Place], Place]:
    """Have bundles signed with the fake agent; returns what lets a device run it."""
    monkeypatch.setattr(zipapp, "build", FAKE_AGENT.read_bytes)

    def prepare(device: Place) -> Place:
        device.root.mkdir(parents=True)
        (device.root / "site-packages").symlink_to(ROOT)
        return device

    return prepare


@pytest.fixture
def key_pair(tmp_path: Path, keygen: str) -> tuple[Path, Path]:
    """A private and a public key to sign bundles with."""
    return keys.generate(tmp_path / "keys")


@pytest.fixture
def sign(key_pair: tuple[Path, Path]) -> Callable[..., Bundle]:
    """Sign a bundle for so many days."""

    def signed(bundle: Bundle, days: float = 90, key: Path | None = None) -> Bundle:
        now = moments.now()
        return keys.sign(bundle.path, key or key_pair[0], now + timedelta(days=days), now).bundle

    return signed
