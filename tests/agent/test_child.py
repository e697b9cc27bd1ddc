"""What the agent's children do, with runtimes that are there and a double of TensorRT."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from resedge.agent import child, children
from resedge.artifacts import Artifact, Engine, TensorSpec, sha256_bytes, sha256_file
from resedge.bundle import Bundle
from resedge.codec import canonical_json, encode
from resedge.errors import BuildFailed, InputRefused, MachineFailure, NotFinite, RuntimeUnavailable
from resedge.shipping import wire

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")

TYPED = Path(__file__).parents[1] / "runtimes" / "typed_graphs.py"


@pytest.fixture(scope="module")
def bundle(maker: Any) -> Bundle:  # noqa: ANN401
    pytest.importorskip("onnxruntime")
    made: Bundle = maker.bundle()
    return made


def replay_of(bundle: Bundle, **change: Any) -> children.Replay:  # noqa: ANN401
    named = {a.path.as_posix(): a for a in bundle.manifest.files}
    made = children.Replay(
        str(bundle.path),
        bundle.manifest.engines[0],
        named["golden/golden.safetensors"],
        named["golden/trial.json"],
        wire.Limits(),
    )
    return replace(made, **change)


def test_runtimes_are_probed_and_those_that_are_absent_say_why() -> None:
    (found,) = child.probe(children.Probe(("tensorrt",))).runtimes
    assert found.version is None
    assert "tensorrt" in str(found.absent)


def test_an_engine_is_replayed_and_timed(bundle: Bundle) -> None:
    trial = children.ask(wire.Trial, replay_of(bundle))
    assert (trial.engine, trial.images, trial.agreement) == ("onnxruntime:fp32", 12, 1.0)
    assert child.LEAST_CALLS <= trial.calls <= child.MOST_CALLS
    assert 0 < trial.p50_ms <= trial.p95_ms
    assert 10 << 20 < trial.peak_memory_bytes < 1 << 30
    assert trial.passed


def test_what_an_engine_may_not_take_speaks_against_it(bundle: Bundle) -> None:
    limits = wire.Limits(p50_ms=1e-6, p95_ms=1e-6, memory_bytes=1)
    trial = children.ask(wire.Trial, replay_of(bundle, limits=limits))
    assert [reason.split(", and ")[1] for reason in trial.reasons] == [
        "0.000 ms are allowed",
        "0.000 ms are allowed",
        "0.0 MB are allowed",
    ]
    assert not trial.passed


def test_golden_images_that_do_not_agree_speak_against_an_engine(maker: Any, bundle: Bundle) -> None:  # noqa: ANN401
    wrong = maker.bundle(maker.contents(1, wrong=True))
    (reason,) = child.replay(replay_of(wrong)).reasons
    assert reason == "it agrees with eager on 0.0% of 12 golden images, and 100.0% are demanded"


def test_fewer_golden_images_than_are_demanded_speak_against_an_engine(maker: Any, bundle: Bundle) -> None:  # noqa: ANN401
    contents = maker.contents(1)
    images = np.zeros((3, 3, 8, 8), np.float32)
    contents["golden/golden.safetensors"] = save({"input": images, "logits": np.ones((3, 6), np.float32)})
    reasons = child.replay(replay_of(maker.bundle(contents))).reasons
    assert reasons[0] == "there are 3 golden images, and 12 are demanded"


def test_logits_that_are_no_numbers_are_refused(maker: Any, bundle: Bundle) -> None:  # noqa: ANN401
    contents = maker.contents(1)
    images = np.full((12, 3, 8, 8), np.inf, np.float32)
    contents["golden/golden.safetensors"] = save({"input": images, "logits": np.ones((12, 6), np.float32)})
    with pytest.raises(NotFinite):
        children.ask(wire.Trial, replay_of(maker.bundle(contents)))


def test_a_graph_that_the_runtime_refuses(maker: Any, bundle: Bundle) -> None:  # noqa: ANN401
    contents = {**maker.contents(1), "onnx/fp32.onnx": b"no graph"}
    with pytest.raises(BuildFailed, match="onnxruntime refuses it"):
        children.ask(wire.Trial, replay_of(maker.bundle(contents)))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_engine_is_built_in_its_folder(bundle: Bundle, tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    release = tmp_path / "release"
    shutil.copytree(bundle.path, release / "bundle")
    (release / "out").mkdir()
    (graph,) = [a.under(Path("bundle")) for a in bundle.manifest.files if a.kind == "onnx/fp32"]
    made = children.ask(Engine, children.Build(name, "fp32", str(release), graph, "out", str(tmp_path)))
    expected = "bundle/onnx/fp32.onnx" if name == "onnxruntime" else "out/openvino-fp32.xml"
    assert made.artifact.path.as_posix() == expected
    for part in (made.artifact, *made.companions):
        assert sha256_file(release / part.path) == part.sha256


def test_a_plan_of_tensorrt_is_built_and_replayed(device: Callable[..., Any], tmp_path: Path) -> None:
    device()
    graph = runpy.run_path(str(TYPED))["graph"]("fp16").SerializeToString()
    contents = {
        "onnx/fp16.onnx": graph,
        "golden.safetensors": save(
            {"input": np.ones((2, 3, 8, 8), np.float32), "logits": np.ones((2, 6), np.float32)}
        ),
        "trial.json": b'{"format_version": 1, "images": 2, "min_agreement": 0.01}',
    }
    files: Mapping[str, Artifact] = {
        name: Artifact(
            Path(name),
            sha256_bytes(data),
            "onnx/fp16",
            (TensorSpec("input", ("batch", 3, 8, 8), "float32"),),
            (TensorSpec("logits", ("batch", 6), "float32"),),
        )
        for name, data in contents.items()
    }
    for name, data in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "engine").mkdir()
    (tmp_path / "timing").mkdir()
    request = children.Build(
        "tensorrt", "fp16", str(tmp_path), files["onnx/fp16.onnx"], "engine", str(tmp_path / "timing")
    )
    engine = child.build(request)
    assert engine.artifact.path.as_posix() == "engine/tensorrt-fp16.plan"
    assert [part.path.as_posix() for part in engine.companions] == ["engine/tensorrt-fp16.json"]
    assert list((tmp_path / "timing").iterdir())
    trial = child.replay(
        children.Replay(
            str(tmp_path), engine, files["golden.safetensors"], files["trial.json"], wire.Limits()
        )
    )
    assert (trial.engine, trial.images) == ("tensorrt:fp16", 2)


# --- a child that does not answer ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", MachineFailure, r"was killed \(SIGKILL\), as happens"),
        ("import os; os.kill(os.getpid(), 11)", BuildFailed, r"crashed \(SIGSEGV\)"),
        ("raise SystemExit('no such library')", BuildFailed, "no such library"),
        ("import time; time.sleep(60)", BuildFailed, "within 0.2 seconds"),
        ("print('hello')", InputRefused, "is not JSON"),
    ],
)
def test_a_child_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[Exception], said: str
) -> None:
    (tmp_path / "broken.py").write_text(script)
    monkeypatch.setattr(children, "_CHILD", "broken")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(error, match=said):
        children.ask(children.Probed, children.Probe(()), 0.2 if "sleep" in script else 60)


def test_a_child_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(_: object) -> None:
        raise MemoryError

    monkeypatch.setitem(child._VERBS, "probe", (children.Probe, exhaust))
    code, text = child.answer("probe", canonical_json(encode(children.Probe(()))))
    assert code == MachineFailure.exit_code
    with pytest.raises(MachineFailure, match="too little memory"):
        wire.read_answer(children.Probed, text, "child")


def test_a_child_dies_with_the_agent(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "inner = 'from resedge.agent.child import _die_with_the_agent as d; d(); "
        "print(1, flush=True); import time; time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', inner], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); import time; time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        number = int(agent.stdout.readline())
        os.kill(agent.pid, signal.SIGKILL)
    deadline = 500
    while deadline and Path(f"/proc/{number}").exists() and not _is_zombie(number):
        signal.sigtimedwait([], 0.02)
        deadline -= 1
    assert deadline


def _is_zombie(number: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{number}/stat").read_text()
    except FileNotFoundError:
        return True


def test_a_runtime_that_is_not_there(bundle: Bundle) -> None:
    engine = replace(bundle.manifest.engines[0], runtime="tensorrt")
    with pytest.raises((RuntimeUnavailable, BuildFailed)):
        children.ask(wire.Trial, replay_of(bundle, engine=engine))
