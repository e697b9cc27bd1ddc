from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resedge.agent import facts as reading
from resedge.agent.layout import Layout
from resedge.errors import InputRefused, ResedgeError, UsageError
from resedge.shipping import wire

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["install"], "arguments are required: digest"),
        (["install", "0" * 64, "--backend", "onnxruntime"], "is no engine"),
        (["install", "../../etc"], "is not the digest"),
        (["collect", "--keep", "0"], "0 is too few"),
        (["collect", "--keep", "x"], "invalid _positive value"),
    ],
)
def test_wrong_usage_is_answered_as_an_error(target: Any, arguments: list[str], said: str) -> None:  # noqa: ANN401
    done = target.call(*arguments)
    assert done.returncode == 2, done.stdout
    with pytest.raises(UsageError, match=said):
        wire.read_answer(wire.Status, done.stdout.decode(), "device")


@pytest.mark.parametrize("limits", ["{", '{"p50": 1}', '{"p50_ms": 0}', "[]"])
def test_limits_that_are_none_are_refused(target: Any, limits: str) -> None:  # noqa: ANN401
    done = target.call("install", "0" * 64, "--limits", limits)
    assert done.returncode == InputRefused.exit_code
    with pytest.raises(InputRefused, match="--limits"):
        wire.read_answer(wire.Installed, done.stdout.decode(), "device")


def test_limits_may_be_left_out() -> None:
    assert wire.read_limits('{"p95_ms": 3}') == wire.Limits(p95_ms=3.0)
    assert wire.read_limits(wire.limits_text(wire.Limits(1.5, None, 7))) == wire.Limits(1.5, None, 7)


def test_a_link_that_is_silent_counts_as_cut(target: Any, maker: Any) -> None:  # noqa: ANN401
    bundle = maker.bundle()
    sent = target.sent(bundle)
    begun = target.here.begin(bundle)
    frames = sent.frames(begun.missing)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "resedge.agent", "receive", "--root", str(target.layout.root)),
            *(sent.digest, "--idle-seconds", "0.3"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(frames[: len(frames) // 2])
        agent.stdin.flush()
        received = wire.read_answer(wire.Received, agent.stdout.read().decode(), "device")
        agent.stdin.close()
    assert 0 < len(received.missing) <= len(begun.missing)


def test_the_root_comes_from_the_option_the_environment_or_the_home(tmp_path: Path) -> None:
    agent = [sys.executable, "-m", "resedge.agent", "probe"]

    def root(*option: str, **environment: str) -> str:
        everything = {**os.environ, "HOME": str(tmp_path / "home"), **environment}
        done = subprocess.run([*agent, *option], capture_output=True, env=everything, check=True)
        return wire.read_answer(wire.Facts, done.stdout.decode(), "device").root

    assert root("--root", str(tmp_path / "a")) == str(tmp_path / "a")
    assert root(RESEDGE_DEVICE_ROOT=str(tmp_path / "b")) == str(tmp_path / "b")
    assert root() == str(tmp_path / "home/.local/share/resedge-device")
    assert list(tmp_path.iterdir()) == []  # looking changes nothing


def test_a_jetsons_facts_are_read_below_another_root(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    world: Any,  # noqa: ANN401
) -> None:
    files = {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "proc/meminfo": "MemTotal:  1000 kB\nMemAvailable:  500 kB\nSwapTotal:  0 kB\n",
        "proc/cpuinfo": "processor : 0\nFeatures : fp asimd asimddp\nCPU part : 0xd42\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("RESEDGE_SYSROOT", str(tmp_path))
    found = reading.facts(Layout(tmp_path / "device" / "deep"))
    assert found.jetson is not None
    assert (found.jetson.l4t, found.jetson.jetpack, found.jetson.compute_capability) == (
        "36.4.3",
        "6.2",
        "8.7",
    )
    assert (found.memory_total, found.memory_available) == (1_024_000, 512_000)
    assert (found.cpu_features, found.exact_int8) == (("asimddp",), True)
    assert found.disk_free > 0
    assert found.runtime("onnxruntime") is not None
    assert found.runtime("eager") is None


def test_a_device_without_numpy_still_answers(target: Any, tmp_path: Path) -> None:  # noqa: ANN401
    (tmp_path / "numpy.py").write_text("raise ImportError('this stands for none')")
    hide = "import sys; sys.modules['numpy'] = None; from resedge.agent.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide, "status", "--root", str(target.layout.root)],
        capture_output=True,
        check=False,
    )
    assert wire.read_answer(wire.Status, done.stdout.decode(), "device").serving is None


def test_runtimes_are_probed_one_by_one_where_one_of_them_crashes(
    target: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    world: Any,  # noqa: ANN401
) -> None:
    from resedge.agent import children
    from resedge.errors import BuildFailed

    real = children.ask

    def crash(kind: type[Any], request: Any, seconds: float | None = None) -> Any:  # noqa: ANN401
        if "openvino" in request.runtimes:
            raise BuildFailed("the probe crashed (SIGSEGV).")
        return real(kind, request, seconds)

    monkeypatch.setattr(children, "ask", crash)
    found = {runtime.name: runtime.absent for runtime in reading.facts(target.layout).runtimes}
    assert found == {
        "tensorrt": None,
        "openvino": "the probe crashed (SIGSEGV).",
        "onnxruntime": None,
    }


def test_an_error_of_the_disk_is_an_answer_too(target: Any) -> None:  # noqa: ANN401
    target.layout.root.chmod(0o700)
    target.layout.releases.write_text("a file in the place of a folder")
    done = target.call("collect", "--keep", "1")
    assert done.returncode == InputRefused.exit_code
    with pytest.raises(ResedgeError, match="releases"):
        wire.read_answer(wire.Collected, done.stdout.decode(), "device")


def test_progress_comes_on_standard_error_one_line_each(target: Any, maker: Any) -> None:  # noqa: ANN401
    bundle = maker.bundle()
    sent = target.sent(bundle)
    begun = target.here.begin(bundle)
    done = target.call("receive", sent.digest, given=sent.frames(begun.missing))
    lines = [json.loads(line) for line in done.stderr.decode().splitlines()]
    total = sum(len(file.chunks) for file in begun.missing)
    assert [(line["state"], line["done"], line["total"]) for line in lines] == [
        ("receive", number, total) for number in range(1, total + 1)
    ]
