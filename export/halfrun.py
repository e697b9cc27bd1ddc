"""The traced graph run in half beside float32: what FP16 does to a model, node by node.

Runtimes on a CPU read an FP16 graph and compute it in float32, so that nothing of this shows there.
torch computes in half what is half: operands and results are rounded to it, and a sum within an operator
runs in float32, as it does in a GPU's matrix units. The few operators that it has no half form of are
computed so too: in float32, between operands and a result that are rounded. Importing this module imports
torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, fx

from resedge.artifacts import Artifact
from resedge.errors import InputRefused, NotFinite
from resedge.export.halfrange import LIMIT, SMALLEST_NORMAL, weights_in_half, wide_nodes
from resedge.export.halfreport import HalfReport, LogitsInHalf, NodeInHalf
from resedge.export.onnxfile import MODULE_KEY
from resedge.export.trace import module_path, output_of, shortened
from resedge.protocols import Float32Array

_ATEN = torch.ops.aten
_BATCH_NORM = _ATEN.batch_norm.default
_NOTHING = {  # they compute nothing in eval mode, and no node of the ONNX graph is left of them
    _ATEN.dropout.default,
    _ATEN.dropout_.default,
    _ATEN.feature_dropout.default,
    _ATEN.alias.default,
    _ATEN.clone.default,
    _ATEN.contiguous.default,
    _ATEN.detach.default,
    _ATEN.detach_.default,
}
_NO_EXTREMES: Final[Mapping[str, tuple[float, float]]] = MappingProxyType({})


def run_half(
    graph: fx.GraphModule,
    model: Artifact,
    images: Float32Array,
    extremes: Mapping[str, tuple[float, float]] = _NO_EXTREMES,
) -> HalfReport:
    """Run a graph in half on the CPU, find the nodes that must stay float32, and run it again with these so.

    Half is slow on a CPU, seconds for an image of 224 x 224 in a ResNet-50: 8 images show what overflows.
    Infinity within the graph, such as the filling of a Pad before a maximum, is no fault where float32 has
    it too.

    Args:
        graph: Maps (N, *input_shape) float32 to (N, classes) float32: `Folded.graph`. Left as it is.
        model: The file that `write_onnx` wrote of this very graph; the report has its nodes' names.
        images: (N, *input_shape) float32, prepared as for the model, N >= 1.
        extremes: Least and largest value of tensors of `model` on more images, such as calibration's.

    Raises:
        InputRefused: `model` is not of this graph, or torch cannot compute an operator beside float32.
        NotFinite: The logits hold NaN or infinity in float32; the first node that gives any is named.
        GraphRefused: A tensor in `extremes` is not in the graph.
        StaleArtifact: `model` has changed.
    """
    groups = _match(graph, model)
    mapped = frozenset(node for group in groups for node in group.traced)
    batch = torch.tensor(images)
    everywhere = _Beside(graph, frozenset(), mapped)
    expected, narrow = everywhere.logits(batch)
    entries = tuple(_entry(node, group, everywhere.seen, extremes) for group in groups for node in group.onnx)
    largest = {tensor: max(-low, high) for tensor, (low, high) in extremes.items()}
    largest |= {node.tensor: entry.largest for node, entry in zip(_written(groups), entries, strict=True)}
    largest["input"] = max(largest.get("input", 0.0), float(batch.abs().max()))
    broken = {node.name for group in groups if _breaks(group, everywhere.seen) for node in group.onnx}
    wide = wide_nodes(model, largest) | broken
    mixed = None
    if wide:
        traced = {n for group in groups if any(o.name in wide for o in group.onnx) for n in group.traced}
        mixed = _compare_logits(*_Beside(graph, traced, mapped).logits(batch))
    return HalfReport(
        images=len(images),
        limit=LIMIT,
        nodes=entries,
        weights=weights_in_half(model),
        overflowing=tuple(e.name for e in entries if e.largest > LIMIT or e.name in broken),
        wide=tuple(entry.name for entry in entries if entry.name in wide),
        all_half=_compare_logits(expected, narrow),
        mixed=mixed,
    )


# --- the run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """What a node's output was; `breaks`: it is not finite in half, and what the node reads is."""

    largest: float
    finite: bool
    underflow: float
    sqnr: float | None
    breaks: bool


