"""What became of the convolutions, from each form that the table of layers comes in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resedge.runtimes.trt_build import Convolution
from resedge.runtimes.trt_layers import read_json, read_table, summarize
from resedge.runtimes.trt_log import TensorRTError

GRAPH = (Convolution("stem", True), Convolution("layer.0.conv1", True), Convolution("layer.0.conv2", True))

INT8_WORDS = "Thirty-two wide channel vectorized row major Int8 format"
HALF_WORDS = "Channel major FP16 format where channel % 8 == 0"


def tensor(version: int, kind: str) -> dict[str, Any]:
    words, short = {"int8": (INT8_WORDS, "Int8"), "fp16": (HALF_WORDS, "Half")}[kind]
    if version == 10:
        return {"Name": "t", "Dimensions": [-1, 8], "Format/Datatype": words}
    return {"Name": "t", "Dimensions": [-1, 8], "DataType": short, "Format": words}


def layer(version: int, name: str, kind: str, reads: list[str], metadata: str = "") -> dict[str, Any]:
    tensors = [tensor(version, read) for read in reads]
    return {"Name": name, "LayerType": kind, "Inputs": tensors, "Outputs": tensors, "Metadata": metadata}


def table(version: int) -> str:
    """A stem in INT8, a convolution that fell back, and one fused with an Add that reads FP16 beside."""
    rows = [
        layer(version, "Reformatting CopyNode for Input Tensor 0 to stem", "Reformat", ["fp16"]),
        layer(version, "stem + stem.relu", "CaskConvolution", ["int8"], "[ONNX Layer: stem]"),
        layer(version, "pool", "CaskPooling", ["int8"], "[ONNX Layer: pool]"),
        layer(version, "layer.0.conv1 + layer.0.relu", "CaskConvolution", ["fp16"]),
        layer(
            version,
            "myelin stuff",
            "Fusion",
            ["int8", "fp16"],
            "[ONNX Layer: layer.0.conv2][ONNX Layer: layer.0.add]",
        )
        | {"ParameterType": "Convolution"},
    ]
    return json.dumps({"Layers": rows, **({"Bindings": []} if version == 10 else {"I/O Tensors": []})})


@pytest.mark.parametrize("version", [10, 11])
def test_summary(version: int) -> None:
    found = summarize(read_json(table(version)), GRAPH)
    assert (found.layers, found.reformats, found.convolutions) == (5, 1, 3)
    assert found.by_type == {"fp16": 1, "int8": 2}
    assert found.fell_back == ("layer.0.conv1",)
    assert found.sentence() == (
        "3 convolutions (1 in fp16, 2 in int8), 1 of 5 layers are reformats; "
        "INT8 in the graph and not in the plan: layer.0.conv1"
    )


def test_what_the_graph_has_in_fp16_does_not_fall_back() -> None:
    graph = (Convolution("layer.0.conv1", False),)
    assert summarize(read_json(table(10)), graph).fell_back == ()


def test_convolution_that_no_layer_names_is_unknown() -> None:
    found = summarize(read_json(table(11)), (Convolution("layer.0.conv", True), Convolution("pool", False)))
    assert found.by_type == {"unknown": 2}
    assert found.fell_back == ("layer.0.conv",)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"Layers": ["conv1", "conv2"]}', '{"Bindings": []}', '{"Layers": [{"Name": "conv1"}]}'],
)
def test_what_is_no_table(text: str) -> None:
    with pytest.raises(TensorRTError, match="no table of layers"):
        read_json(text)


def test_builders_log() -> None:
    row = "Name: {}, LayerType: {}, Inputs: [ {{ Name: x, Datatype: {}, Format: (NHWC) }}], Constants: [], "
    end = "Outputs: [ {{ Name: y, Datatype: Half }}], TacticName: t, StreamId: 0, Metadata: {}"
    lines = [
        "Layers:",
        (row + end).format("__myl_Cast_myl0_1", "kgen", "Float", "[ONNX Layer: stem][ONNX Layer: stem.q]"),
        (row + end).format("stem_myl0_2", "correlation", "Int8", ""),
        *(
            (row + end).format(f"__myl_{name}AddRelu_myl0_{index}", "runtime_fusion", "Half", metadata)
            for name, index, metadata in (
                ("Fc", 3, "[ONNX Layer: layer.0.conv1][ONNX Layer: layer.0.relu]__gemm_from_conv1x1"),
                ("Corr", 4, "[ONNX Layer: layer.0.conv2]"),
            )
        ),
    ]
    layers = read_table("\n".join(lines))
    assert [(one.name, one.kind, one.reads) for one in layers] == [
        ("__myl_Cast_myl0_1", "kgen", ("fp32",)),
        ("stem_myl0_2", "correlation", ("int8",)),
        ("__myl_FcAddRelu_myl0_3", "Convolution", ("fp16",)),
        ("__myl_CorrAddRelu_myl0_4", "Convolution", ("fp16",)),
    ]
    found = summarize(layers, GRAPH)
    assert found.by_type == {"fp16": 2, "int8": 1}
    assert found.fell_back == ("layer.0.conv1", "layer.0.conv2")
