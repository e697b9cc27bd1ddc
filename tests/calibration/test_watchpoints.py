from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resedge.artifacts import Artifact, Ranges
from resedge.calibration.placement import place
from resedge.calibration.watchpoints import IntegerGrid, watchpoints

FLOATS = [
    *("relu.out", "maxpool.out", "layer1.relu1.out", "layer1.conv2.out", "layer1.relu2.out"),
    *("layer2.relu1.out", "layer2.conv2.out", "layer2.downsample.out", "layer2.relu2.out", "avgpool.out"),
]


def test_a_float_graph_is_looked_at_behind_each_layer(networks: dict[str, Artifact]) -> None:
    found = watchpoints(networks["basic"])
    assert [point.name for point in found] == [point.tensor for point in found] == FLOATS
    assert all(point.grid is None and not point.instead for point in found)
    kinds = {point.name: point.kind for point in found}
    assert kinds["layer1.conv2.out"] == kinds["layer2.conv2.out"] == "Conv to Add"
    assert kinds["maxpool.out"] == "MaxPool to Add, Conv"


def test_a_quantised_graph_is_looked_at_where_integers_pass(placed: dict[tuple[str, str], Artifact]) -> None:
    found = watchpoints(placed["basic", "cpu"])
    integers = [point for point in found if point.grid is not None]
    assert [point.tensor for point in integers] == ["input", *FLOATS]
    assert all(point.name == f"{point.tensor}.quantized" and not point.instead for point in integers)
    assert [point.name for point in found if point.instead] == FLOATS


def test_a_tensor_that_is_read_in_both_forms_is_looked_at_in_both(
    networks: dict[str, Artifact], calibrated: dict[str, Ranges], tmp_path: Path
) -> None:
    kept = frozenset({"layer2.conv1"})
    graph = place(networks["basic"], calibrated["basic"], "cpu", tmp_path / "kept.onnx", kept=kept)
    both = {point.name: point for point in watchpoints(graph) if point.tensor == "layer1.relu2.out"}
    assert list(both) == ["layer1.relu2.out.quantized", "layer1.relu2.out"]
    assert not any(point.instead for point in both.values())


@pytest.mark.parametrize(
    ("dtype", "zero_point", "number", "nearest", "outside"),
    [
        (np.uint8, 10, 0.26, 0.5, False),
        (np.uint8, 10, 122.7, 122.5, False),
        (np.uint8, 10, 122.8, 122.5, True),
        (np.uint8, 10, -5.3, -5.0, True),
        (np.int8, 0, -64.2, -64.0, False),
        (np.int8, 0, 64.0, 63.5, True),
    ],
)
def test_a_grids_reals(
    dtype: type[np.generic], zero_point: int, number: float, nearest: float, outside: bool
) -> None:
    grid = IntegerGrid(np.array(0.5, np.float32), np.array(zero_point, dtype))
    numbers = np.array([number], np.float32)
    assert grid.nearest(numbers).tolist() == [nearest]
    assert grid.cuts_off(numbers).tolist() == [outside]
    assert grid.reals(np.array([zero_point + 3], dtype)).tolist() == [1.5]
