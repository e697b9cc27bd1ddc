"""A Q/DQ graph computed as it is written, in float: every Q and DQ a node of its own, no integer kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resedge.artifacts import Artifact
from resedge.calibration.graph import is_constant, name_of, read_graph, write_graph
from resedge.errors import GraphRefused
from resedge.protocols import Array, Float32Array

if TYPE_CHECKING:
    import onnx_ir as ir


def emulated(
    graph: Artifact, threads: int, *, weights: Artifact | None = None
) -> Callable[[Array], Float32Array]:
    """Open a Q/DQ graph in ONNX Runtime for what its numbers do to the answers, whatever the runtime.

    Fused kernels would saturate on a CPU without VNNI where a GPU does not, and with FP16 scales they are
    wrong (`session.disable_quant_qdq` is for both).

    Args:
        graph: Of either scheme, in float32 surroundings.
        threads: Compute threads.
        weights: The FP32 graph that `graph` was made from, to take its float weights: what remains is
            the effect of the activations' ranges alone.

    Returns:
        From what the graph takes, (N, …), to logits, (N, classes) float32.
    """
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    data = graph.read() if weights is None else _with_float_weights(graph, weights)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = graph.inputs[0].name

    def run(batch: Array) -> Float32Array:
        logits: Float32Array = session.run(None, {name: batch})[0]
        return logits

    return run


def _with_float_weights(quantised: Artifact, model: Artifact) -> bytes:
    """Return the Q/DQ graph with each stored int8 weight replaced by the float one of the same name."""
    parsed = read_graph(quantised.read(), str(quantised.path))
    originals = read_graph(model.read(), str(model.path)).graph.initializers
    for node in tuple(parsed.graph):
        if node.op_type == "DequantizeLinear" and is_constant(node.inputs[0]):
            name = name_of(node.outputs[0]).removesuffix(".dequantized")
            if name not in originals:
                raise GraphRefused("is no weight of the FP32 graph.", where=name)
            _replace_output(parsed.graph, node, originals[name])
    return write_graph(parsed)


def _replace_output(graph: ir.Graph, node: ir.Node, original: ir.Value) -> None:
    import onnx_ir as ir

    value = ir.Value(
        name=original.name, shape=original.shape, type=original.type, const_value=original.const_value
    )
    graph.register_initializer(value)
    for reader, index in tuple(node.outputs[0].uses()):
        reader.replace_input_with(index, value)
    graph.remove(node)
