"""Run as a module by `rtx_preflight.py`: parse and build one graph, and write what came of it.

The arguments are a `Request` as JSON and the file for the answer. Exits with the code of the error, and its
message on standard error, where there is no answer.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from resedge.artifacts import canonical_json, encode
from resedge.errors import MachineFailure, ResedgeError
from resedge.protocols import NoProgress
from resedge.runtimes.rtx_preflight import Preflight, Request, read_request
from resedge.runtimes.tensorrt_rtx import load_library
from resedge.runtimes.trt_build import BuildSettings, build_plan
from resedge.runtimes.trt_layers import read_table, summarize
from resedge.runtimes.trt_log import OutOfMemory, TensorRTError
from resedge.runtimes.trt_memory import MemoryPlan

_WORKSPACE_BYTES = 1 << 28  # of the GPU that is not here


def build(request: Request) -> Preflight:
    """Return what TensorRT for RTX makes of a graph.

    Raises:
        RuntimeUnavailable: It cannot be loaded, or is too old.
        UsageError: It does not build for that GPU, or the graph not for these batch sizes.
        MachineFailure: It is out of memory.
    """
    library = load_library()
    version, target = str(library.__version__), request.compute_capability
    memory = MemoryPlan(_WORKSPACE_BYTES, low=False)
    settings = BuildSettings(request.batch_range, memory, compute_capability=target)
    try:
        built = build_plan(library, Path(request.graph).read_bytes(), settings, NoProgress())
    except (OutOfMemory, MemoryError) as error:
        raise MachineFailure(
            f"TensorRT for RTX is out of memory: {error}.", cure="Close other programs and try again."
        ) from error
    except TensorRTError as error:
        return Preflight(version, target, tuple(map(str, error.args)), None)
    layers = summarize(read_table(built.table), built.convolutions)
    return Preflight(version, target, (), layers, built.warnings)


def limit(memory_bytes: int) -> None:
    """Limit this process's own memory, and leave no core dump of a crash.

    Not the address space: half a gigabyte of it is mapped files of the libraries.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(arguments: list[str]) -> int:
    """Answer one request; return the exit code."""
    request = read_request(arguments[0])
    limit(request.memory_bytes)
    try:
        answer = build(request)
    except ResedgeError as error:
        sys.stderr.write(str(error))
        return error.exit_code
    Path(arguments[1]).write_text(canonical_json(encode(answer)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
