from __future__ import annotations

import json
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from resedge import bundle as bundles
from resedge import images
from resedge.cli import main
from resedge.errors import InputRefused
from resedge.images import ImageSet
from resedge.pipeline import presenting
from resedge.pipeline.differing import Differences, Differing
from resedge.pipeline.exporting import export
from resedge.pipeline.options import ExportOptions, Measuring
from resedge.store import Store

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job


def bench(job: Job, *arguments: str | Path) -> Result:
    common = ("--backend", "openvino:int8", "--threads", "1", "--max-drop", "0.5", "--quiet")
    line = ["bench", job.bundle, "--test-data", job.data, *common, *arguments]
    return CliRunner().invoke(main, [str(word) for word in line])


def test_a_bundle_carries_a_page_without_host_path_or_time(job: Job) -> None:
    text = (job.bundle / "verdicts/report.html").read_text()
    engines = bundles.read(job.bundle).manifest.engines
    assert len(engines) == 5
    for words in ("Accuracy against speed", "Sensitivity by layer", "How calibration was chosen"):
        assert words in text
    assert "resedge export notebook --data images --batchnorm split --max-drop 0.5 --threads 1" in text
    for private in (str(job.data.parent), str(job.home), socket.gethostname()):
        assert private not in text
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b|\d\d:\d\d:\d\d", text)
    assert len(text.encode()) < 1_000_000


@pytest.mark.usefixtures("home")
def test_the_page_is_the_same_wherever_the_bundle_goes(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An inconclusive measurement would be made again, and have other figures.
    monkeypatch.setattr(Store, "discard", lambda *_: None)
    folder = tmp_path / "elsewhere" / "images"
    shutil.copytree(job.data, folder)
    options = ExportOptions(
        data=folder,
        batchnorm="split",
        measuring=Measuring(max_drop=0.5, threads=1),
        out=tmp_path / "other.resedge",
    )
    again = export(options).published.bundle.path
    reports = [(bundle / "verdicts/report.html").read_bytes() for bundle in (job.bundle, again)]
    assert reports[0] == reports[1]


@pytest.mark.usefixtures("home")
def test_a_bench_writes_its_pages_and_compares(job: Job, tmp_path: Path) -> None:
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "html", "md")}
    old = job.bundle / "verdicts/all.json"
    result = bench(
        *(job, "--json", files["json"], "--html", files["html"], "--markdown", files["md"]),
        *("--compare", old),
    )
    assert result.exit_code in (0, 1, 3), result.stderr
    document: dict[str, Any] = json.loads(files["json"].read_text())
    test_images = json.loads(old.read_text())["conditions"]["test_images"]
    assert document["conditions"]["test_images"] == test_images
    assert document["conditions"]["budget"] == {"max_drop": 0.5, "min_speedup": 1.0, "confidence": 0.95}
    (changed,) = document["compared"]["engines"]
    assert document["compared"]["same_images"] is True
    assert changed["accuracy"]["loss"] == 0
    if changed["latency"]["relation"] == "slower":
        assert result.exit_code == 1
    for text in (files["html"].read_text(), files["md"].read_text(), " ".join(result.stdout.split())):
        assert "Both runs used the same test images" in text
        assert "only in the older run: OpenVINO fp32" in text
    for text in (files["html"].read_text(), files["md"].read_text()):
        assert "OpenVINO int8" in text
        assert "resedge bench model.resedge --test-data images --backend openvino:int8" in text


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("change", "words"),
    [({"model": "other"}, "is of the model 'other'"), ({"schema": 2}, "has the schema 2")],
)
def test_a_document_that_does_not_compare_is_refused_before_anything_is_measured(
    job: Job, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    old = tmp_path / "old.json"
    document = json.loads((job.bundle / "verdicts/all.json").read_text())
    old.write_text(json.dumps({**document, **change}))
    result = bench(job, "--compare", old)
    assert result.exit_code == 5
    assert f"{old}: {words}" in result.stderr
    assert result.stdout == ""


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("option", ["--html", "--markdown"])
def test_a_page_without_a_place_is_refused_first(job: Job, tmp_path: Path, option: str) -> None:
    result = bench(job, option, tmp_path / "none" / "page")
    assert result.exit_code == 2
    assert option in result.stderr
    assert "is not a folder" in result.stderr


def test_a_document_that_is_not_there_is_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="cannot be read"):
        presenting.older(tmp_path / "none.json", bundles.read(job.bundle).manifest.model)


def noise(count: int) -> ImageSet:
    frames = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    digests = tuple(map(images.content_digest, frames))
    labels = np.zeros(count, np.int64)
    return ImageSet("noise", digests, labels, lambda indices: frames[list(indices)], ("a", "b"))


def test_pictures_that_do_not_compress_are_fewer_of_each_engine_alike() -> None:
    test = noise(24)
    first = tuple(Differing(i, 0, 1) for i in range(24))
    found = {("openvino", p): Differences(99, first) for p in ("fp32", "fp16", "int8")}
    flips = presenting.evidence_of(None, test, ("a", "b"), found, {}, "").flips
    assert {len(one.shown) for one in flips} == {12}
    assert sum(len(flip.png) for one in flips for flip in one.shown) <= 450_000
    assert flips[0].shown[0].label == "a"
    assert (flips[0].shown[0].eager, flips[0].shown[0].engine) == ("a", "b")


def test_images_without_labels_or_names_are_shown_by_number() -> None:
    test = replace(noise(2), labels=None, class_names=())
    found = {("openvino", "int8"): Differences(1, (Differing(1, 7, 3),))}
    (flip,) = presenting.evidence_of(None, test, (), found, {}, "").flips[0].shown
    assert (flip.image, flip.label, flip.eager, flip.engine) == (1, None, "7", "3")
