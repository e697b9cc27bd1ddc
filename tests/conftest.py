from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from resedge.agent.layout import Layout
from resedge.artifacts import Artifact
from resedge.runtimes import cuda

DOUBLES = Path(__file__).parent / "runtimes"

Layers = list[tuple[str, list[str]]]


@pytest.fixture(scope="session")
def rtx_layers() -> Callable[[Artifact], Layers]:
    """Build a graph with TensorRT for RTX in a child process: each layer's kind and its inputs' types."""
    pytest.importorskip("tensorrt_rtx", minversion="1.7.1")
    script = Path(__file__).parent / "calibration" / "rtx_layers.py"

    def build(model: Artifact) -> Layers:
        command = [sys.executable, str(script), str(model.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return [(kind, inputs) for kind, inputs in json.loads(done.stdout)]

    return build


@pytest.fixture(scope="session")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401 - Maker
    """Makes small signed bundles that a runtime can run; see tests/shipping/real_bundles.py."""
    pytest.importorskip("onnx")
    defined = runpy.run_path(str(Path(__file__).parent / "shipping" / "real_bundles.py"))
    return defined["Maker"](tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def target(tmp_path: Path, maker: Any) -> Any:  # noqa: ANN401 - Device
    """A device that trusts the maker of bundles, its agent a process; see tests/shipping/devices.py."""
    defined = runpy.run_path(str(Path(__file__).parent / "shipping" / "devices.py"))
    layout = Layout(tmp_path / "device")
    layout.signers.parent.mkdir(parents=True)
    layout.signers.write_text(maker.signers())
    return defined["Device"](layout)


@pytest.fixture(scope="session")
def doubles() -> Mapping[str, Any]:
    """What the doubles' files define."""
    return {
        **runpy.run_path(str(DOUBLES / "cuda_double.py")),
        **runpy.run_path(str(DOUBLES / "trt_double.py")),
    }


@pytest.fixture
def device(
    doubles: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """Put a double of TensorRT, of CUDA and of a GPU in the place of this machine's; returns its `World`."""

    def install(snapshot: str = "tensorrt-10.3.0", cuda_version: str = "12.6.2", **gpu: Any) -> Any:  # noqa: ANN401
        world = doubles["World"](doubles["Gpu"](**gpu))
        trt = doubles["tensorrt_module"](snapshot, world)
        trt.__spec__ = ModuleSpec(trt.__name__, None)  # which torch looks for, if it is imported meanwhile
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        runtime = doubles["cuda_module"](cuda_version, world.gpu)
        for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
            monkeypatch.setitem(sys.modules, name, None)
        parent = runtime.__name__.rpartition(".")[0]
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        if parent != "cuda":
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, runtime.__name__, runtime)
        # A device tree, a driver's file and the free memory are this machine's own, and not the double's.
        nowhere = tmp_path_factory.mktemp("system")
        for file in ("_BOARD_FILE", "_DRIVER_FILE", "_MEMORY_FILE"):
            monkeypatch.setattr(cuda, file, nowhere / file)
        return world

    return install
