from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resedge import images
from resedge.artifacts import FORMAT_VERSION, Artifact, Preprocessing, TensorSpec, sha256_file
from resedge.bundle import Bundle, Manifest, ModelInfo, Target
from resedge.data import FASHION_MNIST_CLASSES
from resedge.errors import InputRefused, UsageError
from resedge.images import ImageSet
from resedge.pipeline import datasets
from resedge.pipeline.modelling import Model
from resedge.pipeline.options import BenchOptions, ExportOptions
from resedge.pipeline.reporting import Silent
from resedge.protocols import Float32Array

SMALL = Preprocessing(2, 3, mean=(0.5,) * 3, std=(0.5,) * 3)
NAMES = tuple(name.replace("/", "-") for name in FASHION_MNIST_CLASSES)
NONE_SEEN: dict[str, list[str]] = {"calibration": [], "tuning": []}


class Heard(Silent):
    """Keeps what was warned of, noted, and said of stages."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.stages: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str, detail: str, *, reused: bool = False) -> None:
        self.stages.append(detail)


def _folder(path: Path, names: tuple[str, ...], start: int = 0, each: int = 1) -> Path:
    """Write a folder a class; an image's red is its class, its green and blue tell it from others."""
    for label, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (3, 2), (label, start, i)).save(path / name / f"{i}.png")
    return path


def _loose(path: Path, count: int) -> Path:
    path.mkdir()
    for i in range(count):
        Image.new("RGB", (3, 2), (i, 255, 255)).save(path / f"{i}.png")
    return path


def _reds(found: ImageSet) -> list[int]:
    return [int(red) for red in found.decode(range(len(found)))[:, 0, 0, 0]]


def _labels(found: ImageSet) -> list[int]:
    assert found.labels is not None
    return [int(label) for label in found.labels]


def _bundle(
    folder: Path,
    *,
    labels: tuple[str, ...] = FASHION_MNIST_CLASSES,
    preprocessing: Preprocessing = SMALL,
    tested: str = "",
    seen: dict[str, list[str]] = NONE_SEEN,
) -> Bundle:
    """A bundle with no more in it than a bench's choice of images looks at."""
    listed = folder / "calibration" / "images.json"
    listed.parent.mkdir(parents=True)
    listed.write_text(json.dumps(seen))
    border = TensorSpec("border", ("batch", 10), "float32")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        counter=1,
        expires=None,
        signing=None,
        signed_at=None,
        model=ModelInfo("notebook", "eager", "keep", border, border),
        preprocessing=preprocessing,
        labels=labels,
        target=Target(("onnxruntime",)),
        files=(Artifact(Path("calibration/images.json"), sha256_file(listed), "images"),),
        engines=(),
        toolchain={},
        parents={"test_images": tested},
        trtexec={},
    )
    return Bundle(folder, manifest)


# --- labels --------------------------------------------------------------------------------------


def test_classes_are_matched_by_name_where_the_names_are_the_models(tmp_path: Path) -> None:
    heard = Heard()
    tested = _folder(tmp_path / "test", NAMES)
    found = datasets.bench_images(_bundle(tmp_path / "b"), BenchOptions(tmp_path, test_data=tested), heard)
    assert found.class_names == FASHION_MNIST_CLASSES
    assert _labels(found) == _reds(found)
    assert _labels(found) != sorted(_labels(found))  # the folders' order is not the model's
    assert heard.notes == []


def test_other_names_are_matched_in_sorted_order_and_said(tmp_path: Path) -> None:
    heard = Heard()
    names = tuple(f"k{9 - i}" for i in range(10))
    tested = _folder(tmp_path / "test", names)
    found = datasets.bench_images(_bundle(tmp_path / "b"), BenchOptions(tmp_path, test_data=tested), heard)
    assert found.class_names == tuple(sorted(names))
    assert _labels(found) == list(range(10))
    assert _reds(found) == list(range(9, -1, -1))
    assert len(heard.notes) == 1
    assert "k0 = T-shirt/top, k1 = Trouser" in heard.notes[0]


def test_one_name_of_another_class_undoes_the_match_by_name(tmp_path: Path) -> None:
    heard = Heard()
    tested = _folder(tmp_path / "test", (*NAMES[:9], "Wellington"))
    found = datasets.bench_images(_bundle(tmp_path / "b"), BenchOptions(tmp_path, test_data=tested), heard)
    assert _labels(found) == list(range(10))
    assert len(heard.notes) == 1


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    tested = _folder(tmp_path / "test", tuple(f"k{i}" for i in range(9)))
    with pytest.raises(InputRefused, match="has 9 classes, the model has 10"):
        datasets.export_images(ExportOptions(data=tested), SMALL, Silent())


def test_some_classes_are_enough_where_their_names_are_the_models(tmp_path: Path) -> None:
    tested = _folder(tmp_path / "test", NAMES[3:9])
    options = BenchOptions(tmp_path, test_data=tested)
    found = datasets.bench_images(_bundle(tmp_path / "b"), options, Silent())
    assert found.class_names == FASHION_MNIST_CLASSES
    assert sorted(_labels(found)) == [3, 4, 5, 6, 7, 8]


