"""Run as a script: build an ONNX file with TensorRT for RTX by resedge's own code, for a GPU not here.

Prints as JSON the layers that came of it, or the refusal; writes the plan to the second argument. In a
process of its own, since the parser can crash on graphs that it does not know.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from resedge.protocols import NoProgress
from resedge.runtimes.trt_build import BuildSettings, build_plan, parse_alone
from resedge.runtimes.trt_layers import read_table, summarize
from resedge.runtimes.trt_log import TensorRTError
from resedge.runtimes.trt_memory import MemoryPlan
from resedge.runtimes.trt_run import load_engine


class Counted(NoProgress):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def start(self, label: str, total: int) -> None:
        self.told.append((label, total))

    def advance(self, units: int) -> None:
        self.told.append(("advance", units))

    def finish(self) -> None:
        self.told.append(("finish", None))


class Stopping(Counted):
    """Interrupts the build at its first step."""

    def advance(self, units: int) -> None:
        raise KeyboardInterrupt


def main(graph: Path, plan: Path, way: str) -> dict[str, object]:
    trt = import_module("tensorrt_rtx")
    progress = Stopping() if way == "stopped" else Counted()
    settings = BuildSettings((1, 4, 8), MemoryPlan(1 << 28, way == "low"), compute_capability="8.6")
    try:
        if way == "parsed":
            parse_alone(trt, graph.read_bytes())
            return {"parsed": True}
        built = build_plan(trt, graph.read_bytes(), settings, progress)
    except TensorRTError as error:
        return {"refused": str(error)}
    except KeyboardInterrupt:
        return {"stopped": True}
    plan.write_bytes(built.data)
    try:
        load_engine(trt, built.data)
        loading = ""
    except TensorRTError as error:
        loading = str(error)
    return {
        "summary": asdict(summarize(read_table(built.table), built.convolutions)),
        "warnings": built.warnings,
        "told": progress.told,
        "loading": loading,
    }


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))
