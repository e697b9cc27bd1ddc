from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resedge.artifacts import Artifact, Ranges
from resedge.calibration.emulation import emulated
from resedge.calibration.layerwise import adjust, apply, images_for
from resedge.calibration.placement import place
from resedge.errors import GraphRefused
from resedge.protocols import Float32Array, NoProgress

Networks = dict[str, Artifact]


def _adjusted(
    model: Artifact, placed: Artifact, images: Float32Array, out: Path, *, rounding: bool
) -> Artifact:
    adjustments = adjust(
        model, placed, images, rounding=rounding, pair_safe=True, threads=1, progress=NoProgress()
    )
    return apply(placed, adjustments, out)


@pytest.mark.parametrize("scheme", ["cpu", "tensorrt"])
@pytest.mark.parametrize("name", ["notebook", "basic", "bottleneck"])
def test_fitting_brings_the_logits_nearer(
    name: str,
    scheme: str,
    networks: Networks,
    placed: dict[tuple[str, str], Artifact],
    images_for: Callable[..., Float32Array],
    tmp_path: Path,
) -> None:
    model, quantised = networks[name], placed[name, scheme]
    seen, unseen = images_for(model, 64, seed=5), images_for(model, 64, seed=6)
    expected = emulated(model, 1)(unseen)

    def spread(graph: Artifact) -> float:
        return float(np.square(emulated(graph, 1)(unseen) - expected).mean())

    fitted = _adjusted(model, quantised, seen, tmp_path / "fitted.onnx", rounding=True)
    assert spread(fitted) < spread(quantised)
    assert fitted.meta["adjusted"] == "rounding and bias"
    assert fitted.kind == quantised.kind
    assert fitted.parents == (*quantised.parents, quantised.sha256)


def test_after_correction_every_mean_logit_is_right(
    networks: Networks,
    placed: dict[tuple[str, str], Artifact],
    images_for: Callable[..., Float32Array],
    tmp_path: Path,
) -> None:
    model = networks["basic"]
    images = images_for(model, 32, seed=5)
    corrected = _adjusted(model, placed["basic", "cpu"], images, tmp_path / "c.onnx", rounding=False)
    expected, given = emulated(model, 1)(images), emulated(corrected, 1)(images)
    assert np.abs((expected - given).mean(axis=0)).max() < 1e-5
    plain = emulated(placed["basic", "cpu"], 1)(images)
    assert np.abs((expected - plain).mean(axis=0)).max() > 1e-3


def test_the_same_images_give_the_same_bytes(
    networks: Networks,
    placed: dict[tuple[str, str], Artifact],
    images_for: Callable[..., Float32Array],
    tmp_path: Path,
) -> None:
    model, quantised = networks["bottleneck"], placed["bottleneck", "cpu"]
    images = images_for(model, 8)
    first, second = (
        _adjusted(model, quantised, images, tmp_path / f"{i}.onnx", rounding=True) for i in range(2)
    )
    assert first.sha256 == second.sha256


def test_layers_that_stay_float_are_left(
    networks: Networks,
    calibrated: dict[str, Ranges],
    placed: dict[tuple[str, str], Artifact],
    images_for: Callable[..., Float32Array],
    tmp_path: Path,
) -> None:
    model, images = networks["basic"], images_for(networks["basic"], 8)
    kept = frozenset({"layer1.conv1", "fc"})
    some = place(model, calibrated["basic"], "cpu", tmp_path / "some.onnx", pair_safe=True, kept=kept)
    without, everywhere = (
        adjust(model, graph, images, rounding=False, pair_safe=True, threads=1, progress=NoProgress())
        for graph in (some, placed["basic", "cpu"])
    )
    assert not kept & without.keys()
    assert kept <= everywhere.keys()
    assert apply(some, everywhere, tmp_path / "fitted.onnx").meta["kept"] == sorted(kept)


def test_another_network_is_refused(
    networks: Networks, placed: dict[tuple[str, str], Artifact], images_for: Callable[..., Float32Array]
) -> None:
    images = images_for(networks["basic"], 2)
    with pytest.raises(GraphRefused, match=r"layer1\.conv1"):
        adjust(
            networks["basic"],
            placed["bottleneck", "cpu"],
            images,
            rounding=False,
            pair_safe=True,
            threads=1,
            progress=NoProgress(),
        )


def test_memory_bounds_the_images(networks: Networks) -> None:
    assert images_for(networks["notebook"]) == 128
