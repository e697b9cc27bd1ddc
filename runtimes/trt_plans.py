"""What is known of a plan: its own header, the record beside it, and whether it fits this device.

A plan runs on the TensorRT version, the GPU and the platform that built it. TensorRT finds some misfits out
when it loads a plan and others only when kernels fail, so they are found here, before it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resedge.artifacts import (
    Artifact,
    Engine,
    JsonValue,
    TensorSpec,
    canonical_json,
    decode,
    encode,
    parse_json,
    sha256_file,
)
from resedge.errors import BuildFailed, InputRefused
from resedge.runtimes.cuda import Device
from resedge.runtimes.trt_layers import LayerSummary

RECORD_VERSION: Final = 1
PLAN_KIND: Final = "tensorrt/plan"
RECORD_KIND: Final = "tensorrt/record"
REBUILD: Final = "Run `resedge build` on this device."

# A plan starts with four letters, the version of its form and, from byte 24 on, that of its library.
_MAKERS: Final = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_VERSION_AT: Final = 24
_HEADER_LENGTH: Final = 28


@dataclass(frozen=True)
class PlanHeader:
    """What a plan says of itself: the runtime that it is for, and its version, such as (10, 3, 0, 26)."""

    runtime: str
    version: tuple[int, int, int, int]


@dataclass(frozen=True)
class PlanRecord:
    """What resedge knows of a plan; it lies beside it as JSON, and the plan stays what TensorRT wrote.

    `version` and `device` are what it was built with and for, `graph_sha256` is its ONNX file. The digests
    of the timing cache are None where none was read or kept. `convolutions` is what the layers say.
    """

    record_version: int
    runtime: str
    precision: str
    version: str
    device: Device
    plan_sha256: str
    graph_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_range: tuple[int, int, int]
    optimization_level: int | None
    workspace_bytes: int
    low_memory: bool
    timing_cache_read: str | None
    timing_cache_kept: str | None
    layers: LayerSummary
    warnings: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Return the record as JSON."""
        return canonical_json(encode(self)).encode()


def read_record(data: bytes, where: str) -> PlanRecord:
    """Read the record beside a plan.

    Raises:
        InputRefused: It is no record, or one of another version of resedge.
    """
    try:
        document = parse_json(data.decode(), where)
    except UnicodeDecodeError as error:
        raise InputRefused("is not UTF-8 text.", where=where, cure=REBUILD) from error
    version = document.get("record_version") if isinstance(document, Mapping) else None
    if version != RECORD_VERSION:
        raise InputRefused(
            f"has record version {version!r}, this resedge reads {RECORD_VERSION}.", where=where, cure=REBUILD
        )
    return decode(PlanRecord, document, where)


def engine_of(record: PlanRecord, plan: Path) -> Engine:
    """Return the engine that a plan and the record beside it are; the digest is of the file as it is."""
    beside = record_path(plan)
    meta: dict[str, JsonValue] = {"batch_range": list(record.batch_range), "layers": encode(record.layers)}
    artifact = Artifact(
        plan.absolute(),
        record.plan_sha256,
        PLAN_KIND,
        record.inputs,
        record.outputs,
        (record.graph_sha256,),
        meta,
    )
    companion = Artifact(beside.absolute(), sha256_file(beside), RECORD_KIND)
    return Engine(
        artifact, record.runtime, record.version, record.device.name, record.precision, (companion,)
    )


def record_path(plan: Path) -> Path:
    """Return where the record of a plan is."""
    return plan.with_suffix(".json")


def read_header(data: bytes, where: str) -> PlanHeader:
    """Read a plan's own header.

    Raises:
        BuildFailed: It is no plan.
    """
    maker = _MAKERS.get(data[:4])
    if maker is None or len(data) < _HEADER_LENGTH:
        raise BuildFailed(f"is no TensorRT plan: it starts with {data[:4]!r}.", where=where, cure=REBUILD)
    major, minor, patch, build = data[_VERSION_AT:_HEADER_LENGTH]
    return PlanHeader(maker, (major, minor, patch, build))


def check_fit(record: PlanRecord, header: PlanHeader, version: str, device: Device, where: str) -> None:
    """Refuse a plan that was not built for what is here.

    Args:
        record: Of the plan.
        header: Of the same plan.
        version: The version of the runtime that is to load it.
        device: Where.
        where: Named in the error.

    Raises:
        BuildFailed: In one sentence: what it was built with and for, and what is here instead.
    """
    if header.runtime != record.runtime or not _is_same_version(header.version, record.version):
        said = ".".join(map(str, header.version))
        raise BuildFailed(
            f"is a plan of {header.runtime} {said}, and its record says {record.runtime} {record.version}.",
            where=where,
            cure=REBUILD,
        )
    built = record.device
    pairs = (
        (f"{record.runtime} {record.version}", f"{record.runtime} {version}"),
        (_gpu(built), _gpu(device)),
        (built.platform, device.platform),
    )
    here = [found for wanted, found in pairs if wanted != found]
    if here:
        raise BuildFailed(
            f"built with {record.runtime} {record.version} for {_gpu(built)} on {built.platform}; "
            f"this device has {', '.join(here)}.",
            where=where,
            cure=REBUILD,
        )


def _gpu(device: Device) -> str:
    return (
        f"{device.name} (compute capability {device.compute_capability}, "
        f"{device.multiprocessors} multiprocessors)"
    )


def _is_same_version(header: tuple[int, int, int, int], text: str) -> bool:
    """Whether a version in words, which may leave the last numbers out, is the header's."""
    return tuple(text.split(".")) == tuple(map(str, header))[: text.count(".") + 1]
