from __future__ import annotations

import subprocess
import sys

import pytest
from torch import nn

from resedge.errors import UsageError
from resedge.export.names import of_module, parse, recorded


@pytest.mark.parametrize(
    ("text", "kind", "label", "stem", "code"),
    [
        ("notebook", "notebook", "notebook", "notebook", False),
        ("resnet-20", "cifar", "resnet-20", "resnet-20", False),
        ("plain-56", "cifar", "plain-56", "plain-56", False),
        ("torchvision:resnet18", "torchvision", "torchvision:resnet18", "resnet18", False),
        ("timm:resnet50.a1_in1k", "timm", "timm:resnet50.a1_in1k", "resnet50.a1_in1k", False),
        ("/models/net.py:make", "file", "net.py:make", "net", True),
        ("net.py:make", "file", "net.py:make", "net", True),
        ("models/net.pt2", "program", "net.pt2", "net", True),
    ],
)
def test_what_a_name_means(text: str, kind: str, label: str, stem: str, code: bool) -> None:
    named = parse(text)
    assert (named.kind, named.label, named.stem, named.runs_code) == (kind, label, stem, code)
    assert parse(str(named)) == named  # wherever it is read again
    assert named.path is None or named.path.is_absolute()


@pytest.mark.parametrize(
    "text",
    [
        "resnet99",
        "",
        "torchvision:",
        "timm:hf-hub:x/y",
        "timm:../x",
        "net.py",
        "net.py:a.b",
        "python:Net",
        "x.pt",
    ],
)
def test_an_unknown_name_names_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown model .*Known: notebook, plain-N, resnet-N"):
        parse(text)


@pytest.mark.parametrize("text", ["resnet-21", "resnet-2", "plain-18"])
def test_a_number_of_layers_that_is_none_says_which_are(text: str) -> None:
    with pytest.raises(UsageError, match=r"N is 6n \+ 2"):
        parse(text)


def test_a_module_goes_by_its_class() -> None:
    named = of_module(nn.Linear(1, 1))
    assert (named.label, named.runs_code) == ("python:Linear", True)
    assert recorded("python:Linear").kind == "object"
    assert recorded("python:Linear").module is None


def test_names_cost_no_torch() -> None:
    script = "import sys, resedge.export.sources, resedge.export.names; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
