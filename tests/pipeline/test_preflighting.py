"""The stage of an export in which NVIDIA's parser and builder look at the graphs for TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resedge import bundle as bundles
from resedge.artifacts import Artifact
from resedge.errors import MachineFailure, ResedgeError, RuntimeUnavailable, UsageError
from resedge.pipeline import preflighting
from resedge.pipeline.preflighting import preflights
from resedge.pipeline.reporting import Silent
from resedge.pipeline.staging import Site
from resedge.runtimes.rtx_preflight import Preflight
from resedge.runtimes.trt_layers import LayerSummary
from resedge.store import Store

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job

LAYERS = LayerSummary(40, 0, 9, {"int8": 9}, ())
BATCHES = (1, 8, 32)


class Heard(Silent):
    def __init__(self) -> None:
        self.stages: list[tuple[str, bool]] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def stage(self, name: str, detail: str, *, reused: bool = False) -> None:
        self.stages.append((f"{name} {detail}", reused))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Store(tmp_path / "cache"), "machine", 1, Heard())


@pytest.fixture
def graph(job: Job) -> Artifact:
    return bundles.read(job.bundle).file("onnx/int8.tensorrt.onnx")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Preflight | ResedgeError], list[str]]:
    """Have the library answer so; returns the list of what it was asked."""

    def install(answer: Preflight | ResedgeError) -> list[str]:
        asked: list[str] = []

        def preflight(graph: Artifact, batch_range: tuple[int, int, int]) -> Preflight:
            asked.append(f"{graph.path.name} {batch_range}")
            if isinstance(answer, ResedgeError):
                raise answer
            return answer

        monkeypatch.setattr(preflighting, "installed_version", lambda: "1.7.1")
        monkeypatch.setattr(preflighting, "preflight", preflight)
        return asked

    return install


def heard(site: Site) -> Heard:
    assert isinstance(site.reporter, Heard)
    return site.reporter


def test_it_is_looked_at_once_and_said_what_it_proves(
    site: Site, graph: Artifact, answers: Callable[..., list[str]]
) -> None:
    asked = answers(Preflight("1.7.1", "8.6", (), LAYERS))
    for reused in (False, True):
        found = preflights(site, [graph], BATCHES)
        assert found["onnx/int8.tensorrt.onnx"].value.layers == LAYERS
        line, was_reused = heard(site).stages[-1]
        assert was_reused is reused
        assert line.startswith("preflight int8.tensorrt.onnx: TensorRT for RTX 1.7.1 parses and builds it")
        assert line.endswith("9 of 9 convolutions in INT8")
    assert asked == ["int8.tensorrt.onnx (1, 8, 32)"]
    assert "it alone can show" in heard(site).notes[0]
    assert heard(site).warnings == []


def test_a_refusal_is_warned_of_and_proves_nothing(
    site: Site, graph: Artifact, answers: Callable[..., list[str]]
) -> None:
    answers(Preflight("1.7.1", "8.6", ("Conv 'a': no", "Conv 'b': no"), None))
    assert not preflights(site, [graph], BATCHES)["onnx/int8.tensorrt.onnx"].value.accepted
    assert heard(site).warnings == [
        "int8.tensorrt.onnx: TensorRT for RTX 1.7.1 refuses it: Conv 'a': no; Conv 'b': no"
    ]
    assert heard(site).notes == []
    assert heard(site).stages == []


def test_convolutions_that_lose_int8_are_warned_of_by_name(
    site: Site, graph: Artifact, answers: Callable[..., list[str]]
) -> None:
    answers(Preflight("1.7.1", "8.6", (), LayerSummary(40, 0, 9, {"fp16": 1, "int8": 8}, ("stem",))))
    preflights(site, [graph], BATCHES)
    assert heard(site).warnings == ["int8.tensorrt.onnx: INT8 in the graph and not in the plan: stem"]


@pytest.mark.parametrize(
    "error", [MachineFailure("out of memory."), RuntimeUnavailable("too old."), UsageError("another GPU.")]
)
def test_what_cannot_be_looked_at_stops_nothing_and_is_asked_again(
    site: Site, graph: Artifact, answers: Callable[..., list[str]], error: ResedgeError
) -> None:
    asked = answers(error)
    for _ in range(2):
        assert preflights(site, [graph], BATCHES) == {}
    assert len(asked) == 2
    expected = f"int8.tensorrt.onnx is not looked at by NVIDIA's parser: {error}"
    assert heard(site).warnings == [expected] * 2


def test_without_the_library_one_line_says_how_to_get_it(
    site: Site, graph: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflighting, "installed_version", lambda: None)
    assert preflights(site, [graph, graph], BATCHES) == {}
    (note,) = heard(site).notes
    assert "pip install 'resedge[tensorrt-rtx]' (no GPU needed)" in note


def test_no_graphs_is_no_line(site: Site) -> None:
    assert preflights(site, [], BATCHES) == {}
    assert heard(site).notes == []


def test_the_exports_verdict_says_what_was_seen(job: Job) -> None:
    pytest.importorskip("tensorrt_rtx", minversion="1.7.1")
    reasons = {v.precision: v.reasons[0] for v in job.result.verdicts if v.runtime == "tensorrt"}
    for precision, reason in reasons.items():
        assert reason.startswith("to be built on the device with `resedge build`, from onnx/")
        assert reason.endswith(
            f"parses and builds it for SM 8.6, 9 of 9 convolutions in {precision.upper()}"
        ), reason
