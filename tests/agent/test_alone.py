"""The agent as a device has it: one file, Python, numpy and onnxruntime, and nothing else to import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any, TypeVar

import pytest

from resedge import bundle as bundles
from resedge.shipping import wire

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")
pytest.importorskip("onnxruntime")

T = TypeVar("T")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose site-packages hold numpy and onnxruntime alone."""
    environment = tmp_path_factory.mktemp("alone") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python3.*/site-packages")
    for name in ("numpy", "onnxruntime"):
        spec = util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        here = Path(spec.origin).parent
        for found in (here, *here.parent.glob(f"{name}.libs"), *here.parent.glob(f"{name}-*.dist-info")):
            (packages / found.name).symlink_to(found)
    return environment / "bin" / "python"


def test_a_whole_life_with_numpy_and_onnxruntime_alone(
    target: Any,  # noqa: ANN401
    maker: Any,  # noqa: ANN401
    python: Path,
    tmp_path: Path,
) -> None:
    first, second = maker.bundle(counter=1), maker.bundle(maker.contents(2), counter=2)
    agent = tmp_path / "agent.pyz"
    shutil.copyfile(first.path / bundles.AGENT, agent)

    def ask(kind: type[T], *arguments: str, given: bytes = b"") -> T:
        done = subprocess.run(
            [str(python), str(agent), arguments[0], "--root", str(target.layout.root), *arguments[1:]],
            input=given,
            capture_output=True,
            env={"PATH": "/usr/bin:/bin"},
            cwd="/",
            check=False,
        )
        assert done.stdout, done.stderr.decode()
        return wire.read_answer(kind, done.stdout.decode(), "device")

    facts = ask(wire.Facts, "probe")
    assert facts.numpy is not None
    absent = {runtime.name for runtime in facts.runtimes if runtime.version is None}
    assert absent == {"openvino", "tensorrt"}
    for bundle in (first, second):
        sent = target.sent(bundle)
        begun = ask(wire.Begun, "begin", given=sent.request)
        ask(wire.Received, "receive", sent.digest, given=sent.frames(begun.missing))
        installed = ask(wire.Installed, "install", sent.digest)
        assert (installed.outcome, installed.reason) == ("committed", None)
        assert installed.trial is not None
        assert installed.trial.engine == "onnxruntime:fp32"
    assert ask(wire.RolledBack, "rollback").previous == target.sent(second).digest
    assert ask(wire.Collected, "collect", "--keep", "1").in_use == ()
