from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from resedge.artifacts import Artifact, Engine, sha256_file
from resedge.errors import BuildFailed, RuntimeUnavailable, StaleArtifact
from resedge.protocols import (
    Array,
    BuildOptions,
    Float32Array,
    NoProgress,
    Probe,
    Runner,
    RunOptions,
    Watchable,
    Watched,
)
from resedge.runtimes.table import runtime
from resedge.runtimes.watching import View, faithful_views

OPTIONS = RunOptions(1)
IMAGES = np.random.default_rng(3).normal(size=(3, 3, 8, 8)).astype(np.float32)


@pytest.fixture(params=["openvino", "onnxruntime"])
def watchable(request: pytest.FixtureRequest) -> Watchable:
    found = runtime(request.param)
    try:
        found.probe()
    except RuntimeUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert isinstance(found, Watchable)
    return found


def test_tensors_are_given_out_beside_the_logits(
    watchable: Watchable, fp32: Artifact, tmp_path: Path
) -> None:
    engine = watchable.build(fp32, tmp_path, BuildOptions("fp32"))
    with watchable.watch(engine, ("pool", "relu"), OPTIONS) as run:
        logits, held = run(IMAGES)
        again, _ = run(IMAGES[:1])
    assert list(held) == ["pool", "relu"]
    assert held["relu"].shape == (3, 6, 8, 8)
    pool = held["pool"].astype(np.float32).reshape(3, 6)
    np.testing.assert_allclose(pool, logits, rtol=1e-6)
    pooled = held["relu"].astype(np.float64).mean(axis=(2, 3))
    np.testing.assert_allclose(pooled, logits, rtol=1e-5)
    np.testing.assert_allclose(again, logits[:1], rtol=1e-6)
    with pytest.raises(RuntimeError, match="this engine is closed"):
        run(IMAGES)


def test_a_tensor_that_is_not_there_is_refused(watchable: Watchable, fp32: Artifact, tmp_path: Path) -> None:
    engine = watchable.build(fp32, tmp_path, BuildOptions("fp32"))
    with (
        pytest.raises(BuildFailed, match="refuses it"),
        watchable.watch(engine, ("no such tensor",), OPTIONS),
    ):
        pass


def test_a_changed_file_is_refused(watchable: Watchable, fp32: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(fp32.path.read_bytes())
    engine = watchable.build(replace(fp32, path=copy), tmp_path, BuildOptions("fp32"))
    engine.artifact.path.write_bytes(engine.artifact.path.read_bytes() + b" ")
    with pytest.raises(StaleArtifact), watchable.watch(engine, ("relu",), OPTIONS):
        pass


def test_a_long_name_is_found(watchable: Watchable, fp32: Artifact, tmp_path: Path) -> None:
    """One whose length takes two bytes in the file's format."""
    name, path = "block." * 50, tmp_path / "long.onnx"
    proto = onnx.load(fp32.path)
    proto.graph.node[1].output[0] = proto.graph.node[2].input[0] = name
    onnx.save(proto, path)
    engine = watchable.build(
        replace(fp32, path=path, sha256=sha256_file(path)), tmp_path, BuildOptions("fp32")
    )
    with watchable.watch(engine, (name,), OPTIONS) as run:
        assert run(IMAGES)[1][name].shape == (3, 6, 8, 8)


@dataclass
class Fusing:
    """A runtime whose logits are others while a tensor of `fused`, or all of `pair`, are watched."""

    fused: frozenset[str] = frozenset()
    pair: frozenset[str] = frozenset()
    name: str = "fusing"
    tried: list[View] = field(default_factory=list)

    def probe(self) -> Probe:
        return Probe(self.name, "1", "CPU", {})

    def build(self, model: Artifact, out: Path, options: BuildOptions) -> Engine:
        return Engine(model, self.name, "1", "CPU", options.precision)

    @contextmanager
    def open(self, engine: Engine, options: RunOptions) -> Iterator[Runner]:
        yield lambda batch: np.full((len(batch), 2), np.nan, np.float32)

    @contextmanager
    def watch(self, engine: Engine, tensors: Sequence[str], options: RunOptions) -> Iterator[Watched]:
        self.tried.append(tuple(tensors))
        spoils = self.fused & {*tensors} or (self.pair and self.pair <= {*tensors})

        def run(batch: Array) -> tuple[Float32Array, Mapping[str, Array]]:
            return np.full((len(batch), 2), 0 if spoils else np.nan, np.float32), {}

        yield run


class Counting(NoProgress):
    def __init__(self) -> None:
        self.units = 0

    def advance(self, units: int) -> None:
        self.units += units


KINDS = {"a": "Conv", "b": "Add", "c": "Conv", "d": "Add"}


@pytest.mark.parametrize(
    ("fused", "pair", "views", "sessions"),
    [
        ("", "", ["abcd"], 1),
        ("bd", "", ["ac"], 5),
        ("d", "", ["acb"], 6),
        ("abcd", "", [], 7),
        ("", "ac", ["a", "c", "bd"], 7),
    ],
)
def test_what_can_be_watched_is_told_from_what_cannot(
    fp32: Artifact, fused: str, pair: str, views: list[str], sessions: int
) -> None:
    fusing, counting = Fusing(frozenset(fused), frozenset(pair)), Counting()
    engine = fusing.build(fp32, Path(), BuildOptions("fp32"))
    found = faithful_views(fusing, engine, KINDS, IMAGES, OPTIONS, counting)
    assert ["".join(view) for view in found] == views
    assert len(fusing.tried) == sessions
    assert counting.units == len(KINDS)


def test_nothing_to_watch_needs_no_session(fp32: Artifact) -> None:
    fusing = Fusing()
    engine = fusing.build(fp32, Path(), BuildOptions("fp32"))
    assert faithful_views(fusing, engine, {}, IMAGES, OPTIONS, NoProgress()) == ()
    assert fusing.tried == []


def test_tensorrt_cannot_be_looked_into() -> None:
    assert not isinstance(runtime("tensorrt"), Watchable)
