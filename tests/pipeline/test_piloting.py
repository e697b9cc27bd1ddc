"""A pilot warns of too few images, and changes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from resedge.artifacts import Artifact, Engine, Preprocessing
from resedge.benchmarks.bounds import images_needed
from resedge.images import ImageSet, content_digest
from resedge.pipeline.piloting import PILOT_IMAGES, Piloting, pilot_images
from resedge.pipeline.reporting import Silent
from resedge.protocols import Array, Float32Array
from resedge.runtimes import table

ENGINE = Engine(Artifact(Path("e"), "0" * 64, "engine"), "openvino", "1", "CPU", "int8")
PREPROCESSING = Preprocessing(2, 2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Heard(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def numbered_images(count: int, *, labelled: bool = True) -> ImageSet:
    """Images whose first two bytes are their number, all of class 0."""
    frames = np.zeros((count, 2, 2, 3), np.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    digests = tuple(content_digest(frame) for frame in frames)
    labels = np.zeros(count, np.int64) if labelled else None
    return ImageSet("numbers", digests, labels, lambda indices: frames[list(indices)])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the images that an engine is given, which is wrong on every hundredth."""
    numbers: list[int] = []

    def run(batch: Array) -> Float32Array:
        pixels = np.rint(np.asarray(batch, np.float32)[:, :2, 0, 0] * 255).astype(int)
        given = pixels[:, 0] * 256 + pixels[:, 1]
        numbers.extend(given.tolist())
        logits: Float32Array = np.eye(2, dtype=np.float32)[(given % 100 == 0).astype(int)]
        return logits

    @contextmanager
    def opened(engine: Engine, options: object) -> Iterator[object]:
        yield run

    monkeypatch.setattr(table, "runtime", lambda name: SimpleNamespace(open=opened))
    return numbers


def said(test: ImageSet, piloting: Piloting) -> list[str]:
    heard = Heard()
    eager = np.eye(2, dtype=np.float32)[np.zeros(len(test), int)]
    piloting.say(ENGINE, test, PREPROCESSING, eager, 1, heard)
    return heard.warnings


def test_the_pilot_is_the_smallest_digests_in_any_order_of_files(seen: list[int]) -> None:
    test = numbered_images(2000)
    said(test, Piloting(0.005, 0.95, 1))
    smallest = sorted(test.digests)[:PILOT_IMAGES]
    assert [test.digests[number] for number in seen] == smallest
    turned = test.select(range(1999, -1, -1))
    assert [turned.digests[i] for i in pilot_images(turned)] == smallest


def test_too_few_images_are_said_with_how_many_it_takes(seen: list[int]) -> None:
    (warning,) = said(numbered_images(600), Piloting(0.01, 0.95, 1))
    flips = sum(number % 100 == 0 for number in seen)
    needed = images_needed(flips, 0, PILOT_IMAGES, 0.01, 0.95)
    assert warning == (
        f"openvino int8: {flips} of 500 images flip in a pilot; to settle 1.00 points of top-1 takes "
        f"about {needed:,} images, and there are 600"
    )


def test_several_engines_take_more_images(seen: list[int]) -> None:
    test = numbered_images(600)
    one, five = (said(test, Piloting(0.01, 0.95, engines))[0] for engines in (1, 5))
    assert one != five
    assert len(seen) == 2 * PILOT_IMAGES


def test_enough_images_are_not_mentioned(seen: list[int]) -> None:
    assert said(numbered_images(2000), Piloting(0.10, 0.95, 1)) == []
    assert len(seen) == PILOT_IMAGES


@pytest.mark.parametrize("test", [numbered_images(2000, labelled=False), numbered_images(500)])
def test_without_labels_or_on_a_small_test_there_is_no_pilot(test: ImageSet, seen: list[int]) -> None:
    assert said(test, Piloting(0.005, 0.95, 1)) == []
    assert seen == []
