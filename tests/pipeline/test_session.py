from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import resedge
from resedge import images
from resedge.errors import InputRefused, UsageError

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job


@pytest.mark.parametrize("engine", ["openvino:fp16", "openvino:int8", "onnxruntime:fp32"])
def test_a_session_classifies_frames(job: Job, engine: str) -> None:
    test = images.builtin_test().select(range(2000, 2032))
    with resedge.open(job.bundle, engine, threads=1) as session:
        found = session.predict(test.decode(range(32)))
    assert found.logits.shape == (32, 10)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert test.labels is not None
    assert (found.classes == test.labels).mean() > 0.7
    assert found.labels[0] == session.bundle.manifest.labels[found.classes[0]]


def test_a_session_needs_no_torch(job: Job) -> None:
    script = f"""
import sys, numpy, resedge
with resedge.open({str(job.bundle)!r}, "onnxruntime:int8", threads=1) as session:
    session.predict(numpy.zeros((1, 28, 28, 3), numpy.uint8))
print(sorted({{"torch", "onnx", "scipy", "rich", "click"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_session_cannot_do_is_refused(job: Job) -> None:
    with pytest.raises(UsageError, match="names no precision"):
        resedge.open(job.bundle, "openvino")
    with pytest.raises(InputRefused, match="does not exist"):
        resedge.open(job.bundle / "none", "openvino:int8")
    with (
        resedge.open(job.bundle, "openvino:int8") as session,
        pytest.raises(InputRefused, match="the model takes"),
    ):
        session.predict(np.zeros((1, 32, 32, 3), np.uint8))
