from __future__ import annotations

from collections.abc import Mapping

import onnx
import pytest

from resedge.artifacts import Artifact
from resedge.runtimes.onnx_names import MODULE_KEY, modules_of


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_modules_are_those_that_onnx_reads(typed: Mapping[str, Artifact], name: str) -> None:
    data = typed[name].read()
    expected = {}
    for node in onnx.load_from_string(data).graph.node:
        found = {entry.key: entry.value for entry in node.metadata_props}
        if found.get(MODULE_KEY):
            expected[node.name] = found[MODULE_KEY]
    assert modules_of(data) == expected
    assert expected["1.out.node"] == "layer.1.conv"
    assert "input.half.node" not in expected


def test_nodes_without_a_module(fp32: Artifact) -> None:
    assert modules_of(fp32.read()) == {}


@pytest.mark.parametrize(
    "data", [b"not an ONNX file", b"\x3a\xff\xff\xff\x7f", b"\x3a\x80", b"\x3a\x03\x0a\x05\x1a"]
)
def test_what_is_no_onnx_file(data: bytes) -> None:
    with pytest.raises(ValueError, match="no ONNX file"):
        modules_of(data)


def test_truncated_file(typed: Mapping[str, Artifact]) -> None:
    with pytest.raises(ValueError, match="no ONNX file"):
        modules_of(typed["fp16"].read()[:-20])