class _Beside(fx.Interpreter):
    """Runs a graph in float32, and beside each node the same node in half, or float32 if it is wide."""

    def __init__(
        self, graph: fx.GraphModule, wide: AbstractSet[fx.Node], mapped: AbstractSet[fx.Node]
    ) -> None:
        super().__init__(graph)
        self._result = output_of(graph)
        self._wide = wide
        self._mapped = mapped
        self._beside: dict[fx.Node, Any] = {}
        self._infinite: list[fx.Node] = []
        self.seen: dict[fx.Node, _Seen] = {}

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits in float32, and those of the run beside, as float32."""
        with torch.no_grad():
            expected: Tensor = self.run(images.clone())  # forward may write over them
        if not expected.isfinite().all():
            first = (self._infinite or [self._result])[0]
            raise NotFinite(
                "gives NaN or infinite numbers in float32.", where=module_path(first) or first.name
            )
        return expected, self._beside[self._result].float()

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - a node's value may be anything
        if n.op == "output":
            return super().run_node(n)
        value = super().run_node(n)
        if n.op not in ("call_function", "call_method", "call_module") or not _is_float(value):
            self._beside[n] = value.clone() if n.op == "placeholder" else value
            return value
        if not math.isfinite(_extent(value)):
            self._infinite.append(n)
        args, kwargs = self._operands(n)
        narrow = self._call(n, args, kwargs)
        self._beside[n] = narrow
        self.seen[n] = _compare(value, narrow.float(), self._reads_numbers(n))
        self._release(n)
        return value

    def _call(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        compute = getattr(self, n.op)
        try:
            result: Tensor
            try:
                result = compute(n.target, args, kwargs)
            except NotImplementedError:  # torch has no half form of it
                result = compute(n.target, _in_float(args), _in_float(kwargs)).half()
        except (RuntimeError, TypeError) as error:
            raise InputRefused(
                f"cannot be computed in half by torch: {shortened(error)}",
                where=module_path(n) or n.name,
                cure="Deploy this model in fp32, or in int8 on a CPU.",
            ) from error
        # Weights that lie channels last make torch's half convolution four times as fast, its result too.
        return result.contiguous()

    def _operands(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a node's operands in its precision; one that computes nothing takes them as they are."""
        dtype = torch.float32 if n in self._wide else torch.float16

        def operand(source: fx.Node) -> Any:  # noqa: ANN401 - as in `run_node`
            value = self._beside[source]
            if not _is_float(value) or n not in self._mapped:
                return value
            if n.target is _BATCH_NORM and source is not n.args[0]:
                return value  # its parameters stay float32 in the file too
            if source.op == "get_attr" and value.dim() == 4:
                return value.to(dtype, memory_format=torch.channels_last)
            return value.to(dtype)

        args: Any = fx.node.map_arg(n.args, operand)
        kwargs: Any = fx.node.map_arg(n.kwargs, operand)
        return args, kwargs

    def _reads_numbers(self, n: fx.Node) -> bool:
        return all(self.seen[source].finite for source in n.all_input_nodes if source in self.seen)

    def _release(self, n: fx.Node) -> None:
        """Forget what no later node reads, except the logits."""
        for source in self.user_to_last_uses.get(n, ()):
            if source in self._beside and source.op != "placeholder":
                del self._beside[source]


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _in_float(operands: Any) -> Any:  # noqa: ANN401 - arguments of any operator
    def in_float(value: Any) -> Any:  # noqa: ANN401 - one of them
        return value.float() if _is_float(value) else value

    return fx.node.map_aggregate(operands, in_float)


def _extent(value: Tensor) -> float:
    """Return the largest magnitude, 0 of an empty tensor, NaN where there is one."""
    if not value.numel():
        return 0.0
    low, high = (float(end) for end in value.aminmax())
    return max(-low, high)  # both ends are NaN if either is


def _compare(value: Tensor, narrow: Tensor, reads_numbers: bool) -> _Seen:
    if not math.isfinite(_extent(value)):
        numbers = value.isfinite()
        value, narrow = value[numbers], narrow[numbers]
    finite = math.isfinite(_extent(narrow))
    tiny = (narrow.abs() < SMALLEST_NORMAL) & (value != 0)
    return _Seen(
        largest=_extent(value),
        finite=finite,
        underflow=int(tiny.count_nonzero()) / max(tiny.numel(), 1),
        sqnr=_sqnr(value, narrow) if finite else None,
        breaks=reads_numbers and not finite,
    )


