"""Run as a script: build an ONNX file with TensorRT-RTX for SM86 and print its layers as JSON.

In a process of its own, since the parser can crash on graphs that it does not know. Writes a list of
[layer type, input dtypes], from the table that the builder logs; exits 1 with the log where it refuses.
"""

from __future__ import annotations

import enum
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

trt: Any = importlib.import_module("tensorrt_rtx")

_TYPE = re.compile(r"LayerType: (\w+), Inputs: \[(.*?)\], (?:Constants|Outputs)")
_DATATYPE = re.compile(r"Datatype: (\w+)")


class Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: enum.Enum, message: str) -> None:
        self.lines.append(f"{severity.name} {message}")


def build(path: Path) -> tuple[bool, Log]:
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(path.read_bytes()):
        log.lines += [str(parser.get_error(i)) for i in range(parser.num_errors)]
        return False, log
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(trt.ComputeCapability.SM86, 0):
        return False, log
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("input", (1, *shape), (1, *shape), (8, *shape))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None, log


if __name__ == "__main__":
    done, log = build(Path(sys.argv[1]))
    if not done:
        sys.exit("\n".join(log.lines[-20:]))
    table = next(line for line in log.lines if "LayerType: " in line)
    layers = [(kind, _DATATYPE.findall(inputs)) for kind, inputs in _TYPE.findall(table)]
    sys.stdout.write(json.dumps(layers))
