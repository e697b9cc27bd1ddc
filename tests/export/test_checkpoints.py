from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from resedge import gate
from resedge.errors import InputRefused, StaleArtifact
from resedge.export import checkpoints
from resedge.export.checkpoints import (
    Weights,
    fit,
    load_weights,
    open_checkpoint,
    parse_safetensors,
    read_weights,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)


@pytest.fixture
def net(randomise: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return randomise(Net())


def refusal(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(InputRefused) as caught:
        load_weights(Net(), tensors, "mine.safetensors")
    assert str(caught.value).startswith("mine.safetensors: ")
    return str(caught.value)


def loaded(path: Path, into: nn.Module) -> Weights:
    weights = fit(read_weights(open_checkpoint(path)), into.state_dict())
    load_weights(into, weights.tensors, str(path))
    return weights


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


# How frameworks save a state_dict, and what is said of it.
WRAPPINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "bare": (lambda s: s, []),
    "ordered": (OrderedDict, []),
    "state_dict": (
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}},
        ["the weights are those under 'state_dict', beside epoch, optimizer"],
    ),
    "model": (lambda s: {"model": s}, ["the weights are those under 'model'"]),
    "the average before the weights": (
        lambda s: {"model": {name: torch.zeros_like(t) for name, t in s.items()}, "model_ema": s},
        ["the weights are those under 'model_ema', beside model"],
    ),
    "ema in ema": (
        lambda s: {"ema": {"state_dict": s}},
        ["the weights are those under 'ema'", "the weights are those under 'state_dict'"],
    ),
    "DataParallel": (lambda s: prefixed(s, "module."), ["the prefix 'module.' was stripped"]),
    "compiled and parallel": (
        lambda s: prefixed(s, "_orig_mod.module."),
        ["the prefix '_orig_mod.' was stripped", "the prefix 'module.' was stripped"],
    ),
    "Lightning": (
        lambda s: {
            "state_dict": prefixed(s, "model."),
            "pytorch-lightning_version": "2.5.0",
            "hyper_parameters": {"lr": 0.1},
        },
        [
            "the weights are those under 'state_dict', beside hyper_parameters, pytorch-lightning_version",
            "the prefix 'model.' was stripped",
        ],
    ),
    "a backbone and a head": (
        lambda s: {name if name.startswith("fc.") else f"backbone.{name}": t for name, t in s.items()},
        ["the prefix 'backbone.' was stripped"],
    ),
    "averaged by torch": (
        lambda s: {"n_averaged": torch.tensor(7), **prefixed(s, "module.")},
        ["'n_averaged' was left out: it counts what was averaged", "the prefix 'module.' was stripped"],
    ),
    "half": (
        lambda s: {name: t.half() if t.is_floating_point() else t for name, t in s.items()},
        ["8 tensors were converted from float16"],
    ),
    "no counters": (lambda s: {name: t for name, t in s.items() if "batches" not in name}, []),
}


@pytest.mark.parametrize("name", WRAPPINGS)
@pytest.mark.parametrize("suffix", checkpoints.ARCHIVES)
def test_a_state_dict_is_found_in_its_wrapping_and_what_was_done_is_said(
    name: str, suffix: str, net: nn.Module, tmp_path: Path
) -> None:
    wrap, said = WRAPPINGS[name]
    torch.save(wrap(net.state_dict()), tmp_path / f"w{suffix}")
    into = Net()
    assert list(loaded(tmp_path / f"w{suffix}", into).notes) == said
    tolerance = 1e-3 if name == "half" else 0.0
    for key, value in net.state_dict().items():
        torch.testing.assert_close(into.state_dict()[key], value, rtol=tolerance, atol=tolerance)


def test_safetensors_lose_their_prefixes_too(net: nn.Module, tmp_path: Path) -> None:
    save_file(prefixed(net.state_dict(), "module."), tmp_path / "w.safetensors")
    assert loaded(tmp_path / "w.safetensors", Net()).notes == ("the prefix 'module.' was stripped",)


def test_a_prefix_that_the_model_has_itself_stays(net: nn.Module) -> None:
    needed = prefixed(net.state_dict(), "model.")
    assert fit(Weights(needed), needed).notes == ()


