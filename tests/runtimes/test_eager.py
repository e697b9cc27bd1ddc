from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resedge.artifacts import Artifact, TensorSpec, sha256_file
from resedge.errors import BuildFailed, StaleArtifact
from resedge.protocols import BuildOptions, RunOptions
from resedge.runtimes.eager import Eager

FP32 = BuildOptions("fp32")


class Witness(nn.Module):
    """Returns what it sees: threads, inference mode, training mode, channels_last input."""

    def forward(self, x: Tensor) -> Tensor:
        seen = (
            torch.get_num_threads(),
            torch.is_inference_mode_enabled(),
            self.training,
            x.is_contiguous(memory_format=torch.channels_last),
        )
        return torch.tensor([[float(value) for value in seen]])


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    weights, path = tmp_path / "weights.safetensors", tmp_path / "source.json"
    weights.write_bytes(b"weights")
    path.write_text("{}")
    spec = TensorSpec("input", ("batch", 3, 4, 4), "float32")
    return Artifact(path, sha256_file(path), "reference/source", (spec,), (), (sha256_file(weights),))


def witness(_folder: Path) -> Witness:
    return Witness()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_the_callers_and_come_back(source: Artifact, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        eager = Eager(witness)
        with eager.open(eager.build(source, source.path.parent, FP32), RunOptions(threads)) as run:
            torch.set_num_threads(3)  # as a neighbour may do in between
            assert run(np.zeros((1, 3, 4, 4), np.float32))[0, 0] == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_come_back_after_an_error(source: Artifact) -> None:
    before = torch.get_num_threads()
    eager = Eager(witness)
    engine = eager.build(source, source.path.parent, FP32)
    with pytest.raises(ZeroDivisionError), eager.open(engine, RunOptions(before + 1)):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_runs_in_inference_mode_evaluating(source: Artifact, memory_format: str) -> None:
    eager = Eager(
        lambda _: Witness().train(), "channels_last" if memory_format == "channels_last" else "contiguous"
    )
    with eager.open(eager.build(source, source.path.parent, FP32), RunOptions(1)) as run:
        _, inference, training, channels_last = run(np.zeros((2, 3, 4, 4), np.float32))[0]
    assert (inference, training) == (1, 0)
    assert channels_last == (memory_format == "channels_last")


def test_loader_is_given_the_reference_folder(source: Artifact) -> None:
    given: list[Path] = []

    def load(folder: Path) -> Witness:
        given.append(folder)
        return Witness()

    eager = Eager(load)
    engine = eager.build(source, source.path.parent, FP32)
    assert given == []
    with eager.open(engine, RunOptions(1)):
        assert given == [source.path.parent]


def test_stale_weights_are_not_loaded(source: Artifact) -> None:
    eager = Eager(lambda _: pytest.fail("the loader was called"))
    engine = eager.build(source, source.path.parent, FP32)
    source.path.with_name("weights.safetensors").write_bytes(b"others")
    with pytest.raises(StaleArtifact), eager.open(engine, RunOptions(1)):
        pytest.fail("the block was entered")


def test_weights_that_change_while_they_are_loaded_are_refused(source: Artifact) -> None:
    def load(folder: Path) -> Witness:
        (folder / "weights.safetensors").write_bytes(b"others")
        return Witness()

    eager = Eager(load)
    engine = eager.build(source, source.path.parent, FP32)
    with pytest.raises(StaleArtifact), eager.open(engine, RunOptions(1)):
        pytest.fail("the block was entered")


def test_source_without_weights_is_refused(source: Artifact) -> None:
    with pytest.raises(BuildFailed, match="0 parents"):
        Eager(witness).build(replace(source, parents=()), source.path.parent, FP32)
