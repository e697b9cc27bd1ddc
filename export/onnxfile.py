"""The folded graph as one ONNX file: fixed names, opset 19, free batch, the same bytes everywhere.

torch translates the graph with its optimiser off; what is left to do is cleaned up here, on the ONNX
graph: a flatten that came out as arithmetic on shapes, a global pooling that came out as a mean, names,
and the traces of the machine that did the translation. Opset 19 is what TensorRT 10.3 needs for FP16
scales in QuantizeLinear, and what every other runtime here reads.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resedge.artifacts import Artifact, TensorSpec, sha256_bytes
from resedge.errors import InputRefused
from resedge.files import write_bytes

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import fx

OPSET: Final = 19
IR_VERSION: Final = 10
MODULE_KEY: Final = "resedge.module"
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_ROLES = {
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "Gemm": ("", "weight", "bias"),
    "BatchNormalization": ("", "weight", "bias", "mean", "variance"),
}


def write_onnx(
    folded_graph: fx.GraphModule,
    input_shape: tuple[int, ...],
    out: Path,
    parents: tuple[str, ...] = (),
) -> Artifact:
    """Write a traced graph as a single ONNX file.

    Nodes are named after the module that they came from ("layer.0.conv1"), tensors after their node
    ("layer.0.conv1.out", "layer.0.conv1.weight"); a second call of a module gets "@1". Each node keeps
    its module's path in `metadata_props["resedge.module"]`.

    Args:
        folded_graph: Maps (N, *input_shape) float32 to (N, classes) float32.
        input_shape: One sample's shape, such as (3, 28, 28).
        out: The file to write.
        parents: Digests of what the graph was made from.

    Returns:
        Kind "onnx/fp32", "input" ("batch", *input_shape) and "logits" ("batch", classes).

    Raises:
        InputRefused: An operator has no ONNX form, or `out` cannot be written.
        MachineFailure: The disk is full.
    """
    model = _translate(folded_graph, input_shape)
    _clean(model)
    _rename(model.graph)
    data = serialise(model)
    write_bytes(out, data)
    classes = _sizes(model.graph.outputs[0])[1]
    return Artifact(
        path=out.absolute(),
        sha256=sha256_bytes(data),
        kind="onnx/fp32",
        inputs=(TensorSpec("input", ("batch", *input_shape), "float32"),),
        outputs=(TensorSpec("logits", ("batch", classes), "float32"),),
        parents=parents,
        meta={"opset": OPSET, "ir_version": IR_VERSION, "nodes": len(model.graph)},
    )


def serialise(model: ir.Model) -> bytes:
    """Check a model in full and return its bytes, the same for equal models.

    Raises:
        InputRefused: The ONNX checker rejects it.
    """
    import onnx
    import onnx_ir as ir

    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        text = " ".join(str(error).split())[:300]
        raise InputRefused(f"is not valid ONNX: {text}", where="the exported graph") from error
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _translate(graph: fx.GraphModule, input_shape: tuple[int, ...]) -> ir.Model:
    """Return torch's own translation, as it is."""
    import torch

    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                graph,
                (torch.zeros(2, *input_shape),),
                dynamo=True,
                optimize=False,
                external_data=False,
                verbose=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            text = " ".join(str(error.__cause__ or error).split())[:300]
            raise InputRefused(f"has no ONNX form: {text}", where="the traced graph") from error
    if program is None:  # only when asked to write the file itself
        raise InputRefused("torch returned no ONNX graph.", where="the traced graph")
    model: ir.Model = program.model
    if model.opset_imports != {"": OPSET}:
        raise InputRefused(
            f"came out as opset {dict(model.opset_imports)}, needed is {OPSET}.",
            where="the traced graph",
            cure="Use a PyTorch version that is tested with resedge (see its constraints file).",
        )
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep from the user what torch's exporter says about itself and not about the model."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")

    def about_the_model(record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.getMessage()

    registration.addFilter(about_the_model)
    try:
        with warnings.catch_warnings():
            # torch 2.13 deep-copies its own tree specs, which warns about itself
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec", FutureWarning)
            yield
    finally:
        registration.removeFilter(about_the_model)


def _clean(model: ir.Model) -> None:
    """Bring the translation to its plain form; nothing here touches a weight."""
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants

    fold_constants(model)  # the axes of a mean are computed from constants
    for node in list(model.graph):
        _plain_reshape(node)
        _plain_global_pool(node)
    for clean in (
        passes.IdentityEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveUnusedNodesPass(),
        passes.TopologicalSortPass(),
    ):
        clean(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "resedge", None
    model.doc_string, model.graph.doc_string, model.graph.name = None, None, "resedge"
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _plain_reshape(node: ir.Node) -> None:
    """Put a Flatten, or a Reshape to a constant shape, for one whose shape is computed from the batch."""
    import onnx_ir as ir

    if node.op_type != "Reshape" or _constant(node, 1) is not None:
        return
    before, after = _sizes(node.inputs[0]), _sizes(node.outputs[0])
    fixed = [size for size in after[1:] if isinstance(size, int)]
    if not before[:1] == after[:1] == ("batch",) or len(fixed) != len(after) - 1:
        return
    if len(fixed) == 1:
        _replace(node, "Flatten", [node.inputs[0]], {"axis": 1})
    else:
        shape = ir.Value(name=f"{node.name}_shape", const_value=ir.tensor([0, *fixed]))
        _graph(node).register_initializer(shape)
        _replace(node, "Reshape", [node.inputs[0], shape], {})


def _plain_global_pool(node: ir.Node) -> None:
    """Put a GlobalAveragePool for a mean over both axes of an image, and where it drops them a Flatten."""
    import onnx_ir as ir

    if node.op_type != "ReduceMean":
        return
    axes, sizes = _constant(node, 1), _sizes(node.inputs[0])
    if axes is None or len(sizes) != 4 or sorted(int(axis) % 4 for axis in axes.numpy()) != [2, 3]:
        return
    if node.attributes.get_int("keepdims", 1) == 1:
        _replace(node, "GlobalAveragePool", [node.inputs[0]], {})
        return
    pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=f"{node.name}_pool")
    pool.metadata_props.update(node.metadata_props)
    pool.outputs[0].shape, pool.outputs[0].type = ir.Shape((*sizes[:2], 1, 1)), node.outputs[0].type
    _graph(node).insert_before(node, pool)
    _replace(node, "Flatten", [pool.outputs[0]], {"axis": 1})


def _replace(old: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, Any]) -> None:
    """Put a node of one output in the place of `old`, its name, metadata and output's facts with it."""
    import onnx_ir as ir

    new = ir.node(op_type, inputs, attributes, name=old.name)
    new.metadata_props.update(old.metadata_props)
    ir.convenience.replace_nodes_and_values(_graph(old), old, [old], [new], old.outputs, new.outputs)


