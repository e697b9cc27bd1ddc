from __future__ import annotations

import subprocess
import sys

import pytest

from resedge.errors import UsageError
from resedge.runtimes.table import runtime

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "scipy")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"])
def test_runtime_by_name(name: str) -> None:
    assert runtime(name).name == name


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        runtime("openvinno")
    assert str(caught.value) == (
        "unknown backend 'openvinno' (known: onnxruntime, openvino, tensorrt, tensorrt_rtx). "
        "Did you mean 'openvino'?"
    )
    assert caught.value.exit_code == 2


def test_unknown_name_far_from_all() -> None:
    with pytest.raises(UsageError, match=r"known: onnxruntime, openvino, tensorrt, tensorrt_rtx\)\.$"):
        runtime("zzz")


def test_no_library_is_imported_before_it_is_used() -> None:
    code = (
        "import sys; from resedge.runtimes import border, eager, table;"
        "[table.runtime(name) for name in table.RUNTIMES];"
        f"loaded = set({HEAVY!r}) & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
