from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, reference

from resedge.artifacts import Artifact, sha256_bytes
from resedge.calibration.histograms import Histogram, collect, count, merge
from resedge.errors import GraphRefused, InputRefused
from resedge.protocols import Float32Array, NoProgress


def _same(one: Histogram, other: Histogram) -> bool:
    scalars = (one.exponent, one.low, one.high) == (other.exponent, other.low, other.high)
    return scalars and np.array_equal(one.counts, other.counts)


def test_counts_lie_in_bins_of_a_power_of_two() -> None:
    histogram = count(np.array([0.0, 0.5, -1.5, 3.0, 3.0, -0.001], np.float32))
    assert histogram.exponent == -9  # 3 < 2048 / 512, but not 2048 / 1024
    assert (histogram.low, histogram.high) == (-1.5, 3.0)
    occupied = {int(i) - 2047: int(histogram.counts[i]) for i in histogram.counts.nonzero()[0]}
    assert occupied == {0: 2, 256: 1, -768: 1, 1536: 2}
    assert histogram.counts.dtype == np.int64


@pytest.mark.parametrize(
    ("largest", "exponent"), [(2.0, -9), (1.9999999, -10), (2048.0, 1), (3.0e38, 117), (0.0, -100)]
)
def test_bins_are_the_narrowest_that_fit(largest: float, exponent: int) -> None:
    assert count(np.array([largest, 0], np.float32)).exponent == exponent
    assert count(np.array([-largest, 0], np.float32)).exponent == exponent


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e6, 1e30])
def test_merging_is_exact_at_any_distance_between_widths(scale: float) -> None:
    random = np.random.default_rng(3)
    parts = [
        (random.standard_normal(500) * size).astype(np.float32) for size in (scale, 1.0, 1e-40, 1e-3, 700.0)
    ]
    parts.append(np.zeros(4, np.float32))
    whole = count(np.concatenate(parts))
    forward, backward = count(parts[0]), count(parts[-1])
    for part in parts[1:]:
        forward = merge(forward, count(part))
    for part in parts[-2::-1]:
        backward = merge(count(part), backward)
    assert _same(forward, whole)
    assert _same(backward, whole)
    assert whole.counts.sum() == 2504


def test_every_tensor_that_a_scheme_may_quantise_is_seen(
    networks: dict[str, Artifact], images_for: Callable[..., Float32Array]
) -> None:
    histograms = collect(networks["basic"], [images_for(networks["basic"], 2)], NoProgress(), 1)
    assert list(histograms) == [
        "input",
        "relu.out",
        "layer1.relu1.out",
        "layer1.conv2.out",
        "layer1.relu2.out",
        "layer2.relu1.out",
        "layer2.conv2.out",
        "layer2.downsample.out",
        "layer2.relu2.out",
        "avgpool.out",
    ]
    assert int(histograms["relu.out"].counts.sum()) == 2 * 16 * 16 * 16


def test_values_are_those_of_the_graph(
    networks: dict[str, Artifact], images_for: Callable[..., Float32Array]
) -> None:
    model = networks["notebook"]
    images = images_for(model, 3)
    histograms = collect(model, [images], NoProgress(), 1)
    graph = onnx.load(model.path)
    del graph.graph.output[:]
    names = [name for name in histograms if name != "input"]
    graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    expected = dict(
        zip(names, reference.ReferenceEvaluator(graph).run(names, {"input": images}), strict=True)
    )
    expected["input"] = images
    assert len(expected) == 13
    for name, values in expected.items():
        seen = histograms[name]
        assert seen.low == pytest.approx(values.min(), rel=1e-4, abs=1e-5)
        assert seen.high == pytest.approx(values.max(), rel=1e-4, abs=1e-5)
        middles = np.abs(np.arange(-2047, 2048)) + 0.5
        total = float((seen.counts * middles).sum()) * 2.0**seen.exponent
        zeros = int((values == 0).sum()) * 0.5 * 2.0**seen.exponent
        assert total - zeros == pytest.approx(float(np.abs(values).sum(dtype=np.float64)), rel=1e-3)


def test_order_batching_and_threads_change_no_bit(
    networks: dict[str, Artifact], images_for: Callable[..., Float32Array]
) -> None:
    model = networks["notebook"]
    images = images_for(model, 70, loud=True)
    shuffled = images[np.random.default_rng(5).permutation(70)]

    def batches(of: Float32Array, size: int) -> Iterator[Float32Array]:
        return (of[i : i + size] for i in range(0, len(of), size))

    expected = collect(model, batches(images, 1), NoProgress(), 1)
    for of, size, threads in ((images, 7, 2), (images, 64, 1), (shuffled, 7, 2), (shuffled, 64, 3)):
        found = collect(model, batches(of, size), NoProgress(), threads)
        assert list(found) == list(expected)
        assert all(_same(found[name], expected[name]) for name in expected)


def test_progress_counts_images(
    networks: dict[str, Artifact], images_for: Callable[..., Float32Array]
) -> None:
    class Counter(NoProgress):
        images = 0

        def advance(self, units: int) -> None:
            self.images += units

    progress = Counter()
    images = images_for(networks["basic"], 5)
    collect(networks["basic"], [images[:3], images[3:]], progress, 2)
    assert progress.images == 5


def test_no_images_is_refused(networks: dict[str, Artifact]) -> None:
    with pytest.raises(InputRefused, match="no calibration images"):
        collect(networks["basic"], [], NoProgress(), 1)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 3, 12, 12)), np.zeros((1, 3, 12, 11), np.float32)], ids=["f64", "size"]
)
def test_images_of_another_kind_are_refused(networks: dict[str, Artifact], images: Float32Array) -> None:
    with pytest.raises(InputRefused, match=r"input: calibration images are .* \(3, 12, 12\)"):
        collect(networks["notebook"], [images], NoProgress(), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(
    networks: dict[str, Artifact], images_for: Callable[..., Float32Array], bad: float
) -> None:
    images = images_for(networks["notebook"], 3)
    images[1, 2, 3, 4] = bad
    with pytest.raises(InputRefused, match=r"^input: holds NaN or infinity"):
        collect(networks["notebook"], [images], NoProgress(), 2)


def test_the_tensor_that_overflows_is_named(
    networks: dict[str, Artifact], images_for: Callable[..., Float32Array], tmp_path: Path
) -> None:
    graph = onnx.load(networks["notebook"].path)
    weight = next(t for t in graph.graph.initializer if t.name == "layer.1.conv2.weight")
    huge = numpy_helper.to_array(weight) * np.float32(1e38)
    weight.CopyFrom(numpy_helper.from_array(huge, weight.name))
    model = _saved(networks["notebook"], graph, tmp_path)
    with pytest.raises(InputRefused, match=r"^layer\.1\.conv2\.out: "):
        collect(model, [images_for(model, 1)], NoProgress(), 1)


def test_a_graph_without_anything_to_quantise_is_refused(
    networks: dict[str, Artifact], tmp_path: Path
) -> None:
    border = networks["notebook"].inputs[0].shape
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["logits"])],
        "main",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, border)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, border)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    with pytest.raises(GraphRefused, match="nothing to quantise"):
        collect(_saved(networks["notebook"], proto, tmp_path), [], NoProgress(), 1)


def _saved(like: Artifact, proto: onnx.ModelProto, folder: Path) -> Artifact:
    data = proto.SerializeToString(deterministic=True)
    path = folder / "changed.onnx"
    path.write_bytes(data)
    return replace(like, path=path, sha256=sha256_bytes(data))
