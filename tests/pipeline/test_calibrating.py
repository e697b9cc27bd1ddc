from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from resedge import bundle as bundles
from resedge.artifacts import Artifact, load, sha256_file
from resedge.calibration.bakeoff import Score
from resedge.calibration.emulation import emulated
from resedge.images import NOTEBOOK_PREPROCESSING, Frames, ImageSet, read_folder
from resedge.pipeline.calibrating import Calibrated, RangesDocument, Tuning, calibrated
from resedge.pipeline.reporting import Silent
from resedge.pipeline.scoring import SCREENING, Bench
from resedge.pipeline.stages import EagerAnswers, Graphs
from resedge.pipeline.staging import Data, Done, Site
from resedge.store import Store

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job


def _calibrate(
    job: Job, images: ImageSet, tuning: ImageSet, folder: Path, *, thorough: bool = True
) -> Calibrated:
    fp32 = bundles.read(job.bundle).file("onnx/fp32.onnx")
    folder.mkdir()
    np.save(folder / "logits.npy", emulated(fp32, 1)(tuning.prepared(NOTEBOOK_PREPROCESSING)))
    logits = Artifact(folder / "logits.npy", sha256_file(folder / "logits.npy"), "logits")
    return calibrated(
        Site(Store(folder / "cache"), "a machine", 1, Silent()),
        Data(images, tuning, tuning, NOTEBOOK_PREPROCESSING),
        Done(Graphs(fp32, fp32, fp32, 0, (), 0.0, ()), {}, False),
        Done(EagerAnswers(logits, logits, logits, logits), {}, False),
        pair_safe=True,
        tuning=Tuning(max_drop=1.0, thorough=thorough),
    ).value


@pytest.fixture(scope="module")
def photographs(data_folder: Path) -> ImageSet:
    return read_folder(data_folder, (28, 28))


def test_the_order_of_the_images_changes_no_bit(job: Job, photographs: ImageSet, tmp_path: Path) -> None:
    tuning = photographs.select(range(100, 116))
    orders = [np.arange(12), np.random.default_rng(1).permutation(12)]
    made = [
        _calibrate(job, photographs.select(order.tolist()), tuning, tmp_path / str(number))
        for number, order in enumerate(orders)
    ]
    assert made[0].ranges.read() == made[1].ranges.read()
    assert made[0].int8_cpu.read() == made[1].int8_cpu.read()
    assert made[0].tensorrt_in_fp32.read() == made[1].tensorrt_in_fp32.read()


def test_of_a_large_network_only_the_best_two_candidates_see_more_than_a_few_images(
    job: Job, photographs: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[str, bool, int]] = []
    score = Bench._score

    def watched(self: Bench, graph: Artifact, label: str, count: int, weights: Artifact | None) -> Score:
        scored.append((graph.sha256, weights is not None, count))
        return score(self, graph, label, count, weights)

    monkeypatch.setattr(Bench, "_score", watched)
    tuning = photographs.select(range(100, 100 + SCREENING + 4))
    made = _calibrate(job, photographs.select(range(12)), tuning, tmp_path / "fast", thorough=False)
    document = load(RangesDocument, made.ranges.path)
    for choices in document.schemes.values():
        seen = [entry.score.images for entry in choices.methods.scores]
        assert sorted(seen) == [SCREENING] * (len(seen) - 2) + [SCREENING + 4] * 2
        assert choices.methods.best.images == SCREENING + 4
    assert {score.images for score in document.spread_of_subsets} == {SCREENING}
    assert len(scored) == len(set(scored))  # no graph runs twice over the same images


@pytest.mark.parametrize(
    ("test_images", "agreement", "drop", "certifiable"),
    [
        (10_000, 0.998, 0.0, True),  # bound 0.07 points
        (10_000, 0.972, 0.0050, False),  # on the budget itself
        (10_000, 0.972, 0.0020, True),  # bound 0.48
        (2_000, 0.972, 0.0020, False),  # bound 0.83
        (300, 1.0, 0.0, False),  # no flips at all certify 0.5 points from 598 images on
        (0, 1.0, 0.0, False),
    ],
)
def test_a_search_aims_at_what_the_test_images_can_certify(
    test_images: int, agreement: float, drop: float, certifiable: bool
) -> None:
    tuning = Tuning(max_drop=0.005, test_images=test_images)
    score = Score(agreement, 0.0, drop, images=2000)
    assert tuning.is_certifiable(score) == certifiable
    assert tuning.is_within(score)
    expected = [tuning.is_certifiable, tuning.is_within][test_images < 598 :]
    assert list(tuning.goals(thorough=True)) == expected
    assert tuning.goals(thorough=False) == (tuning.is_within,)


def test_images_that_say_nothing_are_warned_of(job: Job, photographs: ImageSet, tmp_path: Path) -> None:
    def decode(indices: Sequence[int]) -> Frames:
        frames = photographs.decode(indices)
        frames[np.asarray(indices) < 2] = 7
        return frames

    spoilt = ImageSet("spoilt", photographs.digests[:4], None, decode)
    made = _calibrate(job, spoilt, photographs.select(range(100, 104)), tmp_path / "spoilt")
    few, one_coloured = made.warnings
    assert few.startswith("4 calibration images are few")
    assert one_coloured.startswith("2 of 4 calibration images are of one colour")
