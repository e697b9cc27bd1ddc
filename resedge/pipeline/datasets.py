"""Which images an export and a bench work on: the built-in ones, or the user's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from resedge import data as builtin
from resedge import images
from resedge.artifacts import Preprocessing, decode, parse_json
from resedge.bundle import Bundle
from resedge.errors import InputRefused, UsageError
from resedge.images import ImageSet, Split
from resedge.pipeline.calibrating import SeenImages
from resedge.pipeline.modelling import Model
from resedge.pipeline.options import BenchOptions, ExportOptions
from resedge.pipeline.reporting import Reporter
from resedge.pipeline.staging import Data
from resedge.protocols import Float32Array

_NAMED_AT_MOST = 20
_PAIRS_SHOWN = 20

UNLABELLED = "the test images have no labels: verdicts rest on agreement with eager alone"


def export_data(options: ExportOptions, model: Model, reporter: Reporter) -> Data:
    """Return the images that the options name, prepared for a model, with the names of its classes.

    Raises:
        UsageError, InputRefused: As `export_images`.
    """
    split = export_images(options, model.preprocessing, reporter, model.classes)
    of_notebook = builtin.FASHION_MNIST_CLASSES if model.label == "notebook" else ()
    named = split.test.class_names or split.calibration.class_names or of_notebook
    labels = named or tuple(str(number) for number in range(model.classes))
    return Data(split.calibration, split.tuning, split.test, model.preprocessing, labels, options.input)


def export_images(
    options: ExportOptions,
    preprocessing: Preprocessing,
    reporter: Reporter,
    classes: int = len(builtin.FASHION_MNIST_CLASSES),
) -> Split:
    """Return the three disjoint sets that the options name; the built-in ones where they name none.

    Args:
        options: Name folders, or none.
        preprocessing: What the model takes.
        reporter: Who is told.
        classes: How many the model has.

    Raises:
        UsageError: --data beside --calibration-data or --test-data, or built-in images for a model of
            another size or number of classes.
        InputRefused: The images are not what they must be, or two sets have classes of different names.
    """
    seed = options.measuring.seed
    if options.data is not None:
        if options.calibration_data or options.test_data:
            raise UsageError(
                "--data is split into calibration, tuning and test images.",
                cure="Give --data alone, or --calibration-data and --test-data.",
            )
        labels = builtin.FASHION_MNIST_CLASSES if options.model == "notebook" else ()
        split = images.split(_own(options.data, labels, classes, preprocessing, reporter), seed)
    else:
        source, test = _apart(options, classes, preprocessing, reporter)
        split = images.disjoint(*images.halve(source, seed), test)
    sets = (split.calibration, split.tuning, split.test)
    sizes = "{:,} for calibration, {:,} for tuning, {:,} for test".format(*map(len, sets))
    reporter.stage("images", f"{sizes}, disjoint by digest ({split.test.origin})")
    if split.overlaps:
        reporter.warn(f"{split.overlaps} test images also occur in another set and were left out")
    if split.test.labels is None:
        reporter.warn(UNLABELLED)
    return split


def _apart(
    options: ExportOptions, classes: int, preprocessing: Preprocessing, reporter: Reporter
) -> tuple[ImageSet, ImageSet]:
    """Return the images to calibrate with and those to test with, from a place each or built in."""
    chosen, tested = options.calibration_data, options.test_data
    if not (chosen and tested):
        _demand_builtin(options.model, classes, preprocessing)
    builtin_names = options.model == "notebook" or not (chosen and tested)
    labels = builtin.FASHION_MNIST_CLASSES if builtin_names else ()
    decoding = images.decoding_of(preprocessing)
    source = images.builtin_calibration(decoding)
    if chosen:
        source = _own(chosen, labels, classes, preprocessing, reporter)
    test = _own(tested, labels, classes, preprocessing, reporter) if tested else images.builtin_test(decoding)
    unnamed = [use for use, folder in (("calibration", chosen), ("test", tested)) if folder is None]
    if options.weights is not None and unnamed:
        verb = "use" if len(unnamed) > 1 else "uses"
        reporter.warn(f"{' and '.join(unnamed)} {verb} the built-in Fashion-MNIST images, not your own")
    if chosen and tested and source.class_names and test.class_names:
        _check_same_classes(source, test)
    return source, test


def _demand_builtin(model: str, classes: int, preprocessing: Preprocessing) -> None:
    """Refuse the built-in images for a model that they cannot be meant for."""
    notebook = images.NOTEBOOK_PREPROCESSING
    size, own = (preprocessing.height, preprocessing.width), (notebook.height, notebook.width)
    named = len(builtin.FASHION_MNIST_CLASSES)
    if size != own or classes != named:
        raise UsageError(
            f"{model} takes {size[0]}x{size[1]} images of {classes} classes; those that are built in are "
            f"{own[0]}x{own[1]}, of {named}.",
            cure="Give images with --data, or with --calibration-data and --test-data.",
        )


def _check_same_classes(source: ImageSet, test: ImageSet) -> None:
    if source.class_names != test.class_names:
        raise InputRefused(
            f"has the classes {', '.join(test.class_names)}; {source.place} has "
            f"{', '.join(source.class_names)}.",
            where=test.place,
            cure="Name the classes alike in both.",
        )


def bench_images(bundle: Bundle, options: BenchOptions, reporter: Reporter) -> ImageSet:
    """Return the test images, without those that the bundle's calibration or tuning has seen.

    Raises:
        UsageError: No test images are named, and the bundle was not tested on the built-in ones.
        InputRefused: The images are not what they must be, or none is left.
    """
    manifest = bundle.manifest
    if options.test_data is not None:
        labels = manifest.labels
        test = _own(options.test_data, labels, len(labels), manifest.preprocessing, reporter)
    else:
        test = images.builtin_test(images.decoding_of(manifest.preprocessing))
        if manifest.parents.get("test_images") != test.sha256:
            raise UsageError(
                "this bundle was not made from the built-in images.",
                where=str(bundle.path),
                cure="Name test images with --test-data.",
            )
    listed = bundle.file("calibration/images.json")
    where = str(listed.path)
    seen = decode(SeenImages, parse_json(listed.read().decode(), where), where)
    unseen = images.without(test, frozenset(seen.calibration) | frozenset(seen.tuning))
    if len(unseen) < len(test):
        left_out = len(test) - len(unseen)
        reporter.warn(f"{left_out} test images also served calibration and were left out")
    if unseen.labels is None:
        reporter.warn(UNLABELLED)
    reporter.stage("images", f"{len(unseen):,} test images ({test.origin})")
    return unseen


def warn_of_labels(eager_logits: Float32Array, images: ImageSet, reporter: Reporter) -> None:
    """Warn where eager is no better than the most frequent class: the labels then hardly fit the model.

    Args:
        eager_logits: (N, classes), of the images in their order.
        images: N images, at least one; without labels there is nothing to warn of.
        reporter: Who is warned.
    """
    if images.labels is None:
        return
    top1 = float((eager_logits.argmax(axis=1) == images.labels).mean())
    counts = np.bincount(images.labels)
    frequent = int(counts.argmax())
    if top1 <= counts[frequent] / len(images):
        name = images.class_names[frequent] if images.class_names else frequent
        reporter.warn(
            f"eager's top-1 is {top1:.2%}, no better than always answering '{name}': "
            "are the labels in the model's order?"
        )


def _own(
    path: Path, labels: tuple[str, ...], classes: int, preprocessing: Preprocessing, reporter: Reporter
) -> ImageSet:
    """Read the user's images, whose classes are those of the model: by number or name, else in sorted order.

    Raises:
        InputRefused: Labelled with numbers that the model lacks, or with another number of classes of other
            names: the order would then name wrong ones.
    """
    size = (preprocessing.height, preprocessing.width)
    found = images.read(path, size, images.decoding_of(preprocessing))
    _say_undecodable(found, reporter)
    if found.labels is None:
        return found
    if not found.class_names:
        return _numbered(found, labels, classes)
    written = [label.replace("/", "-") for label in labels]  # no folder's name can hold a slash
    for names in (labels, written):
        if set(found.class_names) <= set(names):
            order = np.array([names.index(name) for name in found.class_names], np.int64)
            return replace(found, labels=order[found.labels], class_names=labels)
    if len(found.class_names) != classes:
        raise InputRefused(
            f"has {len(found.class_names)} classes, the model has {classes}.",
            where=str(path),
            cure="Name the classes as the model's, or so that as many sort in their order.",
        )
    if not labels:
        reporter.note(f"the model's classes are the class folders of {path}, in sorted order")
        return found
    paired = [f"{name} = {label}" for name, label in zip(found.class_names, labels, strict=True)]
    pairs = ", ".join(paired[:_PAIRS_SHOWN]) + (", ..." if len(paired) > _PAIRS_SHOWN else "")
    reporter.note(f"classes of {path} in sorted order: {pairs}")
    return found


def _numbered(found: ImageSet, labels: tuple[str, ...], classes: int) -> ImageSet:
    """Return images labelled with the model's own numbers, once these are known to be."""
    assert found.labels is not None
    low, high = int(found.labels.min()), int(found.labels.max())
    if low < 0 or high >= classes:
        raise InputRefused(
            f"has labels from {low} to {high}, the model's classes are 0 to {classes - 1}.",
            where=found.place,
            cure="Count the classes from 0, in the model's order.",
        )
    return replace(found, class_names=labels)


def _say_undecodable(found: ImageSet, reporter: Reporter) -> None:
    """Warn of files that were left out, by name and number."""
    left_out = found.undecodable
    if not left_out:
        return
    named = "; ".join(f"{file.path} ({file.reason})" for file in left_out[:_NAMED_AT_MOST])
    more = f"; and {len(left_out) - _NAMED_AT_MOST} more" if len(left_out) > _NAMED_AT_MOST else ""
    total = len(found) + len(left_out)
    reporter.warn(f"{len(left_out)} of {total:,} images cannot be decoded and were left out: {named}{more}")
