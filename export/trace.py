"""A module in, its ATen graph out: `torch.export` with a free batch dimension, in eval mode.

Importing this module imports torch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from resedge.errors import InputRefused

_REASON_LENGTH = 300  # torch explains itself over pages; the first sentences say it


@dataclass(frozen=True)
class Traced:
    """One forward pass as a graph of ATen operators, its parameters and buffers with it.

    `graph` maps (N, *input_shape) float32 to (N, classes) float32 for any N. Each node's
    `meta["nn_module_stack"]` says which call of which module it came from.
    """

    graph: fx.GraphModule
    input_shape: tuple[int, ...]
    classes: int


def trace(module: nn.Module, input_shape: tuple[int, ...]) -> Traced:
    """Trace a module as it evaluates; the module itself is left as it is.

    Args:
        module: Takes one (N, *input_shape) float32 tensor.
        input_shape: One sample's shape, such as (3, 28, 28).

    Raises:
        InputRefused: torch cannot trace it, the batch size is fixed inside it, or its output is not one
            (N, classes) float32 tensor.
    """
    evaluated = copy.deepcopy(module).eval()
    example = torch.zeros(2, *input_shape)
    batch = torch.export.Dim("batch")
    try:
        program = torch.export.export(evaluated, (example,), dynamic_shapes=({0: batch},))
    except InputRefused:
        raise
    except Exception as error:  # torch raises all sorts, for any Python in forward
        raise InputRefused(
            f"cannot be traced by torch.export: {shortened(error)}",
            where=type(module).__name__,
            cure="forward must be free of control flow on tensor values, and take any batch size.",
        ) from error
    _check_output(program, type(module).__name__)
    plain = plain_graph(program)
    classes = output_of(plain).meta["val"].shape[1]
    return Traced(plain, tuple(input_shape), classes)


def shortened(error: BaseException) -> str:
    """Return the first lines of a foreign error in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _REASON_LENGTH else text[:_REASON_LENGTH] + " ..."


def module_path(node: fx.Node) -> str:
    """Return the path of the module whose call made a node, "" for the root's own."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def output_of(graph: fx.GraphModule) -> fx.Node:
    """Return the node whose value a graph returns."""
    (result,) = graph.graph.output_node().all_input_nodes
    return result


def plain_graph(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Return a program as a graph from tensor to tensor, without the exporter's own calling code."""
    unlifted = program.module(check_guards=False)
    graph = unlifted.graph
    graph.set_codegen(fx.graph.CodeGen())
    output = graph.output_node()
    output.args = (output.all_input_nodes[0],)
    return fx.GraphModule(unlifted, graph).eval()


def _check_output(program: torch.export.ExportedProgram, where: str) -> None:
    returned = program.graph.output_node().args[0]
    leaf = program.call_spec.out_spec is not None and program.call_spec.out_spec.num_nodes == 1
    values = [getattr(item, "meta", {}).get("val") for item in _sequence(returned)]
    if not leaf or len(values) != 1 or not isinstance(values[0], Tensor):
        raise _wrong_output("not a single tensor", where)
    shape = tuple(values[0].shape)
    if values[0].dtype != torch.float32:
        raise _wrong_output(str(values[0].dtype).removeprefix("torch."), where)
    if len(shape) != 2 or isinstance(shape[0], int) or not isinstance(shape[1], int):
        raise _wrong_output(f"a tensor of shape ({', '.join(map(str, shape))})", where)


def _sequence(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _wrong_output(found: str, where: str) -> InputRefused:
    return InputRefused(
        f"forward returns {found}; needed is one (N, classes) float32 tensor.",
        where=where,
        cure="Wrap the model so that forward returns its logits alone.",
    )