def _graph(node: ir.Node) -> ir.Graph:
    import onnx_ir as ir

    if not isinstance(node.graph, ir.Graph):
        raise TypeError(f"{node.name} is not in a graph")
    return node.graph


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    """Return the constant behind a node's input, None where it is computed or not given."""
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None else value.const_value


def _sizes(value: ir.Value | None) -> tuple[int | str, ...]:
    """Return a tensor's declared shape, free dimensions by name; () where none is declared."""
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)


def _rename(graph: ir.Graph) -> None:
    """Name nodes after their module, tensors after their node, and keep nothing else as metadata."""
    paths = [_module_path(node) for node in graph]
    taken: set[str] = set()
    for node, path in zip(graph, paths, strict=True):
        node.name = unique(_node_name(node, path, paths, graph), taken)
        node.doc_string = None
        node.metadata_props.clear()
        node.metadata_props[MODULE_KEY] = path
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}.out" + (f".{index}" if index else "")
    _rename_initializers(graph)
    for value in (*graph.inputs, *graph.initializers.values(), *_outputs(graph)):
        value.doc_string = None
        value.metadata_props.clear()
    graph.inputs[0].name, graph.outputs[0].name = "input", "logits"


def _rename_initializers(graph: ir.Graph) -> None:
    """Name each constant after the node that reads it first, and put them in that order."""
    readers: dict[ir.Value, tuple[ir.Node, int]] = {}
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer():
                readers.setdefault(value, (node, index))
    graph.initializers.clear()  # an old name may be another one's new name
    for value, (node, index) in readers.items():
        value.name = f"{node.name}.{_role(node, index)}"
        graph.register_initializer(value)


def _outputs(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from node.outputs


def _module_path(node: ir.Node) -> str:
    """Return the path of the module whose call made a node: the scope around its own, "" at the root."""
    import ast

    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "['', '']"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _node_name(node: ir.Node, path: str, paths: list[str], graph: ir.Graph) -> str:
    """Return the module's path where the module is this operator, else the path and the operator."""
    holds_others = path == "" or any(other.startswith(f"{path}.") for other in paths)
    operators = {n.op_type for n, other in zip(graph, paths, strict=True) if other == path}
    if not holds_others and len(operators) == 1:
        return path
    return f"{path}.{node.op_type.lower()}".lstrip(".")


def unique(name: str, taken: set[str]) -> str:
    """Return a name that is not among those taken, with "@1" or the like behind it if need be; take it."""
    repeats = 0
    found = name
    while found in taken:
        repeats += 1
        found = f"{name}@{repeats}"
    taken.add(found)
    return found


def _role(node: ir.Node, index: int) -> str:
    roles = _ROLES.get(node.op_type, ())
    return roles[index] if index < len(roles) else f"const.{index}"
