"""TensorRT for RTX as a runtime, on the double of it, and what is said of it where there is no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from resedge.artifacts import Artifact
from resedge.errors import RuntimeUnavailable, UsageError
from resedge.protocols import BuildOptions, RunOptions
from resedge.runtimes import tensorrt_rtx
from resedge.runtimes.table import runtime
from resedge.runtimes.trt_plans import read_record

RTX = "tensorrt_rtx-1.7.1"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_builds_for_this_gpu_and_runs(
    typed: Mapping[str, Artifact], device: Callable[..., Any], precision: str, tmp_path: Path
) -> None:
    world = device(RTX, "13.5.0")
    options = BuildOptions(precision, (1, 4, 8), timing_caches=tmp_path / "timing")
    engine = runtime("tensorrt_rtx").build(typed[precision], tmp_path, options)
    assert world.settings["_capabilities"] == ["CURRENT"]
    assert engine.artifact.path.name == f"tensorrt_rtx-{precision}.plan"
    (beside,) = engine.companions
    record = read_record(beside.read(), str(beside.path))
    assert (record.runtime, record.timing_cache_kept) == ("tensorrt_rtx", None)
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    with runtime("tensorrt_rtx").open(engine, RunOptions(1)) as run:
        assert run(images).shape == (3, 6)


def test_probe_names_the_gpu(device: Callable[..., Any]) -> None:
    world = device(RTX, "13.5.0")
    probe = runtime("tensorrt_rtx").probe()
    assert (probe.runtime, probe.device) == ("tensorrt_rtx", world.gpu.name)
    assert set(probe.precisions) == {"fp16", "int8"}


def test_int8_on_turing_is_refused_before_anything_is_built(
    typed: Mapping[str, Artifact], device: Callable[..., Any], tmp_path: Path
) -> None:
    device(RTX, "13.5.0", major=7, minor=5)
    runtime("tensorrt_rtx").build(typed["fp16"], tmp_path, BuildOptions("fp16"))
    with pytest.raises(UsageError, match="INT8 convolutions in FP16"):
        runtime("tensorrt_rtx").build(typed["int8"], tmp_path, BuildOptions("int8"))
    assert not list(tmp_path.glob("*int8*"))


def test_one_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("tensorrt_rtx")
    old.__version__ = "1.6.1.120"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", old)
    with pytest.raises(RuntimeUnavailable, match=r"version 1\.6\.1\.120, 1\.7\.1 is needed.*pip install"):
        tensorrt_rtx.load_library()


@pytest.mark.parametrize("version", [None, "1.7.1.116"])
def test_where_it_cannot_serve_its_use_is_said(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(tensorrt_rtx, "installed_version", lambda: version)
    with pytest.raises(RuntimeUnavailable) as caught:
        runtime("tensorrt_rtx").probe()
    assert ("1.7.1.116 is here to look at the graphs" in str(caught.value)) == (version is not None)
    assert "pip install 'resedge[tensorrt-rtx]'" in str(caught.value)
