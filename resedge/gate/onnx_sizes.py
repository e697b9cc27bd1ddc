"""How large the tensors of an ONNX graph are for one image: it must follow from the graph."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from resedge.errors import GraphRefused

if TYPE_CHECKING:
    import onnx

MAX_RANK: Final = 8
MAX_ELEMENTS: Final = 1 << 26  # of one tensor
MAX_ELEMENTS_TOGETHER: Final = 1 << 30  # of all that nodes compute
MAX_GROWTH: Final = 4  # what is computed from constants alone, against the constants
SPARE_ELEMENTS: Final = 1 << 20
_SHAPES_ARE_SMALL: Final = 1024  # elements up to which a constant may be a shape, which inference reads


def check_sizes(model: onnx.ModelProto, where: str) -> None:
    """Check that every tensor's size follows from the graph, and is bounded. The model is changed."""
    graph = model.graph
    stored = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    computed = _sizes(model, where)
    constant, folded = set(stored), 0
    for node in graph.node:
        for name in filter(None, node.output):
            named, elements = f"{where}: tensor {name!r:.80}", computed.get(name)
            if elements is None:
                raise GraphRefused("has a size that does not follow from the graph.", where=named)
            if elements > MAX_ELEMENTS:
                raise GraphRefused(f"has {elements:,} elements, more than {MAX_ELEMENTS:,}.", where=named)
            if constant.issuperset(filter(None, node.input)):
                constant.add(name)
                folded += elements
    together = sum(computed.values())
    if together > MAX_ELEMENTS_TOGETHER:
        raise GraphRefused(
            f"computes {together:,} numbers, more than {MAX_ELEMENTS_TOGETHER:,}.", where=where
        )
    most = MAX_GROWTH * sum(stored.values()) + SPARE_ELEMENTS
    if folded > most:
        raise GraphRefused(
            f"computes {folded:,} numbers from constants, of which it has {sum(stored.values()):,}.",
            where=where,
        )


def _sizes(model: onnx.ModelProto, where: str) -> dict[str, int]:
    """Infer how many elements each tensor has that nodes compute, for one image.

    Declared sizes are not believed: all but the input's are taken out before.
    """
    import onnx

    _fix_batch(model.graph, where)
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > _SHAPES_ARE_SMALL:
            tensor.ClearField("raw_data")  # which inference would copy
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise GraphRefused(f"has no consistent shapes: {brief(error)}", where=where) from error
    made = {name for node in inferred.graph.node for name in node.output}
    return {
        value.name: elements
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.name in made and (elements := _elements(value)) is not None
    }


def _fix_batch(graph: onnx.GraphProto, where: str) -> None:
    """Set the batch of the graph's input to one image; its other sizes must be known."""
    (image,) = inputs(graph)
    sizes = image.type.tensor_type.shape.dim
    if not 2 <= len(sizes) <= MAX_RANK:
        raise GraphRefused(f"has {len(sizes)} dimensions.", where=f"{where}: input {image.name!r:.80}")
    sizes[0].dim_value = 1
    if (elements := _elements(image)) is None or not 0 < elements <= MAX_ELEMENTS:
        raise GraphRefused(
            "has sizes that are free or too large; only the batch may be free.",
            where=f"{where}: input {image.name!r:.80}",
        )


def _elements(value: onnx.ValueInfoProto) -> int | None:
    """Return the number of elements of a tensor, None where its shape is not known in full."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    return None if any(size < 0 for size in sizes) else math.prod(sizes)


def inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are to be given; old exporters list the weights among them."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def brief(error: Exception) -> str:
    """Return what a library says, on one line and not for ever."""
    return " ".join(str(error).split())[:300]
