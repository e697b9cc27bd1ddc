"""The plans of a bundle by NVIDIA's own tool: what to type where resedge is not installed."""

from __future__ import annotations

import shlex

from resedge.artifacts import Artifact
from resedge.errors import BuildFailed
from resedge.runtimes.tensorrt import GRAPH_KINDS, check_batch_range


def trtexec_commands(model: Artifact, batch_range: tuple[int, int, int]) -> dict[str, str]:
    """Return the commands that build a plan, for each line of TensorRT versions that needs its own.

    TensorRT 10 has to be told that the graph's types are binding; TensorRT 11 knows nothing else.

    Args:
        model: "onnx/fp16" or "onnx/int8.tensorrt", which lies in a bundle's `onnx` folder.
        batch_range: The smallest, the usual and the largest batch size.

    Returns:
        For "TensorRT 10" and "TensorRT 11" one line for the shell, to be run in the bundle's folder. The
        plan is saved beside that folder: a file in it that its manifest does not name fails its check.
        Neither line measures: the versions time different things by default.

    Raises:
        UsageError: The batch sizes are not in ascending order from 1 up.
        BuildFailed: `model` is neither graph.
    """
    check_batch_range(batch_range)
    precisions = {kind: precision for precision, kind in GRAPH_KINDS.items()}
    if model.kind not in precisions:
        raise BuildFailed(
            f"is of the kind '{model.kind}', and a plan is built from {' or '.join(precisions)}.",
            where=str(model.path),
        )
    (spec,) = model.inputs
    shapes = [
        f"--{bound}Shapes={spec.name}:{'x'.join(map(str, (batch, *spec.shape[1:])))}"
        for bound, batch in zip(("min", "opt", "max"), batch_range, strict=True)
    ]
    common = [
        "trtexec",
        f"--onnx=onnx/{model.path.name}",
        *shapes,
        f"--saveEngine=../tensorrt-{precisions[model.kind]}.plan",
        "--skipInference",
    ]
    return {
        "TensorRT 10": shlex.join([*common, "--stronglyTyped"]),
        "TensorRT 11": shlex.join(common),
    }
