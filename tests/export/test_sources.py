from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from resedge.artifacts import sha256_file
from resedge.errors import InputRefused, StaleArtifact, UsageError
from resedge.export import sources
from resedge.export.architectures import instantiate
from resedge.export.batchnorm import reestimate, split
from resedge.export.checkpoints import open_checkpoint, read_weights
from resedge.export.cifar import cifar
from resedge.export.fold import fold
from resedge.export.names import of_module, parse
from resedge.export.sources import Source, given, load_reference, write_reference
from resedge.export.trace import trace
from resedge.protocols import Float32Array

KEPT = Source("notebook", "keep", (), (3, 28, 28), 10, "c0ffee" + 58 * "0")
CALLS = (("layer.0.bn", 3), ("layer.1.bn", 3), ("layer.2.bn", 3))


CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))

def make():
    return Net().half()

net = Net().eval()

def other():
    return 3

def fails():
    raise KeyError("no such width")
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return path


def program(module: nn.Module, path: Path, *, free: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    exported = torch.export.export(module, (torch.zeros(2, 3, 12, 12),), dynamic_shapes=shapes)
    torch.export.save(exported, path)
    return path


def test_a_file_is_made_by_its_callable_and_what_was_changed_is_said(code: Path) -> None:
    made = sources.make(parse(f"{code}:make"), None)
    assert made.notes == (
        "its parameters were converted from float16",
        "it was in training mode; what is deployed is its evaluation mode",
    )
    assert not made.module.training
    assert made.module(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert sources.make(parse(f"{code}:net"), None).notes == ()


def test_code_starts_with_the_same_weights_every_time(code: Path) -> None:
    first, second = (sources.make(parse(f"{code}:make"), None).module for _ in range(2))
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other", "gives int, not an nn.Module"),
        ("absent", "gives NoneType, not an nn.Module"),
        ("fails", r"raised KeyError: 'no such width'"),
    ],
)
def test_code_that_gives_no_model_is_refused(name: str, reason: str, code: Path) -> None:
    with pytest.raises(InputRefused, match=reason):
        sources.make(parse(f"{code}:{name}"), None)


def test_a_file_imports_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "beside_the_net.py").write_text("WIDTH = 7\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom beside_the_net import WIDTH\n"
        "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(12, WIDTH))\n"
    )
    made = sources.make(parse(f"{tmp_path / 'net.py'}:make"), None)
    assert made.module(torch.zeros(2, 3, 2, 2)).shape == (2, 7)


@pytest.mark.parametrize("kind", ["file", "program", "object"])
def test_code_is_run_for_its_user_and_never_for_a_bundle(kind: str, code: Path, tmp_path: Path) -> None:
    net = sources.make(parse(f"{code}:net"), None).module
    named = {
        "file": parse(f"{code}:net"),
        "program": parse(str(program(net, tmp_path / "net.pt2"))),
        "object": of_module(net),
    }[kind]
    made = sources.make(named, None).module
    sha256 = named.code_sha256()
    source = Source(named.label, "keep", (), (3, 12, 12), 5, None, sha256)
    (tmp_path / "reference").mkdir()
    write_reference(made, source, tmp_path / "reference")
    assert str(tmp_path) not in (tmp_path / "reference" / "source.json").read_text()
    with pytest.raises(UsageError, match="runs only where you name it"):
        load_reference(tmp_path / "reference")
    with given(named):
        rebuilt = load_reference(tmp_path / "reference")
    images = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(images), net(images))
    if named.path is None:
        return
    named.path.write_bytes(named.path.read_bytes() + b"\n")
    with given(named), pytest.raises(StaleArtifact, match="is another file than the model was exported from"):
        load_reference(tmp_path / "reference")


def test_a_name_that_is_no_code_does_not_let_a_bundle_run_some(code: Path, tmp_path: Path) -> None:
    net = sources.make(parse(f"{code}:net"), None).module
    write_reference(net, Source("net.py:net", "keep", (), (3, 12, 12), 5, None), tmp_path)
    with given(parse("notebook")), pytest.raises(UsageError, match="runs only where you name it"):
        load_reference(tmp_path)


def test_a_program_keeps_its_names_and_folds(
    code: Path, randomise: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    net = randomise(sources.make(parse(f"{code}:net"), None).module)
    made = sources.make(parse(str(program(net, tmp_path / "net.pt2"))), None).module
    assert sources.own_shape(made) == (3, 12, 12)
    sample = np.random.default_rng(5).standard_normal((3, 3, 12, 12)).astype(np.float32)
    report = fold(trace(made, (3, 12, 12)), sample).report
    assert [(site.conv, site.batchnorm) for site in report.folded] == [("conv", "bn")]


def test_a_program_of_training_or_of_one_batch_size_is_refused(code: Path, tmp_path: Path) -> None:
    net = sources.make(parse(f"{code}:net"), None).module
    fixed = program(net, tmp_path / "fixed.pt2", free=False)
    with pytest.raises(InputRefused, match="with N free"):
        sources.make(parse(str(fixed)), None)
    training = program(net.train(), tmp_path / "training.pt2")
    with pytest.raises(InputRefused, match="was exported in training mode"):
        sources.make(parse(str(training)), None)


def test_a_damaged_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputRefused, match="cannot be loaded"):
        sources.make(parse(str(tmp_path / "net.pt2")), None)


def test_a_checkpoint_of_other_classes_gets_a_last_layer_of_its_own(tmp_path: Path) -> None:
    save_file(cifar(8, residual=True, classes=7).state_dict(), tmp_path / "w.safetensors")
    made = sources.make(parse("resnet-8"), open_checkpoint(tmp_path / "w.safetensors"))
    assert made.module(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    (tmp_path / "reference").mkdir()
    write_reference(
        made.module, Source("resnet-8", "keep", (), (3, 16, 16), 7, "0" * 64), tmp_path / "reference"
    )
    assert load_reference(tmp_path / "reference")(torch.zeros(2, 3, 16, 16)).shape == (2, 7)


def test_the_weights_of_the_comparison_are_those_of_resnet_20() -> None:
    file = Path(__file__).parents[2] / "benchmarks" / "peers" / "resnet20.safetensors"
    assert sources.make(parse("resnet-20"), open_checkpoint(file)).notes == ()


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
    again = instantiate(parse("notebook"))
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
        "code_sha256": None,
    }


def test_a_module_under_two_names_can_be_written(
    randomise: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    layer = nn.Linear(2, 2)
    write_reference(randomise(nn.Sequential(layer, layer)), KEPT, tmp_path)
    tensors = read_weights(open_checkpoint(tmp_path / "weights.safetensors")).tensors
    assert np.array_equal(tensors["0.weight"].numpy(), tensors["1.weight"].numpy())
