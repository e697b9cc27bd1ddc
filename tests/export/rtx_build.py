"""Run as a script: exits 0 if TensorRT-RTX parses and builds the ONNX file, else 1 with its log.

In a process of its own, since the parser can crash on graphs that it does not know.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorrt_rtx as trt  # type: ignore[import-untyped, unused-ignore]


class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        self.lines.append(f"{severity.name} {message}")


def builds(path: Path, log: Log) -> bool:
    builder = trt.Builder(log)
    network = builder.create_network(0)
    if not trt.OnnxParser(network, log).parse(path.read_bytes()):
        return False
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("input", (1, *shape), (1, *shape), (8, *shape))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


if __name__ == "__main__":
    log = Log()
    if not builds(Path(sys.argv[1]), log):
        sys.exit("\n".join(log.lines[-20:]))
