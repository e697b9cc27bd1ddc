"""The layers of a graph that have a weight to quantise, and what they cost."""

from __future__ import annotations

import difflib
import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resedge.artifacts import Artifact
from resedge.calibration.graph import is_constant, name_of, read_graph
from resedge.calibration.schemes import is_weighted
from resedge.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

_MODULE_KEY = "resedge.module"


@dataclass(frozen=True)
class Layer:
    """A node with a weight: its name, its torch module, its operator, multiply-accumulates of one image."""

    name: str
    module: str
    op_type: str
    macs: int


def layers_of(model: Artifact) -> tuple[Layer, ...]:
    """Return the layers of an FP32 graph that a scheme would quantise, in the graph's order."""
    import onnx
    import onnx_ir as ir

    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model.read()))
    spatial = {
        value.name: math.prod(dimension.dim_value for dimension in value.type.tensor_type.shape.dim[2:])
        for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    }
    found = []
    for node in read_graph(model.read(), str(model.path)).graph:
        weight = node.inputs[1] if is_weighted(node) else None
        if weight is None or not is_constant(weight):
            continue
        assert isinstance(weight.shape, ir.Shape)  # of an initialiser
        macs = math.prod(weight.shape.numpy()) * spatial.get(_placed(node), 1)
        module = node.metadata_props.get(_MODULE_KEY, node.name or "")
        found.append(Layer(node.name or "", module, node.op_type, macs))
    return tuple(found)


def _placed(node: ir.Node) -> str:
    """Return the tensor over whose places a convolution moves its weight, "" for a matrix."""
    ends = {"Conv": node.outputs[0], "ConvTranspose": node.inputs[0]}
    return name_of(ends.get(node.op_type))


def chosen(layers: tuple[Layer, ...], names: AbstractSet[str]) -> frozenset[str]:
    """Return the names of the layers that are called so, or lie in a module that is.

    Raises:
        UsageError: A name is neither; near ones are named.
    """
    found: set[str] = set()
    for name in sorted(names):
        within = {
            layer.name
            for layer in layers
            if name in (layer.name, layer.module) or layer.module.startswith(f"{name}.")
        }
        if not within:
            near = difflib.get_close_matches(name, [layer.name for layer in layers], n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(
                f"{name!r} is no layer with a weight.",
                where="--keep",
                cure=f"`resedge explain` lists them.{hint}",
            )
        found |= within
    return frozenset(found)