def _npz(path: Path, labels: list[int]) -> Path:
    frames = np.arange(len(labels) * 6, dtype=np.uint8).reshape(-1, 2, 3)
    np.savez(path, images=frames, labels=np.array(labels))
    return path


def test_numbers_are_the_models_classes(tmp_path: Path) -> None:
    heard = Heard()
    options = BenchOptions(tmp_path, test_data=_npz(tmp_path / "test.npz", [9, 0, 3]))
    found = datasets.bench_images(_bundle(tmp_path / "b"), options, heard)
    assert _labels(found) == [9, 0, 3]
    assert found.class_names == FASHION_MNIST_CLASSES
    assert heard.notes == heard.warnings == []


@pytest.mark.parametrize(("labels", "reason"), [([1, 10], "from 1 to 10"), ([-1, 1], "from -1 to 1")])
def test_numbers_that_the_model_lacks_are_refused(tmp_path: Path, labels: list[int], reason: str) -> None:
    options = BenchOptions(tmp_path, test_data=_npz(tmp_path / "test.npz", labels))
    with pytest.raises(InputRefused, match=f"has labels {reason}, the model's classes are 0 to 9"):
        datasets.bench_images(_bundle(tmp_path / "b"), options, Silent())


def test_images_that_cannot_be_decoded_are_listed_and_counted(tmp_path: Path) -> None:
    heard = Heard()
    tested = _folder(tmp_path / "test", NAMES)
    broken = tested / NAMES[0] / "broken.png"
    broken.write_bytes(b"no picture")
    options = BenchOptions(tmp_path, test_data=tested)
    found = datasets.bench_images(_bundle(tmp_path / "b"), options, heard)
    assert len(found) == 10
    (warning,) = heard.warnings
    assert warning.startswith(f"1 of 11 images cannot be decoded and were left out: {broken} (cannot")


def test_calibration_and_test_folders_must_have_the_same_classes(tmp_path: Path) -> None:
    calibration = _folder(tmp_path / "calibration", tuple(f"a{i}" for i in range(10)))
    test = _folder(tmp_path / "test", tuple(f"b{i}" for i in range(10)), start=1)
    with pytest.raises(InputRefused) as refused:
        datasets.export_images(ExportOptions(calibration_data=calibration, test_data=test), SMALL, Silent())
    assert refused.value.where == str(test)
    assert f"{calibration} has a0, a1" in refused.value.what
    assert "has the classes b0, b1" in refused.value.what


@pytest.mark.parametrize("labelled", [True, False])
def test_folders_with_the_same_classes_or_without_are_taken(tmp_path: Path, labelled: bool) -> None:
    heard = Heard()
    test = _folder(tmp_path / "test", NAMES, start=1)
    calibration = tmp_path / "calibration"
    calibration = _folder(calibration, NAMES) if labelled else _loose(calibration, 10)
    split = datasets.export_images(ExportOptions(calibration_data=calibration, test_data=test), SMALL, heard)
    assert [len(s) for s in (split.calibration, split.tuning, split.test)] == [5, 5, 10]
    assert (split.calibration.labels is not None) == labelled
    assert heard.warnings == []


# --- which images --------------------------------------------------------------------------------


def test_images_of_another_size_than_the_models_are_refused(tmp_path: Path) -> None:
    data = _folder(tmp_path / "data", NAMES)
    with pytest.raises(InputRefused, match="is 2x3, the model takes 28x28"):
        datasets.export_images(ExportOptions(data=data), images.NOTEBOOK_PREPROCESSING, Silent())
    bundle = _bundle(tmp_path / "b", preprocessing=images.NOTEBOOK_PREPROCESSING)
    with pytest.raises(InputRefused, match="is 2x3, the model takes 28x28"):
        datasets.bench_images(bundle, BenchOptions(tmp_path, test_data=data), Silent())


@pytest.mark.parametrize(
    ("calibrated", "tested", "warning"),
    [
        (False, False, "calibration and test use the built-in Fashion-MNIST images, not your own"),
        (False, True, "calibration uses the built-in Fashion-MNIST images, not your own"),
        (True, True, None),
    ],
)
def test_own_weights_on_builtin_images_are_warned_of(
    tmp_path: Path, calibrated: bool, tested: bool, warning: str | None
) -> None:
    heard = Heard()
    options = ExportOptions(
        weights=tmp_path / "own.safetensors",
        calibration_data=_folder(tmp_path / "calibration", NAMES) if calibrated else None,
        test_data=_folder(tmp_path / "test", NAMES, start=1) if tested else None,
    )
    as_builtin = replace(images.NOTEBOOK_PREPROCESSING, resize=(28, 28))
    datasets.export_images(options, as_builtin, heard)
    assert heard.warnings == ([warning] if warning else [])


