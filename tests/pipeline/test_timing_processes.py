"""Fresh processes: their rounds joined, their failures told, an interrupt, and nothing left behind.

What stands in for the child here is the real one with other systems to time, or one that fails in its place.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resedge.artifacts import Artifact, Engine, TensorSpec, sha256_bytes
from resedge.benchmarks.rounds import Samples
from resedge.errors import InputRefused, MachineFailure, ResedgeError, RuntimeUnavailable
from resedge.pipeline import timing_processes
from resedge.pipeline.timing import Inputs, Job, Pace
from resedge.pipeline.timing_files import read_job, read_samples, write_job, write_samples
from resedge.pipeline.timing_processes import shares, time_apart
from resedge.protocols import NoProgress

INPUTS = Inputs(np.ones((2, 3, 4, 4), np.float32), np.full((2, 4, 4, 3), 7, np.uint8))
SOURCE = Artifact(Path("/models/reference/source.json"), "1" * 64, "reference/source", parents=("2" * 64,))
JOB = Job(SOURCE, (), threads=1, seed=5, pace=Pace(5, 0.0, 4, 0.1))

# The real child, with two systems that take no time worth speaking of, on a clock of their own.
TIMES_TOYS = """
import itertools, os, sys
from resedge.pipeline import timing_child
from resedge.benchmarks.rounds import measure

def time_here(job, inputs, progress, stop):
    print("a library says hello")
    os.write(1, b"round\\nand so does native code\\n")
    ticks = itertools.count(job.seed, 1_000_000)
    arms = {"eager": lambda: next(ticks), "engine": lambda: next(ticks)}
    return measure(arms, "eager", rounds=job.pace.rounds, block_seconds=0.0, min_calls=4, seed=job.seed,
                   progress=progress, warm_seconds=0.01, clock=lambda: next(ticks), stop=stop)

timing_child.time_here = time_here
sys.exit(timing_child.main(sys.argv[1:]))
"""
# As above, and after its second round it waits for an interrupt, as a long block would.
WAITS = TIMES_TOYS.replace(
    "    return measure(",
    "    import time\n"
    "    go_on = stop\n"
    "    def stop():\n"
    "        while told[0] == 2 and not go_on():\n"
    "            time.sleep(0.01)\n"
    "        return go_on()\n"
    "    told, advance = [0], progress.advance\n"
    "    def counting(units):\n"
    "        told[0] += units\n"
    "        advance(units)\n"
    "    progress.advance = counting\n"
    "    return measure(",
)


class Heard(NoProgress):
    def __init__(self, at: int = 0, raises: BaseException | None = None) -> None:
        self.said: list[object] = []
        self._at, self._raises = at, raises

    def start(self, label: str, total: int) -> None:
        self.said.append((label, total))

    def advance(self, units: int) -> None:
        self.said.append(units)
        if self._raises and self.said.count(1) == self._at:
            raise self._raises

    def finish(self) -> None:
        self.said.append("end")


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a program in the place of the child."""

    def put(program: str) -> None:
        (tmp_path / "stand_in.py").write_text(textwrap.dedent(program))
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        monkeypatch.setattr(timing_processes, "_CHILD", "stand_in")

    return put


@pytest.mark.parametrize(
    ("rounds", "processes", "expected"),
    [(20, 3, (7, 7, 6)), (20, 1, (20,)), (3, 3, (1, 1, 1)), (5, 2, (3, 2))],
)
def test_rounds_are_shared_as_equally_as_they_can_be(
    rounds: int, processes: int, expected: tuple[int, ...]
) -> None:
    assert shares(rounds, processes) == expected


def test_a_job_comes_back_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    plan = Artifact(tmp_path / "link" / "a.bin", "3" * 64, "engine", meta={"batch_range": [1, 2, 4]})
    engine = Engine(plan, "openvino", "1", "CPU", "int8", (replace(plan, path=tmp_path / "b.bin"),))
    job = replace(JOB, engines=(engine,), self_check=True)
    write_job(tmp_path, job, INPUTS)
    found, inputs = read_job(tmp_path)
    real = replace(engine, artifact=replace(plan, path=tmp_path / "real" / "a.bin"))
    assert found == replace(job, engines=(real,))
    np.testing.assert_array_equal(inputs.prepared, INPUTS.prepared)
    np.testing.assert_array_equal(inputs.frames, INPUTS.frames)


@pytest.mark.parametrize(("dtype", "shape"), [("float32", (2, 3, 4, 4)), ("uint8", (2, 4, 4, 3))])
def test_an_engine_is_given_what_its_input_says(dtype: str, shape: tuple[int, ...]) -> None:
    graph = Artifact(Path("a.onnx"), "3" * 64, "onnx/fp32", (TensorSpec("input", shape, dtype),))
    given = INPUTS.of(Engine(graph, "onnxruntime", "1", "CPU", "fp32"))
    assert given.dtype == np.dtype(dtype)
    assert given.shape == shape


