from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resedge.artifacts import Artifact, TensorSpec
from resedge.errors import BuildFailed, RuntimeUnavailable
from resedge.protocols import RunOptions
from resedge.runtimes.border import imported, input_spec, refusals, runner

SPEC = TensorSpec("input", ("batch", 2), "float32")
ARTIFACT = Artifact(Path("model.onnx"), "0" * 64, "onnx/fp32", (SPEC,))


def test_missing_library_is_not_installed() -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        imported("thing", "resedge_has_no_such_library", "Try: pip install thing")
    assert str(caught.value) == "runtime 'thing' is not installed. Try: pip install thing"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10: cannot"),
        ("import resedge_has_no_such_dependency", "resedge_has_no_such_dependency"),
    ],
)
def test_broken_library_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    (tmp_path / "resedge_broken_library.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeUnavailable, match=f"is installed and cannot be loaded .*{reason}"):
        imported("thing", "resedge_broken_library", "")
    assert "resedge_broken_library" not in sys.modules


def test_foreign_errors_become_one_short_line() -> None:
    with pytest.raises(BuildFailed) as caught, refusals("thing", Path("model.onnx"), KeyError):
        raise KeyError("first\n   second" + "x" * 500)
    assert str(caught.value).startswith("model.onnx: thing refuses it: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert isinstance(caught.value.__cause__, KeyError)


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), refusals("thing", Path("model.onnx"), KeyError):
        raise ZeroDivisionError


def test_batch_is_fixed_where_the_model_leaves_it_open() -> None:
    assert input_spec(ARTIFACT, RunOptions(1)).shape == ("batch", 2)
    assert input_spec(ARTIFACT, RunOptions(1, batch=4)).shape == (4, 2)
    static = replace(ARTIFACT, inputs=(TensorSpec("input", (1, 2), "float32"),))
    assert input_spec(static, RunOptions(1, batch=4)).shape == (1, 2)


@pytest.mark.parametrize("inputs", [(), (SPEC, SPEC)])
def test_one_input_is_expected(inputs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(BuildFailed, match=f"names {len(inputs)} inputs"):
        input_spec(replace(ARTIFACT, inputs=inputs), RunOptions(1))


def test_well_laid_batches_are_passed_on_without_a_copy() -> None:
    batch = np.ones((3, 2), np.float32)
    with runner(SPEC, lambda given: np.array(given is batch, np.float32)) as run:
        assert run(batch) == 1
        assert run(batch[::2]) == 0