@pytest.mark.parametrize(("takes", "classes"), [(SMALL, 10), (images.NOTEBOOK_PREPROCESSING, 7)])
def test_builtin_images_are_refused_for_a_model_of_another_kind(takes: Preprocessing, classes: int) -> None:
    with pytest.raises(UsageError, match=rf"images of {classes} classes; those that are built in are 28x28"):
        datasets.export_images(ExportOptions(model="resnet-20"), takes, Silent(), classes)


def _model(classes: int, label: str = "resnet-20") -> Model:
    return Model(label, (3, 2, 3), classes, SMALL, None, None, None, (), ())


def test_the_classes_of_a_model_are_the_folders_of_its_images_in_sorted_order(tmp_path: Path) -> None:
    data = _folder(tmp_path / "data", ("10", "2", "1"), each=4)
    heard = Heard()
    found = datasets.export_data(ExportOptions(model="resnet-20", data=data), _model(3), heard)
    assert found.labels == ("1", "10", "2")
    assert f"the model's classes are the class folders of {data}, in sorted order" in heard.notes


def test_classes_that_nobody_names_are_numbered(tmp_path: Path) -> None:
    options = ExportOptions(model="resnet-20", data=_loose(tmp_path / "data", 12))
    assert datasets.export_data(options, _model(3), Silent()).labels == ("0", "1", "2")
    named = datasets.export_data(options, _model(10, "notebook"), Silent())
    assert named.labels == FASHION_MNIST_CLASSES


def test_the_builtin_model_on_builtin_images_is_not_warned_of() -> None:
    heard = Heard()
    split = datasets.export_images(ExportOptions(), images.NOTEBOOK_PREPROCESSING, heard)
    assert heard.warnings == []
    assert [len(s) for s in (split.calibration, split.tuning, split.test)] == [1024, 1024, 10_000]


def test_own_weights_on_own_images_are_not_warned_of(tmp_path: Path) -> None:
    heard = Heard()
    data = _folder(tmp_path / "data", NAMES, each=2)
    datasets.export_images(ExportOptions(weights=tmp_path / "own.safetensors", data=data), SMALL, heard)
    assert heard.warnings == []


def test_a_bench_takes_the_builtin_images_only_for_a_bundle_tested_on_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not made from the built-in images\. .*--test-data"):
        datasets.bench_images(_bundle(tmp_path / "own", tested="ab" * 32), BenchOptions(tmp_path), Silent())
    bundle = _bundle(tmp_path / "builtin", tested=images.builtin_test().sha256)
    assert len(datasets.bench_images(bundle, BenchOptions(tmp_path), Silent())) == 10_000


def test_images_that_calibration_has_seen_are_left_out_however_they_were_saved(tmp_path: Path) -> None:
    heard = Heard()
    test = _folder(tmp_path / "test", NAMES)
    digests = images.read_folder(test, (2, 3)).digests
    for path in sorted(test.rglob("*.png")):
        Image.open(path).save(path, compress_level=0)
    seen = {"calibration": [digests[0]], "tuning": [digests[9]]}
    found = datasets.bench_images(
        _bundle(tmp_path / "b", seen=seen), BenchOptions(tmp_path, test_data=test), heard
    )
    assert found.digests == digests[1:9]
    assert heard.warnings == ["2 test images also served calibration and were left out"]


# --- do the labels fit ---------------------------------------------------------------------------


def _logits(classes: list[int]) -> Float32Array:
    return np.eye(3, dtype=np.float32)[classes]


def _labelled(labels: list[int] | None, names: tuple[str, ...] = ("ant", "bee", "cat")) -> ImageSet:
    return ImageSet(
        origin="made",
        digests=tuple(f"{i:064x}" for i in range(4)),
        labels=None if labels is None else np.array(labels, np.int64),
        decode=lambda indices: np.zeros((len(indices), 2, 3, 3), np.uint8),
        class_names=names,
    )


@pytest.mark.parametrize(
    ("answers", "labels", "top1"),
    [
        ([1, 1, 1, 1], [1, 1, 0, 2], "50.00%"),
        ([2, 2, 0, 1], [1, 1, 0, 2], "25.00%"),
    ],
)
def test_labels_that_hardly_fit_are_warned_of(answers: list[int], labels: list[int], top1: str) -> None:
    heard = Heard()
    datasets.warn_of_labels(_logits(answers), _labelled(labels), heard)
    assert heard.warnings == [
        f"eager's top-1 is {top1}, no better than always answering 'bee': "
        "are the labels in the model's order?"
    ]


@pytest.mark.parametrize("labels", [[1, 1, 0, 2], None])
def test_labels_that_fit_and_missing_ones_are_not_warned_of(labels: list[int] | None) -> None:
    heard = Heard()
    datasets.warn_of_labels(_logits([1, 1, 0, 0]), _labelled(labels), heard)
    assert heard.warnings == []


def test_a_class_without_a_name_goes_by_its_number() -> None:
    heard = Heard()
    datasets.warn_of_labels(_logits([0, 0, 0, 0]), _labelled([2, 2, 0, 1], names=()), heard)
    assert "always answering '2'" in heard.warnings[0]
