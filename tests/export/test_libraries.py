"""What torchvision and timm give, where they are installed; and what is said where they are not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from resedge import images
from resedge.artifacts import Preprocessing
from resedge.errors import RuntimeUnavailable, UsageError
from resedge.export import sources
from resedge.export.architectures import instantiate
from resedge.export.checkpoints import open_checkpoint
from resedge.export.fold import fold
from resedge.export.names import parse
from resedge.export.records import library_record
from resedge.export.sources import Source, load_reference, write_reference
from resedge.export.trace import trace


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_library_that_is_not_there_is_named_with_the_cure(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for ask in (library_record, instantiate):
        with pytest.raises(RuntimeUnavailable, match=rf"pip install 'resedge\[{name}\]'"):
            ask(parse(f"{name}:resnet18"))


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_an_unknown_name_gets_the_nearest(name: str) -> None:
    pytest.importorskip(name)
    with pytest.raises(UsageError, match=r"has no model 'resnet81'\. The nearest: .*resnet18"):
        instantiate(parse(f"{name}:resnet81"))


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_checkpoint_of_a_library_goes_in_and_comes_back(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip(name)
    make = library.models.resnet18 if name == "torchvision" else library.models.resnet.resnet18
    theirs: nn.Module = make(num_classes=7).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    named = parse(f"{name}:resnet18")
    made = sources.make(named, open_checkpoint(tmp_path / "w.safetensors")).module
    (tmp_path / "reference").mkdir()
    write_reference(made, Source(named.label, "keep", (), (3, 64, 64), 7, None), tmp_path / "reference")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(x)
        assert torch.equal(made(x), expected)
        assert torch.equal(load_reference(tmp_path / "reference")(x), expected)
    report = fold(trace(made, (3, 64, 64)), x.numpy()).report
    assert (len(report.folded), report.refused) == (20, ())
    assert ("layer2.0.downsample.0", "layer2.0.downsample.1") in [
        (site.conv, site.batchnorm) for site in report.folded
    ]


def test_the_record_of_timm() -> None:
    timm = pytest.importorskip("timm")
    record = library_record(parse("timm:resnet50.a1_in1k"))
    assert record is not None
    config = timm.data.resolve_data_config({}, model=timm.create_model("resnet50.a1_in1k"))
    assert (record.mean, record.std) == (config["mean"], config["std"])
    assert (record.size, record.interpolation) == (config["input_size"][1:], config["interpolation"])
    assert record.shorter == int(record.size[0] / config["crop_pct"])


def test_an_image_is_prepared_as_torchvision_does_it(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    record = library_record(parse("torchvision:resnet50"))
    assert record is not None
    transforms = torchvision.models.ResNet50_Weights.DEFAULT.transforms()
    for size in ((300, 500), (257, 232), (100, 90)):
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "a.png")
        scaling = images.Decoding((record.shorter, record.shorter), record.interpolation)
        frame = images.decode_file(tmp_path / "a.png", record.size, scaling)
        takes = Preprocessing(*record.size, record.mean, record.std)
        theirs = transforms(Image.open(tmp_path / "a.png"))[None].numpy()
        np.testing.assert_allclose(images.prepare(frame[None], takes), theirs, atol=1e-6)
