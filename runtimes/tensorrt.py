"""TensorRT: what is here of it, and how its plans are built on the device that runs them.

A plan runs on the TensorRT version and the GPU that built it, so it is made on the device, from the strongly
typed graphs `onnx/fp16.onnx` and `onnx/int8.tensorrt.onnx`: all precision is in the graph.
"""

from __future__ import annotations

import ctypes
import shlex
from contextlib import AbstractContextManager
from pathlib import Path

from resedge.artifacts import Artifact, Engine
from resedge.errors import BuildFailed, RuntimeUnavailable, UsageError
from resedge.protocols import BuildOptions, Probe, Runner, RunOptions
from resedge.runtimes.border import demand_kind, imported

_KINDS = {"fp16": "onnx/fp16", "int8": "onnx/int8.tensorrt"}
_DEFAULT_BATCHES = (1, 8, 32)
_NAME_LENGTH = 256
_CURE = "It comes with JetPack on a Jetson; elsewhere try: pip install 'resedge[tensorrt]'"


class TensorRT:
    """NVIDIA's TensorRT: looked for, not yet driven."""

    name = "tensorrt"

    def probe(self) -> Probe:
        """Say which TensorRT is here and which GPU; it builds no precision itself yet.

        Raises:
            RuntimeUnavailable: TensorRT is not installed or not loadable, or there is no GPU.
        """
        tensorrt = imported(self.name, "tensorrt", _CURE)
        return Probe(self.name, str(tensorrt.__version__), gpu_name(), {})

    def build(self, model: Artifact, out: Path, options: BuildOptions) -> Engine:
        """Refuse, with the commands that build the plan on the device.

        Raises:
            RuntimeUnavailable: Always: this version builds no plans.
            BuildFailed: `model` is not the graph for this precision.
        """
        demand_kind(self.name, model, options.precision, _KINDS)
        commands = trtexec_commands(model, _DEFAULT_BATCHES)
        lines = "; ".join(f"{version}: {command}" for version, command in commands.items())
        raise RuntimeUnavailable(
            f"a TensorRT plan is built on the device that runs it, from onnx/{model.path.name}, and "
            "this version of resedge does not build it yet.",
            cure=f"Run in the bundle's folder on the device ({lines}); the plan lands beside the bundle, "
            "which holds nothing but what its manifest names.",
        )

    def open(self, engine: Engine, options: RunOptions) -> AbstractContextManager[Runner]:
        """Refuse, with the command that runs a plan.

        Raises:
            RuntimeUnavailable: Always: this version runs no plans.
        """
        raise RuntimeUnavailable(
            "this version of resedge does not run TensorRT plans yet.",
            where=str(engine.artifact.path),
            cure=f"Run on the device: trtexec --loadEngine={shlex.quote(engine.artifact.path.name)}",
        )


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
    if not 1 <= batch_range[0] <= batch_range[1] <= batch_range[2]:
        raise UsageError(f"the batch range {batch_range} is not smallest, usual, largest.")
    precisions = {kind: precision for precision, kind in _KINDS.items()}
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


def gpu_name() -> str:
    """Return the name of the first GPU, as the CUDA driver gives it.

    Raises:
        RuntimeUnavailable: There is no driver or no GPU.
    """
    name = ctypes.create_string_buffer(_NAME_LENGTH)
    device = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeUnavailable(
            f"runtime '{TensorRT.name}' is installed, and this machine has no CUDA driver ({error}).",
            cure="Run on a machine with an NVIDIA GPU and its driver.",
        ) from error
    steps = (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDeviceGetName", (name, _NAME_LENGTH, device)),
    )
    for step, arguments in steps:
        if code := getattr(driver, step)(*arguments):
            raise RuntimeUnavailable(
                f"runtime '{TensorRT.name}' is installed, and the CUDA driver gives no GPU "
                f"({step}: error {code}).",
                cure="Look at the driver with nvidia-smi; on a Jetson, at its installation.",
            )
    return name.value.decode()