def test_samples_come_back_from_their_files(tmp_path: Path) -> None:
    times = {"eager": np.arange(6).reshape(2, 3), "openvino:int8": np.arange(8).reshape(2, 4)}
    began = {"eager": np.array([1, 9]), "openvino:int8": np.array([5, 13])}
    samples = Samples(times, began, (("eager", "openvino:int8"),) * 2, ("eager",), interrupted=True)
    write_samples(tmp_path, samples)
    found = read_samples(tmp_path)
    assert (found.orders, found.unsettled, found.interrupted) == (samples.orders, ("eager",), True)
    for name in times:
        np.testing.assert_array_equal(found.nanoseconds[name], times[name])
        np.testing.assert_array_equal(found.began[name], began[name])


def test_every_process_has_its_share_and_its_order(child: Callable[[str], None]) -> None:
    child(TIMES_TOYS)
    heard = Heard()
    measured, interrupted = time_apart(JOB, INPUTS, 2, heard)
    assert not interrupted
    assert [len(samples.orders) for samples in measured] == [3, 2]
    assert [samples.nanoseconds["engine"].shape for samples in measured] == [(3, 4), (2, 4)]
    assert heard.said == [("latency", 5), 1, 1, 1, 1, 1, "end"]  # what libraries print is no round
    alone, _ = time_apart(replace(JOB, seed=6, pace=replace(JOB.pace, rounds=2)), INPUTS, 1, Heard())
    assert alone[0].orders == measured[1].orders  # the second process draws from the next seed


@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        ("import sys\nsys.stderr.write('runtime x is gone.')\nsys.exit(4)", RuntimeUnavailable, "x is gone."),
        ("raise ZeroDivisionError('inside')", MachineFailure, "ended with 1: .*ZeroDivisionError: inside"),
        (
            "import os, sys\nsys.stderr.write('so far')\nsys.stderr.flush()\nos.abort()",
            MachineFailure,
            r"crashed \(SIGABRT\)\. .*so far.* --backend",
        ),
    ],
)
def test_a_child_that_fails_is_an_error_with_what_it_said(
    child: Callable[[str], None], program: str, kind: type[ResedgeError], words: str
) -> None:
    child(program)
    with pytest.raises(kind, match=words):
        time_apart(JOB, INPUTS, 2, NoProgress())


def test_a_changed_file_is_refused_by_the_child(tmp_path: Path) -> None:
    """The real child: eager's weights are not those of their digest."""
    source = tmp_path / "source.json"
    source.write_bytes(b"{}")
    (tmp_path / "weights.safetensors").write_bytes(b"others")
    artifact = Artifact(source, sha256_bytes(b"{}"), "reference/source", parents=("2" * 64,))
    with pytest.raises(InputRefused, match=r"weights\.safetensors: has changed: SHA-256"):
        time_apart(replace(JOB, source=artifact), INPUTS, 1, NoProgress())


def test_an_interrupt_keeps_the_rounds_that_are_whole(child: Callable[[str], None]) -> None:
    child(WAITS)
    heard = Heard(at=2, raises=KeyboardInterrupt())
    measured, interrupted = time_apart(JOB, INPUTS, 1, heard)
    assert interrupted
    assert [len(samples.orders) for samples in measured] == [2]
    assert measured[0].interrupted
    assert heard.said == [("latency", 5), 1, 1, "end"]


def test_an_interrupt_starts_no_further_process(child: Callable[[str], None]) -> None:
    child(WAITS)
    job = replace(JOB, pace=replace(JOB.pace, rounds=9))
    measured, interrupted = time_apart(job, INPUTS, 3, Heard(at=2, raises=KeyboardInterrupt()))
    assert interrupted
    assert [len(samples.orders) for samples in measured] == [2]


def test_an_interrupt_before_two_rounds_is_one(child: Callable[[str], None]) -> None:
    child(WAITS.replace("told[0] == 2", "told[0] == 1"))
    with pytest.raises(KeyboardInterrupt):
        time_apart(JOB, INPUTS, 1, Heard(at=1, raises=KeyboardInterrupt()))


def test_no_child_outlives_what_started_it(child: Callable[[str], None], tmp_path: Path) -> None:
    child(
        f"""
        import os, time
        open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
        print("round", flush=True)
        time.sleep(600)
        """
    )
    with pytest.raises(LookupError, match="of the reporter"):
        time_apart(JOB, INPUTS, 1, Heard(at=1, raises=LookupError("of the reporter")))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
