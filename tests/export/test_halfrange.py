from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from resedge.artifacts import Artifact, sha256_file
from resedge.errors import GraphRefused
from resedge.export.half import write_half
from resedge.export.halfrange import weights_in_half, wide_nodes
from resedge.export.halfreport import WeightsInHalf


def with_constants(model: Artifact, path: Path, numbers: Mapping[str, NDArray[np.float32]]) -> Artifact:
    """Write the graph with other numbers in some of its constants."""
    parsed = onnx.load(model.path)
    for tensor in parsed.graph.initializer:
        if tensor.name in numbers:
            tensor.CopyFrom(numpy_helper.from_array(numbers[tensor.name], tensor.name))
    path.write_bytes(parsed.SerializeToString(deterministic=True))
    return dataclasses.replace(model, path=path, sha256=sha256_file(path))


def constant(model: Artifact, name: str) -> NDArray[np.float32]:
    (tensor,) = (t for t in onnx.load(model.path).graph.initializer if t.name == name)
    return np.array(numpy_helper.to_array(tensor), np.float32)


def test_what_writes_and_what_reads_a_large_tensor_is_wide(small_onnx: Artifact) -> None:
    reaches = {"layer.0.conv1.out": 32753.0, "layer.0.relu.out": 32752.0, "pool.out": 3.0}
    assert wide_nodes(small_onnx, reaches) == {"layer.0.conv1", "layer.0.relu"}
    assert wide_nodes(small_onnx, {name: min(size, 32752.0) for name, size in reaches.items()}) == set()
    assert wide_nodes(small_onnx, {"logits": float("nan")}) == {"fc"}
    assert wide_nodes(small_onnx, {"input": 40000.0}) == {"bn"}


def test_what_a_relu_or_a_pooling_writes_speaks_for_what_it_reads(small_onnx: Artifact) -> None:
    assert wide_nodes(small_onnx, {"layer.0.relu.out": 1e5}) == {
        *("layer.0.conv1", "layer.0.relu", "layer.0.conv2")
    }
    assert wide_nodes(small_onnx, {"average.out": 1e5}) == {"average", "flatten", "fc"}
    assert wide_nodes(small_onnx, {"conv.out": 1e5}) == {
        *("conv", "pool", "layer.0.conv1", "layer.0.add")  # the pooled tensor feeds the block
    }


def test_a_tensor_of_another_graph_is_refused(small_onnx: Artifact) -> None:
    with pytest.raises(GraphRefused, match=r"^stem\.out: is no tensor of the graph"):
        wide_nodes(small_onnx, {"stem.out": 1.0})


def test_a_large_weight_makes_its_node_wide_and_then_has_a_form(small_onnx: Artifact, tmp_path: Path) -> None:
    numbers = {
        name: constant(small_onnx, name) * np.float32(1e9) for name in ("layer.1.conv2.weight", "bn.variance")
    }
    large = with_constants(small_onnx, tmp_path / "large.onnx", numbers)
    with pytest.raises(GraphRefused, match=r"^layer\.1\.conv2\.weight: holds"):
        write_half(large, tmp_path / "h.onnx")
    wide = wide_nodes(large, {})
    assert wide == {"layer.1.conv2"}  # a BatchNorm's parameters are float32 anyway
    write_half(large, tmp_path / "h.onnx", wide)


def test_weights_are_counted_by_what_half_leaves_of_them(small_onnx: Artifact, tmp_path: Path) -> None:
    numbers = {
        "layer.0.conv1.weight": np.ones((8, 8, 3, 3), np.float32),
        "layer.0.conv1.bias": np.ones(8, np.float32),
        "bn.variance": np.full(3, 1e-12, np.float32),
    }
    numbers["layer.0.conv1.weight"].flat[:6] = [0.0, 2.0**-25, 2.0**-24, 2.0**-15, -(2.0**-14), 70000.0]
    made = with_constants(small_onnx, tmp_path / "w.onnx", numbers)
    before = {entry.name: entry for entry in weights_in_half(small_onnx)}
    found = {entry.name: entry for entry in weights_in_half(made)}
    assert set(found) == {*(f"layer.{i}.conv{j}" for i in (0, 1) for j in (1, 2)), "conv", "fc"}
    # 2^-25 is half way between zero and the least number, and rounds to the even one.
    assert found.pop("layer.0.conv1") == WeightsInHalf("layer.0.conv1", 8 * 8 * 9 + 8, 70000.0, 1, 2)
    assert found == {name: entry for name, entry in before.items() if name in found}