def _sqnr(value: Tensor, narrow: Tensor) -> float | None:
    signal, error = (
        float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in (value, value - narrow)
    )
    return 20.0 * math.log10(signal / error) if signal > 0.0 and error > 0.0 else None


def _compare_logits(expected: Tensor, narrow: Tensor) -> LogitsInHalf:
    numbers = narrow.isfinite().all(dim=1)
    agree = numbers & (narrow.argmax(dim=1) == expected.argmax(dim=1))
    difference = float((narrow - expected).abs().max()) if bool(numbers.all()) else None
    return LogitsInHalf(float(agree.double().mean()), difference)


# --- the names -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _OnnxNode:
    name: str
    op_type: str
    tensor: str
    shape: tuple[object, ...]


@dataclass(frozen=True)
class _Group:
    """Nodes of the traced graph, and those of the ONNX graph that they became; one of each if it is known."""

    traced: tuple[fx.Node, ...]
    onnx: tuple[_OnnxNode, ...]


def _match(graph: fx.GraphModule, model: Artifact) -> tuple[_Group, ...]:
    """Find the ONNX nodes of each traced node, in the ONNX graph's order.

    Translation keeps the order of nodes, and each ONNX node knows its module's path. Within one path nodes
    are paired one by one if they are as many and of the same shapes. If an operator became several nodes,
    the path is one group: what is found of any of it holds for all of it.
    """
    nodes = _onnx_nodes(model)
    traced: dict[str, list[fx.Node]] = {path: [] for path, _ in nodes}
    for source in graph.graph.nodes:
        if source.op == "call_function" and source.target not in _NOTHING and _shape(source) is not None:
            traced.setdefault(module_path(source), []).append(source)
    groups: list[_Group] = []
    for path in dict.fromkeys(path for path, _ in nodes):
        groups += _match_path(traced[path], [node for other, node in nodes if other == path])
    order = {node.name: index for index, (_, node) in enumerate(nodes)}
    return tuple(sorted(groups, key=lambda group: order[group.onnx[0].name]))


def _match_path(traced: list[fx.Node], nodes: list[_OnnxNode]) -> list[_Group]:
    if not traced:
        raise InputRefused(
            "is in the ONNX graph and not in the traced one.",
            where=nodes[0].name,
            cure="Write the ONNX file from this very graph.",
        )
    pairs = list(zip(traced, nodes, strict=False))
    if len(traced) == len(nodes) and all(_shape(source) == node.shape for source, node in pairs):
        return [_Group((source,), (node,)) for source, node in pairs]
    return [_Group(tuple(traced), tuple(nodes))]


def _onnx_nodes(model: Artifact) -> list[tuple[str, _OnnxNode]]:
    """Return each node with its module's path; a shape is without the batch, () where it is not declared."""
    import onnx
    import onnx_ir as ir

    found = []
    for node in ir.from_proto(onnx.load_from_string(model.read())).graph:
        value = node.outputs[0]
        sizes = () if value.shape is None else tuple(value.shape)[1:]
        path = node.metadata_props.get(MODULE_KEY, "")
        found.append((path, _OnnxNode(str(node.name), node.op_type, str(value.name), sizes)))
    return found


def _shape(node: fx.Node) -> tuple[object, ...] | None:
    """Return a traced node's shape without the batch, None where it makes no floating-point tensor."""
    value = node.meta.get("val")
    return tuple(value.shape)[1:] if isinstance(value, Tensor) and value.is_floating_point() else None


def _written(groups: Iterable[_Group]) -> list[_OnnxNode]:
    return [node for group in groups for node in group.onnx]


def _entry(
    node: _OnnxNode,
    group: _Group,
    seen: Mapping[fx.Node, _Seen],
    extremes: Mapping[str, tuple[float, float]],
) -> NodeInHalf:
    """Return what is known of an ONNX node: the worst of what it was traced as."""
    found = [seen[source] for source in group.traced]
    low, high = extremes.get(node.tensor, (0.0, 0.0))
    ratios = [each.sqnr for each in found if each.sqnr is not None]
    finite = all(each.finite for each in found)
    return NodeInHalf(
        name=node.name,
        op_type=node.op_type,
        tensor=node.tensor,
        largest=max(-low, high, *(each.largest for each in found)),
        finite=finite,
        underflow=max(each.underflow for each in found),
        sqnr=min(ratios) if ratios and finite else None,
    )


def _breaks(group: _Group, seen: Mapping[fx.Node, _Seen]) -> bool:
    return any(seen[source].breaks for source in group.traced)