class Canary:
    """A pickle of it writes a file where it is loaded without care."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


def test_code_in_a_checkpoint_is_not_run(net: nn.Module, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"state_dict": net.state_dict(), "extra": Canary(canary)}, tmp_path / "w.pt")
    with pytest.raises(InputRefused, match="cannot be read without running code"):
        read_weights(open_checkpoint(tmp_path / "w.pt"))
    assert not canary.exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert canary.exists()


def test_a_whole_module_is_refused_with_the_cure(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "w.pt")
    with pytest.raises(InputRefused, match=r"save the model's state_dict alone"):
        read_weights(open_checkpoint(tmp_path / "w.pt"))


def _expanded(path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**9)}, path)


def _compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\0" * 10**6)


def _script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/code/x.py", "")


def _cut(path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


CRAFTED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "old format": (lambda p: p.write_bytes(pickle.dumps({})), "since version 1.6"),
    "an archive of something else": (lambda p: zipfile.ZipFile(p, "w").close(), "since version 1.6"),
    "expanded": (_expanded, "claims more numbers than the file holds"),
    "compressed": (_compressed, "is compressed"),
    "TorchScript": (_script, "is a TorchScript program"),
    "cut": (_cut, "is a damaged archive"),
    "a tensor alone": (lambda p: torch.save(torch.zeros(1), p), "holds a Tensor"),
    "an optimiser alone": (lambda p: torch.save({"lr": 0.1}, p), "holds 'lr'"),
    "nothing": (lambda p: torch.save({}, p), "holds no tensor"),
    "a folder": (lambda p: p.mkdir(), "is a folder"),
    "missing": (lambda p: None, "cannot be read"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_or_a_wrong_file_is_refused(name: str, tmp_path: Path) -> None:
    write, reason = CRAFTED[name]
    path = tmp_path / "w.pt"
    write(path)
    with pytest.raises(InputRefused, match=reason):
        read_weights(open_checkpoint(path))


def test_the_limits_of_an_archive(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pt")
    for limit in ("MAX_CHECKPOINT_BYTES", "MAX_CHECKPOINT_ENTRIES", "MAX_PICKLE_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(gate.checkpoint, limit, 5)
            with pytest.raises(InputRefused, match="more than 5"):
                open_checkpoint(tmp_path / "w.pt")


def test_a_checkpoint_that_changes_meanwhile_is_refused(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pt")
    opened = open_checkpoint(tmp_path / "w.pt")
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    with pytest.raises(StaleArtifact, match="changed while it was read"):
        read_weights(opened)


def test_another_suffix_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"\.safetensors, \.pt, \.pth, \.ckpt files only"):
        open_checkpoint(tmp_path / "w.bin")


# --- what fits -----------------------------------------------------------------------------------


def test_missing_and_unexpected_keys_are_named_by_shape_with_the_nearest(net: nn.Module) -> None:
    tensors = dict(net.state_dict())
    tensors["conv.wieght"] = tensors.pop("conv.weight")
    message = refusal(tensors)
    assert "conv.weight (4,3,3,3) is missing" in message
    assert "conv.wieght (4,3,3,3) is unexpected (nearest: conv.weight)" in message


def test_a_wrong_shape_says_both_shapes(net: nn.Module) -> None:
    tensors = {**net.state_dict(), "conv.weight": torch.zeros(4, 1, 3, 3)}
    assert "conv.weight has (4,1,3,3), needs (4,3,3,3)" in refusal(tensors)


def test_a_dtype_that_is_no_float_is_refused_by_key(net: nn.Module) -> None:
    tensors = {**net.state_dict(), "fc.bias": torch.zeros(5, dtype=torch.int8)}
    assert "fc.bias has int8, needs float32" in refusal(tensors)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_by_key(net: nn.Module, bad: float) -> None:
    tensors = {**net.state_dict(), "bn.running_var": torch.full((4,), bad)}
    assert "bn.running_var holds NaN or Inf (4 values)" in refusal(tensors)


def test_a_double_beyond_float32_is_refused_and_not_made_infinite(net: nn.Module) -> None:
    state = {**net.state_dict(), "fc.bias": torch.full((5,), 1e300, dtype=torch.float64)}
    assert "fc.bias holds NaN or Inf (5 values)" in refusal(
        dict(fit(Weights(state), state | net.state_dict()).tensors)
    )


def test_a_refused_checkpoint_changes_nothing(net: nn.Module) -> None:
    module = Net()
    before = module.state_dict()["fc.bias"].clone()
    with pytest.raises(InputRefused):
        load_weights(module, {**net.state_dict(), "fc.weight": torch.zeros(1)}, "w")
    assert torch.equal(module.state_dict()["fc.bias"], before)


def test_many_misfits_are_counted_beyond_the_first() -> None:
    assert "and 22 more" in refusal(
        {str(i): torch.zeros(1) for i in range(22)}
    )  # and 8 keys that are missing


def test_data_that_the_header_does_not_describe_is_refused(net: nn.Module) -> None:
    data = save(net.state_dict())
    assert torch.equal(parse_safetensors(data, "w")["fc.bias"], net.state_dict()["fc.bias"])
    with pytest.raises(InputRefused, match=r"^mine: is not a sound safetensors file"):
        parse_safetensors(data + b"\0", "mine")


def test_weights_come_from_one_reading(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(net.state_dict(), path)
    opened: list[Path] = []
    real_open = Path.open

    def recorded(self: Path, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as Path.open
        opened.append(self)
        return real_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", recorded)
    monkeypatch.setattr(Path, "read_bytes", None)
    read_weights(open_checkpoint(path))
    assert opened == [path]
