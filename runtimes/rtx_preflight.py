"""What TensorRT for RTX makes of a graph, found out on a machine without a GPU.

It parses the graph, builds a plan for a GPU that is not here, and lists its layers. What that shows is that
NVIDIA's parser and builder take the graph, and in which types its convolutions are. What a device fuses,
how fast it is and what accuracy it keeps are not shown.

A child process does it (`rtx_child.py`), under limits: the parser can crash on graphs that it does not know,
and a builder without memory can wait for ever.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resedge.artifacts import Artifact, canonical_json, decode, encode, load
from resedge.errors import MachineFailure, ResedgeError, RuntimeUnavailable, UsageError
from resedge.runtimes.tensorrt import check_batch_range
from resedge.runtimes.tensorrt_rtx import CURE, NAME, installed_version, refuse_lost_int8
from resedge.runtimes.trt_layers import LayerSummary

TARGET: Final = "8.6"  # the nearest to a Jetson's 8.7, which TensorRT for RTX does not build for
INT8_KIND: Final = "onnx/int8.tensorrt"
_CHILD: Final = "resedge.runtimes.rtx_child"
_ERRORS: Final = {kind.exit_code: kind for kind in (UsageError, MachineFailure, RuntimeUnavailable)}
_LAST: Final = 300


@dataclass(frozen=True)
class Limits:
    """What the child may take: seconds by the clock, and bytes of memory of its own.

    The libraries and a ResNet-50 take 250 MB and a few seconds.
    """

    seconds: float = 300.0
    memory_bytes: int = 2 << 30


@dataclass(frozen=True)
class Request:
    """What the child is asked; `graph` is the file, absolute."""

    graph: str
    batch_range: tuple[int, int, int]
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True)
class Preflight:
    """What came of a graph; `layers` is None where it was refused, and `reasons` say why, node by node."""

    version: str
    compute_capability: str
    reasons: tuple[str, ...]
    layers: LayerSummary | None
    warnings: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether it was parsed and built."""
        return self.layers is not None

    def sentence(self) -> str:
        """Say it in one line."""
        who = f"TensorRT for RTX {self.version}"
        if self.layers is None:
            return f"{who} refuses it: {'; '.join(self.reasons)}"
        return f"{who} parses and builds it for SM {self.compute_capability}, {_counts(self.layers)}"


def preflight(
    graph: Artifact,
    batch_range: tuple[int, int, int],
    compute_capability: str = TARGET,
    limits: Limits | None = None,
) -> Preflight:
    """Have TensorRT for RTX parse a graph and build it, in a child process.

    Args:
        graph: "onnx/fp16" or "onnx/int8.tensorrt", by the digest that it is known by.
        batch_range: The smallest, usual and largest batch size; one number three times for a fixed one.
        compute_capability: The GPU to build for, such as "8.6" or "12.0".
        limits: Those of the child.

    Returns:
        What came of it; a parser or builder that crashed is a refusal.

    Raises:
        RuntimeUnavailable: TensorRT for RTX is not here, or too old.
        UsageError: The batch sizes are impossible, this TensorRT does not build for that GPU, or INT8 would
            be lost on it.
        StaleArtifact: The graph's file has changed.
        MachineFailure: The child ran into a limit.
    """
    check_batch_range(batch_range)
    version = installed_version()
    if version is None:
        raise RuntimeUnavailable(f"runtime '{NAME}' is not installed.", cure=CURE)
    if graph.kind == INT8_KIND:
        refuse_lost_int8(compute_capability)
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="resedge-preflight-") as folder:
        file, answer = Path(folder) / "graph.onnx", Path(folder) / "answer.json"
        file.write_bytes(graph.read())
        request = Request(str(file), batch_range, compute_capability, limits.memory_bytes)
        done = _run(request, answer, limits.seconds)
        if done.returncode == 0:
            return load(Preflight, answer)
    return _crashed(done, version, compute_capability)


def read_request(text: str) -> Request:
    """Return what the child was asked, from its argument."""
    return decode(Request, json.loads(text), "request")


def _run(request: Request, answer: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run the child with the modules of this process, in a folder that has none."""
    command = [sys.executable, "-m", _CHILD, canonical_json(encode(request)), str(answer)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    try:
        return subprocess.run(
            command,
            cwd=answer.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MachineFailure(
            f"TensorRT for RTX was not done with the graph in {seconds:g} seconds.",
            cure="Close other programs and try again.",
        ) from error


def _crashed(done: subprocess.CompletedProcess[str], version: str, compute_capability: str) -> Preflight:
    """Return the refusal that a crash is, or raise what the child has said."""
    said = " ".join(done.stderr.split())
    if done.returncode > 0:
        kind: type[ResedgeError] = _ERRORS.get(done.returncode, MachineFailure)
        raise kind(said[-_LAST:] or f"{_CHILD} ended with {done.returncode}.")
    if "bad_alloc" in said:
        raise MachineFailure("TensorRT for RTX is out of memory.", cure="Close other programs and try again.")
    crash = f"its parser or builder crashed ({signal.Signals(-done.returncode).name})"
    return Preflight(version, compute_capability, (crash,), None)


def _counts(layers: LayerSummary) -> str:
    counted = [f"{count} of {layers.convolutions} convolutions in {kind}" for kind, count in _by_type(layers)]
    text = ", ".join(counted) or "no convolutions"
    if layers.fell_back:
        text += f"; INT8 in the graph and not in the plan: {', '.join(layers.fell_back)}"
    return text


def _by_type(layers: LayerSummary) -> list[tuple[str, int]]:
    """Return the counts of convolutions by type, the largest first."""
    return sorted(((kind.upper(), count) for kind, count in layers.by_type.items()), key=lambda row: -row[1])
