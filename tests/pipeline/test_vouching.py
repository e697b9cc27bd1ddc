"""Files that no export of this machine wrote: gated, and loaded in a child before this process does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import resedge
from resedge import bundle as bundles
from resedge.artifacts import Artifact, Engine, TensorSpec, sha256_file
from resedge.bundle import Bundle
from resedge.errors import BuildFailed, InputRefused
from resedge.pipeline import vouching, vouching_child
from resedge.pipeline.local import engine_here
from resedge.pipeline.vouching import Limits, Trial, demand_vouched, demand_vouched_graph, vouch
from resedge.protocols import BuildOptions
from resedge.runtimes.openvino import OpenVino

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job

NO_TIME = Limits(seconds=0.001)
pytestmark = pytest.mark.usefixtures("empty_home")


def _graph(folder: Path, *first: onnx.NodeProto) -> Artifact:
    """A net of one Gemm, behind further nodes that make "x" of "input"."""
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "weight")
    start = "x" if first else "input"
    model = helper.make_model(
        helper.make_graph(
            [*first, helper.make_node("Gemm", [start, "weight"], ["logits"], "fc", transB=1)],
            "resedge",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
            [weight, numpy_helper.from_array(np.array([1 << 14, 3], np.int64), "size")],
        ),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 19)],
    )
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    spec = TensorSpec("input", ("batch", 3), "float32"), TensorSpec("logits", ("batch", 4), "float32")
    return Artifact(path, sha256_file(path), "onnx/fp32", spec[:1], spec[1:])


def _engine(graph: Artifact) -> Engine:
    return Engine(graph, "onnxruntime", "1", "CPU", "fp32")


def test_a_strangers_engine_is_tried_once_and_that_is_kept(tmp_path: Path) -> None:
    engine = _engine(_graph(tmp_path))
    with pytest.raises(InputRefused, match=r"not from an export of this machine, .* within 0\.001 seconds"):
        demand_vouched(engine, NO_TIME)
    demand_vouched(engine)
    demand_vouched(engine, NO_TIME)


def test_where_nothing_can_be_kept_an_engine_is_tried_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").touch()
    monkeypatch.setenv("RESEDGE_HOME", str(tmp_path / "no folder"))
    engine = _engine(_graph(tmp_path))
    demand_vouched(engine)
    with pytest.raises(InputRefused, match="not from an export of this machine"):
        demand_vouched(engine, NO_TIME)
    with pytest.raises(InputRefused, match="Set RESEDGE_HOME"):
        vouch([engine], [])


def test_openvinos_files_are_tried_together(tmp_path: Path) -> None:
    engine = OpenVino().build(_graph(tmp_path), tmp_path, BuildOptions("fp32"))
    demand_vouched(engine)
    (weights,) = engine.companions
    weights.path.write_bytes(b"")
    other = replace(engine, companions=(replace(weights, sha256=sha256_file(weights.path)),))
    with pytest.raises(InputRefused, match=r"openvino-fp32\.xml: is not from .* was refused"):
        demand_vouched(other)


def test_what_was_made_here_is_not_tried(tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    vouch([_engine(graph)], [graph])
    demand_vouched(_engine(graph), NO_TIME)
    demand_vouched_graph(graph, NO_TIME)


@pytest.mark.parametrize("kind", ["onnx/fp32", "what a stranger calls it"])
def test_a_graph_that_the_gate_refuses_is_not_loaded(tmp_path: Path, kind: str) -> None:
    bomb = _graph(tmp_path, helper.make_node("ConstantOfShape", ["size"], ["x"], "bomb"))
    graph = replace(bomb, kind=kind)
    for _ in range(2):
        with pytest.raises(InputRefused, match=r"node 'bomb': is a ConstantOfShape"):
            demand_vouched(_engine(graph))
        with pytest.raises(InputRefused, match=r"node 'bomb': is a ConstantOfShape"):
            demand_vouched_graph(graph)


class _Parser:
    """A runtime that parses; `refuses` says why not."""

    def __init__(self, refuses: str) -> None:
        self.refuses = refuses
        self.read: list[Path] = []

    def parse(self, graph: Artifact) -> None:
        self.read.append(graph.path)
        if self.refuses:
            raise BuildFailed(self.refuses)


@pytest.mark.parametrize("refuses", ["", "tensorrt refuses it: Gemm 'fc': INVALID_NODE."])
def test_before_a_build_the_runtimes_own_parser_reads_what_passed_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    graph, parser = _graph(tmp_path), _Parser(refuses)
    monkeypatch.setattr(vouching_child, "runtime", {"tensorrt": parser}.__getitem__)
    trial = Trial("tensorrt", "parse", (graph,), 60, 1 << 30)
    with pytest.raises(InputRefused, match="INVALID_NODE") if refuses else nullcontext():
        vouching_child.check(trial)
    assert parser.read == [graph.path]
    bomb = _graph(tmp_path, helper.make_node("ConstantOfShape", ["size"], ["x"], "bomb"))
    with pytest.raises(InputRefused, match="node 'bomb': is a ConstantOfShape"):
        vouching_child.check(replace(trial, files=(bomb,)))
    assert len(parser.read) == 1


def test_openvino_is_given_no_other_format(tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    with pytest.raises(InputRefused, match="is not the XML that OpenVINO writes"):
        demand_vouched(Engine(graph, "openvino", "1", "CPU", "fp32", (graph,)))


def test_what_takes_more_memory_than_it_may_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="is not from an export of this machine"):
        demand_vouched(_engine(_graph(tmp_path)), Limits(memory_bytes=0, memory_factor=0))


def test_a_crash_is_the_childs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crashing.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(vouching, "_CHILD", "crashing")
    with pytest.raises(InputRefused, match=r"crashed or ran into a limit \(SIGSEGV\)"):
        demand_vouched(_engine(_graph(tmp_path)))


def test_a_runtime_that_is_not_here_is_left_to_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError(name='onnxruntime')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    demand_vouched(_engine(_graph(tmp_path)))
    assert not (tmp_path / "home" / "state" / "vouched").exists()


def test_an_export_vouches_for_its_bundle(job: Job, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(*_: object, **__: object) -> None:
        pytest.fail("a child was started")

    assert home.is_dir()
    monkeypatch.setattr(subprocess, "run", tried)
    frames = np.zeros((1, 28, 28, 3), np.uint8)
    for name in ("openvino:int8", "onnxruntime:fp32"):
        with resedge.open(job.bundle, name, threads=1) as session:
            assert session.predict(frames).logits.shape == (1, 10)
    for graph in ("onnx/fp16.onnx", "onnx/int8.tensorrt.onnx"):
        demand_vouched_graph(bundles.read(job.bundle).file(graph))


def test_the_bundle_of_another_machine_is_tried_without_torch(job: Job, tmp_path: Path) -> None:
    bundle = tmp_path / "theirs.resedge"
    shutil.copytree(job.bundle, bundle)
    script = f"""
import sys, numpy, resedge
for name in ("onnxruntime:int8", "openvino:int8"):
    with resedge.open({str(bundle)!r}, name, threads=1) as session:
        session.predict(numpy.zeros((1, 28, 28, 3), numpy.uint8))
print(sorted({{"torch", "onnx", "scipy", "rich", "click"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert len(list((tmp_path / "home" / "state" / "vouched").iterdir())) == 2


def test_a_plan_that_a_bundle_brings_is_not_used(job: Job) -> None:
    read = bundles.read(job.bundle)
    plan = replace(read.manifest.engines[0], runtime="tensorrt", precision="int8")
    theirs = Bundle(read.path, replace(read.manifest, engines=(plan,)))
    assert theirs.engine("tensorrt", "int8") is not None
    assert engine_here(theirs, ("tensorrt", "int8")) is None
