"""The range of each tensor that moves the logits least, found by trying.

Squared error in a tensor counts all of its values alike. The network does not: a value that fills half of an
image, as a plain background does, is off by the same amount everywhere, and what reads it adds that up. So
each tensor alone is quantised, the rest of the network being float, and the range is kept with which the
logits differ least (Nahshan et al., 2019, "Loss Aware Post-training Quantization", whose steps are also
those of least loss; at 8 bits the layers' errors are small enough to add up).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from resedge.artifacts import Artifact, Ranges
from resedge.calibration.graph import name_of, read_graph
from resedge.calibration.grids import activation_grid
from resedge.calibration.schemes import Scheme, Site, activation_sites, scheme_named
from resedge.protocols import Float32Array, Progress

if TYPE_CHECKING:
    import onnx

_COARSE: Final = 2.0 ** (-np.arange(0, 9) / 6)  # of the extremes: 12 % apart, from 100 to 40 %
_FINE: Final = 1 + np.arange(-6, 7) / 100  # of the best of these: where a common value falls on the grid
_BATCH: Final = 32

_Array = npt.NDArray[Any]
_Run = Callable[[Mapping[str, _Array]], list[_Array]]


def search_ranges(
    model: Artifact, extremes: Ranges, scheme: str, images: Float32Array, threads: int, progress: Progress
) -> Ranges:
    """Return the range of each tensor with the least squared error of the logits.

    Args:
        model: The FP32 graph.
        extremes: Of this very graph, as `resedge.calibration.ranges.minmax` reads them.
        scheme: "cpu" or "tensorrt".
        images: (N, C, H, W) float32, a few of the calibration images.
        threads: Of ONNX Runtime.
        progress: Advanced by one a tensor; the caller starts and finishes it.
    """
    chosen = scheme_named(scheme)
    table = dict(extremes.table)
    for origins, sites in _sites_by_origins(model, chosen).items():
        low = min(table[name][0] for name in origins)
        high = max(table[name][1] for name in origins)
        trial = _trial(model, sites, chosen, images, threads)
        table.update(dict.fromkeys(origins, _least_error(trial, low, high, chosen)))
        progress.advance(1)
    return replace(extremes, table=table, method=f"logit-mse-{scheme}")


def _sites_by_origins(model: Artifact, scheme: Scheme) -> dict[tuple[str, ...], list[Site]]:
    """Return the sites of each tensor that has a range, of those that must share one together."""
    graph = read_graph(model.read(), str(model.path)).graph
    found: dict[tuple[str, ...], list[Site]] = {}
    for site in activation_sites(graph, scheme):
        origins = tuple(sorted(name_of(origin) for origin in site.origins))
        found.setdefault(origins, []).append(site)
    return found


def _least_error(trial: _Trial, low: float, high: float, scheme: Scheme) -> tuple[float, float]:
    def best(factors: npt.NDArray[np.float64]) -> float:
        errors = [trial.error(low * factor, high * factor, scheme) for factor in factors]
        return float(factors[int(np.argmin(errors))])

    if low == high:
        return low, high
    factor = best(best(_COARSE) * _FINE)
    return float(np.float32(low * factor)), float(np.float32(high * factor))


# --- the network behind a tensor -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Trial:
    """The network behind some tensors, what it reads, and the logits that it should give.

    `inputs` are by name, over the images; `logits` is (N, classes).
    """

    run: _Run
    inputs: Mapping[str, _Array]
    logits: Float32Array

    def error(self, low: float, high: float, scheme: Scheme) -> float:
        """Return the mean squared error of the logits, but for what moves all classes alike."""
        grid = activation_grid(low, high, scheme)
        how: dict[str, _Array] = {
            "scale": np.asarray(grid.scale),
            "zero_point": np.asarray(grid.zero_point, scheme.dtype),
        }
        total = 0.0
        for start in range(0, len(self.logits), _BATCH):
            batch = {name: array[start : start + _BATCH] for name, array in self.inputs.items()}
            moved = self.run({**batch, **how})[0] - self.logits[start : start + _BATCH]
            total += float(np.square(moved - moved.mean(axis=1, keepdims=True), dtype=np.float64).sum())
        return total / self.logits.size


def _trial(
    model: Artifact, sites: Sequence[Site], scheme: Scheme, images: Float32Array, threads: int
) -> _Trial:
    import onnx

    parsed = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model.read()))
    readers = {(name_of(site.node.outputs[0]), site.index): name_of(site.value) for site in sites}
    behind, given = _behind(parsed.graph, readers)
    read = sorted({*readers.values(), *given})
    output = parsed.graph.output[0].name
    whole = _opened(_with_outputs(parsed, read), threads)
    name = parsed.graph.input[0].name
    held: dict[str, list[_Array]] = {tensor: [] for tensor in (*read, output)}
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        computed = dict(zip([v for v in held if v != name], whole({name: batch}), strict=True))
        for tensor, parts in held.items():
            parts.append(batch if tensor == name else computed[tensor])
    arrays = {tensor: np.concatenate(parts) for tensor, parts in held.items()}
    run = _opened(_rest(parsed, behind, readers, read, scheme), threads)
    return _Trial(run, {tensor: arrays[tensor] for tensor in read}, arrays[output])


def _behind(
    graph: onnx.GraphProto, readers: Mapping[tuple[str, int], str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes that a change of what `readers` read can reach, and the tensors they read besides."""
    fixed = {tensor.name for tensor in graph.initializer} | {""}
    fixed |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    changed: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    given: set[str] = set()
    for node in graph.node:
        own = [name for index, name in enumerate(node.input) if (node.output[0], index) not in readers]
        if len(own) == len(node.input) and changed.isdisjoint(own):
            continue
        nodes.append(node)
        changed.update(node.output)
        given.update(name for name in own if name not in fixed and name not in changed)
    return nodes, given


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return the model with these tensors before its own output, its input left out."""
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    inner = [name for name in names if name != model.graph.input[0].name]
    own = list(copied.graph.output)
    del copied.graph.output[:]
    copied.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    copied.graph.output.extend(own)
    return copied


def _rest(
    model: onnx.ModelProto,
    behind: Sequence[onnx.NodeProto],
    readers: Mapping[tuple[str, int], str],
    read: Sequence[str],
    scheme: Scheme,
) -> onnx.ModelProto:
    """Return the network behind the readers as a model of its own, with one pair before each tried tensor.

    Scale and zero point are inputs, so that one session serves every range.
    """
    import onnx

    helper, types = onnx.helper, _types(model.graph)
    nodes = []
    for name in sorted(set(readers.values())):
        pair = ("scale", "zero_point")
        nodes.append(helper.make_node("QuantizeLinear", [name, *pair], [f"{name}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *pair], [f"{name}.dq"]))
    for node in behind:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        for index in range(len(copied.input)):
            if (node.output[0], index) in readers:
                copied.input[index] = f"{readers[node.output[0], index]}.dq"
        nodes.append(copied)
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    inputs = [helper.make_tensor_value_info(name, types[name], None) for name in read]
    inputs.append(helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, []))
    integer = helper.np_dtype_to_tensor_dtype(np.dtype(scheme.dtype))
    inputs.append(helper.make_tensor_value_info("zero_point", integer, []))
    graph = helper.make_graph([*constants, *nodes], "rest", inputs, model.graph.output)
    graph.initializer.extend(model.graph.initializer)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}


def _opened(model: onnx.ModelProto, threads: int) -> _Run:
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, _Array]) -> list[_Array]:
        outputs: list[_Array] = session.run(None, dict(inputs))
        return outputs

    return run
