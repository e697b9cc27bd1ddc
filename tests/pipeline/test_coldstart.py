from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resedge.errors import RuntimeUnavailable
from resedge.pipeline.coldstart import cold_start

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job


def test_each_start_is_a_process_that_answers(job: Job) -> None:
    found = cold_start(job.bundle, ("onnxruntime", "int8"), threads=1, size=2_000_000, starts=2)
    assert found.starts == 2
    assert 0 < found.fastest_ms <= found.first_answer_ms <= found.slowest_ms
    assert 20 < found.peak_mib < 2000  # an interpreter, numpy and a runtime, in MiB
    assert found.file_mb == 2.0


def test_a_process_that_fails_says_why(job: Job) -> None:
    with pytest.raises(RuntimeUnavailable, match="has no tensorrt:int8 engine"):
        cold_start(job.bundle, ("tensorrt", "int8"), threads=1, size=0, starts=1)
