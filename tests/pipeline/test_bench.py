from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resedge import bundle as bundles
from resedge import images, machine
from resedge.artifacts import Artifact
from resedge.bundle import Bundle
from resedge.errors import InputRefused
from resedge.machine import Machine
from resedge.pipeline.datasets import bench_images
from resedge.pipeline.inspecting import saturates_here
from resedge.pipeline.options import BenchOptions
from resedge.pipeline.reporting import Silent

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job


class Heard(Silent):
    """Keeps what was warned of and noted."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


def _written_for(bundle: Bundle, *, pair_safe: bool) -> Bundle:
    def changed(artifact: Artifact) -> Artifact:
        return dataclasses.replace(artifact, meta={**artifact.meta, "pair_safe": pair_safe})

    files = tuple(changed(a) if "pair_safe" in a.meta else a for a in bundle.manifest.files)
    return Bundle(bundle.path, dataclasses.replace(bundle.manifest, files=files))


@pytest.mark.parametrize(
    ("features", "pair_safe", "warned"),
    [(("avx2",), False, True), (("avx2",), True, False), (("avx512_vnni",), False, False)],
)
def test_a_graph_for_another_kind_of_cpu_is_warned_of(
    job: Job, monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], pair_safe: bool, warned: bool
) -> None:
    monkeypatch.setattr(machine, "describe", lambda: Machine("some", features))
    assert saturates_here(_written_for(bundles.read(job.bundle), pair_safe=pair_safe)) == warned


def test_images_that_calibration_has_seen_certify_nothing(job: Job) -> None:
    heard = Heard()
    bundle = bundles.read(job.bundle)
    unseen = bench_images(bundle, BenchOptions(job.bundle, test_data=job.data), heard)
    assert len(unseen) == 120
    assert heard.warnings == ["120 test images also served calibration and were left out"]
    assert heard.notes == []  # the class folders are named as the bundle's labels are


def test_a_bench_on_nothing_but_seen_images_is_refused(job: Job, tmp_path: Path) -> None:
    seen = json.loads((job.bundle / "calibration" / "images.json").read_text())
    digests = {*seen["calibration"], *seen["tuning"]}
    folder = tmp_path / "seen"
    for path in job.data.rglob("*.png"):
        if images.content_digest(images.decode_file(path)) in digests:
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.parent.name)
    with pytest.raises(InputRefused, match="already serve calibration"):
        bench_images(bundles.read(job.bundle), BenchOptions(job.bundle, test_data=folder), Heard())
