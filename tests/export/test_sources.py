from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from resedge.artifacts import sha256_file
from resedge.errors import InputRefused, UsageError
from resedge.export.batchnorm import reestimate, split
from resedge.export.sources import (
    Source,
    instantiate,
    load_reference,
    load_weights,
    parse_weights,
    read_weights,
    write_reference,
)
from resedge.protocols import Float32Array

KEPT = Source("notebook", "keep", (), (3, 28, 28), 10, "c0ffee" + 58 * "0")
CALLS = (("layer.0.bn", 3), ("layer.1.bn", 3), ("layer.2.bn", 3))


def refusal(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(InputRefused) as caught:
        load_weights(instantiate("notebook"), tensors, "mine.safetensors")
    assert str(caught.value).startswith("mine.safetensors: ")
    return str(caught.value)


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'resnet99' is unknown\. Known models: notebook"):
        instantiate("resnet99")


def test_a_saved_checkpoint_loads_unchanged(notebook: nn.Module, tmp_path: Path) -> None:
    save_file(notebook.state_dict(), tmp_path / "w.safetensors")
    module = instantiate("notebook")
    load_weights(module, read_weights(tmp_path / "w.safetensors"), "w")
    for key, value in notebook.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key


def test_missing_and_unexpected_keys_are_named_with_the_nearest(notebook: nn.Module) -> None:
    tensors = dict(notebook.state_dict())
    tensors["layer.0.conv1.wieght"] = tensors.pop("layer.0.conv1.weight")
    message = refusal(tensors)
    assert "layer.0.conv1.weight is missing" in message
    assert "layer.0.conv1.wieght is unexpected (nearest: layer.0.conv1.weight)" in message


def test_a_wrong_shape_says_both_shapes(notebook: nn.Module) -> None:
    tensors = {**notebook.state_dict(), "layer.1.conv1.weight": torch.zeros(64, 3, 3, 3)}
    assert "layer.1.conv1.weight has (64,3,3,3), needs (64,64,3,3)" in refusal(tensors)


def test_another_dtype_is_refused_by_key(notebook: nn.Module) -> None:
    tensors = {**notebook.state_dict(), "linear.bias": torch.zeros(10, dtype=torch.float16)}
    assert "linear.bias has float16, needs float32" in refusal(tensors)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_by_key(notebook: nn.Module, bad: float) -> None:
    tensors = {**notebook.state_dict(), "layer.2.bn.running_var": torch.full((64,), bad)}
    assert "layer.2.bn.running_var holds NaN or Inf (64 values)" in refusal(tensors)


def test_a_refused_checkpoint_changes_nothing(notebook: nn.Module) -> None:
    module = instantiate("notebook")
    before = module.state_dict()["linear.bias"].clone()
    with pytest.raises(InputRefused):
        load_weights(module, {**notebook.state_dict(), "linear.weight": torch.zeros(1)}, "w")
    assert torch.equal(module.state_dict()["linear.bias"], before)


def test_many_misfits_are_counted_beyond_the_first(notebook: nn.Module) -> None:
    assert "and 27 more" in refusal({})  # 35 keys, 8 of them shown


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x02}q\x00." * 20)
    with pytest.raises(InputRefused):
        read_weights(tmp_path / "w.safetensors")


def test_data_that_the_header_does_not_describe_is_refused(notebook: nn.Module) -> None:
    data = save(notebook.state_dict())
    assert torch.equal(parse_weights(data, "w")["linear.bias"], notebook.state_dict()["linear.bias"])
    with pytest.raises(InputRefused, match=r"^mine: is not a sound safetensors file"):
        parse_weights(data + b"\0", "mine")


def test_weights_come_from_one_reading(
    notebook: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(notebook.state_dict(), path)
    opened: list[Path] = []
    real_open = Path.open

    def recorded(self: Path, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as Path.open
        opened.append(self)
        return real_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", recorded)
    monkeypatch.setattr(Path, "read_bytes", None)
    read_weights(path)
    assert opened == [path]


def test_a_reference_is_rebuilt_as_it_was(notebook: nn.Module, images: Float32Array, tmp_path: Path) -> None:
    weights, source = write_reference(notebook, KEPT, tmp_path)
    assert [a.path.name for a in (weights, source)] == ["weights.safetensors", "source.json"]
    assert [a.kind for a in (weights, source)] == ["reference/weights", "reference/source"]
    assert source.parents == (weights.sha256,)
    assert weights.sha256 == sha256_file(weights.path)
    rebuilt = load_reference(tmp_path)
    assert not rebuilt.training
    with torch.no_grad():
        assert torch.equal(rebuilt(torch.tensor(images)), notebook(torch.tensor(images)))


def test_a_split_reference_is_rebuilt_with_its_sites(
    notebook: nn.Module, images: Float32Array, tmp_path: Path
) -> None:
    repaired = split(notebook, dict(CALLS))
    reestimate(repaired, [images])
    write_reference(repaired, dataclasses.replace(KEPT, batchnorm="split", split_calls=CALLS), tmp_path)
    rebuilt = load_reference(tmp_path)
    assert "layer.2.bn.sites.2.running_var" in rebuilt.state_dict()
    with torch.no_grad():
        assert torch.equal(rebuilt(torch.tensor(images)), repaired.eval()(torch.tensor(images)))
        assert not torch.equal(rebuilt(torch.tensor(images)), notebook(torch.tensor(images)))


def test_equal_models_are_written_as_equal_bytes(notebook: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write_reference(notebook, KEPT, tmp_path / "a")
    again = instantiate("notebook")
    again.load_state_dict(notebook.state_dict())
    second = write_reference(again, KEPT, tmp_path / "b")
    assert [a.sha256 for a in first] == [a.sha256 for a in second]
    assert json.loads((tmp_path / "a/source.json").read_text()) == {
        "name": "notebook",
        "batchnorm": "keep",
        "split_calls": [],
        "input_shape": [3, 28, 28],
        "classes": 10,
        "checkpoint_sha256": "c0ffee" + 58 * "0",
    }


def test_a_module_under_two_names_can_be_written(
    randomise: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    layer = nn.Linear(2, 2)
    write_reference(randomise(nn.Sequential(layer, layer)), KEPT, tmp_path)
    tensors = read_weights(tmp_path / "weights.safetensors")
    assert np.array_equal(tensors["0.weight"].numpy(), tensors["1.weight"].numpy())
