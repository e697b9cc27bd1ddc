"""What a plan really runs: how many convolutions in INT8, how many layers only change a format.

A strongly typed INT8 graph can still come out in FP16: TensorRT may have no INT8 kernel for a layer on this
GPU, or may fuse it into one that computes wide. The table of layers says so, and it comes in three forms:
the inspector's JSON of TensorRT 10 ("Format/Datatype" in words), of TensorRT 11 (a key for each), and the
list that the builder of TensorRT for RTX logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from resedge.runtimes.trt_build import Convolution
from resedge.runtimes.trt_log import TensorRTError

_TYPE_KEYS: Final = ("Format/Datatype", "DataType", "Datatype")
_ROW: Final = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (?:Constants|Outputs): "
    r".*?Metadata: (?P<metadata>.*)$",
    re.MULTILINE,
)
_ROW_TYPE: Final = re.compile(r"Datatype: (\w+)")
_ONNX_NODE: Final = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# What a 1x1 convolution becomes that is computed as a matrix product says so.
_FROM_CONVOLUTION: Final = "gemm_from_conv"
# A fusion is named after what is in it: a correlation, or such a product.
_FUSED_CONVOLUTION: Final = re.compile(r"__myl_\w*(?:Corr|Fc)")
_FUSED_SUFFIX: Final = re.compile(r"_myl\d+_\d+$")
# TensorRT's words for a type, in its format descriptions and in its short names.
_TYPES: Final = (
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(?:fp16|half)\b", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(?:bf16|bfloat16)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(?:fp32|float)\b", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Layer:
    """A layer of a plan: what it is, the types that it reads, and the ONNX nodes that went into it."""

    name: str
    kind: str
    reads: tuple[str, ...]
    nodes: frozenset[str]

    @property
    def is_convolution(self) -> bool:
        """Whether it convolves, by TensorRT's own word for it."""
        return "conv" in self.kind.lower() or self.kind == "correlation"

    @property
    def is_reformat(self) -> bool:
        """Whether it does nothing but bring a tensor into another format or type."""
        return "reformat" in self.kind.lower()


@dataclass(frozen=True)
class LayerSummary:
    """What became of a graph's convolutions.

    `by_type` counts them by the type that they read, "unknown" where no layer names them. `fell_back` are
    those that read INT8 in the graph and not in the plan.
    """

    layers: int
    reformats: int
    convolutions: int
    by_type: Mapping[str, int]
    fell_back: tuple[str, ...]

    def sentence(self) -> str:
        """Say it in one line."""
        counts = ", ".join(f"{count} in {kind}" for kind, count in self.by_type.items())
        text = f"{self.convolutions} convolutions ({counts or 'none'}), "
        text += f"{self.reformats} of {self.layers} layers are reformats"
        if self.fell_back:
            text += f"; INT8 in the graph and not in the plan: {', '.join(self.fell_back)}"
        return text


def inspect_engine(trt: Any, engine: Any) -> tuple[Layer, ...]:  # noqa: ANN401
    """Return the layers of a loaded engine that was built with detailed verbosity.

    Raises:
        TensorRTError: The inspector's answer is not a table of layers.
    """
    inspector = engine.create_engine_inspector()
    return read_json(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def read_json(text: str) -> tuple[Layer, ...]:
    """Read the inspector's JSON, of TensorRT 10 or 11.

    Raises:
        TensorRTError: It is not a table of layers; with less than detailed verbosity it has their names only.
    """
    try:
        rows = json.loads(text)["Layers"]
        return tuple(
            Layer(
                row["Name"],
                _kind(row["LayerType"], row["Name"], row.get("Metadata", ""), row.get("ParameterType")),
                tuple(_type_of(tensor) for tensor in row["Inputs"]),
                _nodes(row["Name"], row.get("Metadata", "")),
            )
            for row in rows
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TensorRTError(
            f"EngineInspector.get_engine_information: no table of layers ({error!r})"
        ) from error


def read_table(text: str) -> tuple[Layer, ...]:
    """Read the list of layers that a builder logs."""
    return tuple(
        Layer(
            row["name"],
            _kind(row["kind"], row["name"], row["metadata"]),
            tuple(_type_named(word) for word in _ROW_TYPE.findall(row["inputs"])),
            _nodes(row["name"], row["metadata"]),
        )
        for row in _ROW.finditer(text)
    )


def summarize(layers: Sequence[Layer], convolutions: Sequence[Convolution]) -> LayerSummary:
    """Find each of the graph's convolutions among a plan's layers."""
    by_type: dict[str, int] = {}
    fell_back: list[str] = []
    for convolution in convolutions:
        reads = {
            layer.reads[0]
            for layer in layers
            if layer.is_convolution and layer.reads and convolution.name in layer.nodes
        }
        found = reads.pop() if len(reads) == 1 else "unknown"
        by_type[found] = by_type.get(found, 0) + 1
        if convolution.quantized and found != "int8":
            fell_back.append(convolution.name)
    return LayerSummary(
        len(layers),
        sum(layer.is_reformat for layer in layers),
        len(convolutions),
        dict(sorted(by_type.items())),
        tuple(fell_back),
    )


def _kind(words: str, name: str, metadata: str, parameters: str | None = None) -> str:
    """Return what a layer is; one that fuses is a convolution where it says that it has one in it."""
    convolves = parameters == "Convolution" or _FROM_CONVOLUTION in metadata or _FUSED_CONVOLUTION.match(name)
    return "Convolution" if convolves else words


def _type_of(tensor: Mapping[str, Any]) -> str:
    """Return the type of a tensor of the JSON table; its format's words may name another one."""
    return _type_named(next((str(tensor[key]) for key in _TYPE_KEYS if key in tensor), ""))


def _type_named(words: str) -> str:
    for name, pattern in _TYPES:
        if pattern.search(words):
            return name
    return words.lower() or "unknown"


def _nodes(name: str, metadata: str) -> frozenset[str]:
    """Return the ONNX nodes of a layer, by its metadata and by its name, which joins theirs with " + "."""
    parts = (_FUSED_SUFFIX.sub("", part.strip()) for part in name.split(" + "))
    return frozenset({*_ONNX_NODE.findall(metadata), *parts})
