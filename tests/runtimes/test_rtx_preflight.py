"""What TensorRT for RTX makes of a graph, for real, and what becomes of a child that does not answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from resedge.artifacts import Artifact
from resedge.errors import MachineFailure, ResedgeError, RuntimeUnavailable, StaleArtifact, UsageError
from resedge.runtimes import rtx_preflight
from resedge.runtimes.rtx_preflight import Limits, Preflight, preflight
from resedge.runtimes.trt_layers import LayerSummary

BATCHES = (1, 4, 8)

here = pytest.mark.usefixtures("library")


@pytest.fixture
def library() -> None:
    pytest.importorskip("tensorrt_rtx", minversion="1.7.1")


@here
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("target", ["8.6", "12.0"])
def test_accepted(typed: Mapping[str, Artifact], precision: str, target: str) -> None:
    found = preflight(typed[precision], BATCHES, target)
    assert found.accepted
    assert found.layers is not None
    assert (found.layers.by_type, found.layers.fell_back) == ({precision: 2}, ())
    assert found.version.startswith("1.")
    assert found.sentence() == (
        f"TensorRT for RTX {found.version} parses and builds it for SM {target}, "
        f"2 of 2 convolutions in {precision.upper()}"
    )


@here
def test_refused_with_node_and_module(typed: Mapping[str, Artifact]) -> None:
    found = preflight(typed["int8.shifted"], BATCHES)
    assert not found.accepted
    (reason,) = found.reasons
    assert reason.startswith("QuantizeLinear '1.in.q.node' of module 'layer.1.conv': INVALID_NODE: ")
    assert found.sentence() == f"TensorRT for RTX {found.version} refuses it: {reason}"


@here
def test_turing_loses_int8_and_is_refused_for_it_alone(typed: Mapping[str, Artifact]) -> None:
    assert preflight(typed["fp16"], BATCHES, "7.5").accepted
    with pytest.raises(UsageError, match=r"for compute capability 7\.5 .* INT8 convolutions in FP16"):
        preflight(typed["int8"], BATCHES, "7.5")


@here
@pytest.mark.parametrize("target", ["8.7", "11.0", "nonsense"])
def test_a_gpu_that_it_does_not_build_for(typed: Mapping[str, Artifact], target: str) -> None:
    with pytest.raises(UsageError, match=f"does not build for compute capability {target}"):
        preflight(typed["int8"], BATCHES, target)


@here
def test_a_child_that_is_not_done_in_time(typed: Mapping[str, Artifact]) -> None:
    with pytest.raises(MachineFailure, match=r"not done with the graph in 0\.01 seconds"):
        preflight(typed["int8"], BATCHES, limits=Limits(seconds=0.01))


@here
def test_a_changed_graph_is_not_looked_at(typed: Mapping[str, Artifact]) -> None:
    with pytest.raises(StaleArtifact):
        preflight(replace(typed["int8"], sha256="0" * 64), BATCHES)


def test_it_is_not_installed(typed: Mapping[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx_preflight, "installed_version", lambda: None)
    with pytest.raises(RuntimeUnavailable, match=r"not installed.*resedge\[tensorrt-rtx\]"):
        preflight(typed["int8"], BATCHES)


def test_impossible_batch_sizes(typed: Mapping[str, Artifact]) -> None:
    with pytest.raises(UsageError, match="batch range"):
        preflight(typed["int8"], (8, 4, 1))


def test_the_limit_is_of_memory_and_not_of_addresses() -> None:
    code = (
        "import mmap; from resedge.runtimes.rtx_child import limit; limit(1 << 29)\n"
        "mmap.mmap(-1, 1 << 30, flags=mmap.MAP_SHARED)\n"
        "try:\n    bytearray(1 << 30)\n"
        "except MemoryError:\n    raise SystemExit(7) from None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put another child in the place of the one that builds."""

    def install(code: str) -> None:
        (tmp_path / "another_child.py").write_text(f"import os, signal, sys\n{code}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(rtx_preflight, "_CHILD", "another_child")
        monkeypatch.setattr(rtx_preflight, "installed_version", lambda: "1.7.1")

    return install


def test_a_crash_is_an_answer(typed: Mapping[str, Artifact], child: Callable[[str], None]) -> None:
    child("os.kill(os.getpid(), signal.SIGSEGV)")
    found = preflight(typed["int8"], BATCHES)
    assert found == Preflight("1.7.1", "8.6", ("its parser or builder crashed (SIGSEGV)",), None)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (
            "sys.stderr.write('what(): std::bad_alloc'); sys.stderr.flush(); os.abort()",
            MachineFailure,
            "memory",
        ),
        ("sys.exit('broken')", MachineFailure, "broken"),
        ("sys.exit(3)", MachineFailure, "another_child ended with 3"),
        ("sys.stderr.write('too old'); sys.exit(4)", RuntimeUnavailable, "too old"),
        ("sys.stderr.write('no such GPU'); sys.exit(2)", UsageError, "no such GPU"),
    ],
)
def test_no_answer_is_an_error(
    typed: Mapping[str, Artifact],
    child: Callable[[str], None],
    code: str,
    kind: type[ResedgeError],
    words: str,
) -> None:
    child(code)
    with pytest.raises(kind, match=words) as caught:
        preflight(typed["int8"], BATCHES)
    assert type(caught.value) is kind


def test_what_fell_back_is_named() -> None:
    layers = LayerSummary(9, 0, 3, {"fp16": 1, "int8": 2}, ("layer.1.conv",))
    assert Preflight("1.7.1", "8.6", (), layers).sentence() == (
        "TensorRT for RTX 1.7.1 parses and builds it for SM 8.6, 2 of 3 convolutions in INT8, "
        "1 of 3 convolutions in FP16; INT8 in the graph and not in the plan: layer.1.conv"
    )
