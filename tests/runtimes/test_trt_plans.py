from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resedge.artifacts import TensorSpec, sha256_bytes
from resedge.errors import BuildFailed, InputRefused
from resedge.runtimes.cuda import Device
from resedge.runtimes.trt_layers import LayerSummary
from resedge.runtimes.trt_plans import (
    RECORD_VERSION,
    PlanHeader,
    PlanRecord,
    check_fit,
    engine_of,
    read_header,
    read_record,
    record_path,
)

ORIN = Device("Orin", "8.7", 16, "540.4.0, CUDA 12.6", "linux-aarch64", True, 64 << 30)
RECORD = PlanRecord(
    record_version=RECORD_VERSION,
    runtime="tensorrt",
    precision="int8",
    version="10.16.2",
    device=ORIN,
    plan_sha256=sha256_bytes(b"plan"),
    graph_sha256="1" * 64,
    inputs=(TensorSpec("input", ("batch", 3, 28, 28), "float32"),),
    outputs=(TensorSpec("logits", ("batch", 10), "float32"),),
    batch_range=(1, 8, 32),
    optimization_level=None,
    workspace_bytes=1 << 30,
    low_memory=False,
    timing_cache_read=None,
    timing_cache_kept="2" * 64,
    layers=LayerSummary(9, 1, 3, {"int8": 3}, ()),
    warnings=(),
)
HEADER = PlanHeader("tensorrt", (10, 16, 2, 10))


def test_record_round_trips() -> None:
    assert read_record(RECORD.to_bytes(), "x.json") == RECORD


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: data.replace(b'"record_version": 1', b'"record_version": 2'), "has record version 2"),
        (lambda data: data.replace(b'"precision"', b'"colour"'), "colour"),
        (lambda data: b"\xff" + data, "UTF-8"),
        (lambda data: data[:-20], "JSON"),
        (lambda _: b"[]", "has record version None"),
    ],
)
def test_foreign_record_is_refused(change: Callable[[bytes], bytes], complaint: str) -> None:
    with pytest.raises(InputRefused, match=complaint) as caught:
        read_record(change(RECORD.to_bytes()), "x.json")
    assert "x.json" in caught.value.where


def test_engine_of_a_record(tmp_path: Path) -> None:
    plan = tmp_path / "tensorrt-int8.plan"
    plan.write_bytes(b"plan")
    record_path(plan).write_bytes(RECORD.to_bytes())
    engine = engine_of(RECORD, plan)
    assert engine.artifact.read() == b"plan"
    assert read_record(engine.companions[0].read(), "x") == RECORD
    assert (engine.runtime, engine.version, engine.device) == ("tensorrt", "10.16.2", "Orin")
    assert engine.artifact.parents == ("1" * 64,)


def plan_of(tag: bytes, version: tuple[int, ...]) -> bytes:
    return tag + struct.pack("<I16x", 0) + bytes(version) + b"the rest"


def test_header() -> None:
    assert read_header(plan_of(b"ftrt", (10, 3, 0, 26)), "x") == PlanHeader("tensorrt", (10, 3, 0, 26))
    assert read_header(plan_of(b"vtrt", (1, 7, 1, 116)), "x") == PlanHeader("tensorrt_rtx", (1, 7, 1, 116))


@pytest.mark.parametrize(
    "data", [b"", b"ftrt", b"\x03\x07\x00\x00" + bytes(40), b'{"stride": 32}' + bytes(40)]
)
def test_what_is_no_plan(data: bytes) -> None:
    with pytest.raises(BuildFailed, match=r"x\.plan: is no TensorRT plan: it starts with"):
        read_header(data, "x.plan")


def test_plan_fits_where_it_was_built() -> None:
    check_fit(RECORD, HEADER, "10.16.2", ORIN, "x.plan")
    check_fit(RECORD, HEADER, "10.16.2", replace(ORIN, driver="541.0.0, CUDA 12.6"), "x.plan")


@pytest.mark.parametrize(
    ("version", "here", "found"),
    [
        ("10.3.0", ORIN, "tensorrt 10.3.0"),
        ("11.4.1", ORIN, "tensorrt 11.4.1"),
        (
            "10.16.2",
            replace(ORIN, compute_capability="11.0", name="Thor"),
            "Thor (compute capability 11.0, 16",
        ),
        ("10.16.2", replace(ORIN, multiprocessors=8), "Orin (compute capability 8.7, 8 multiprocessors)"),
        ("10.16.2", replace(ORIN, platform="linux-x86_64"), "linux-x86_64"),
        ("10.3.0", replace(ORIN, platform="linux-x86_64"), "tensorrt 10.3.0, linux-x86_64"),
    ],
)
def test_misfit_is_one_sentence_with_the_cure(version: str, here: Device, found: str) -> None:
    with pytest.raises(BuildFailed) as caught:
        check_fit(RECORD, HEADER, version, here, "x.plan")
    assert caught.value.what.startswith(
        "built with tensorrt 10.16.2 for Orin (compute capability 8.7, 16 multiprocessors) on linux-aarch64; "
        f"this device has {found}"
    )
    assert caught.value.cure == "Run `resedge build` on this device."


@pytest.mark.parametrize(
    "header", [PlanHeader("tensorrt", (10, 3, 0, 26)), PlanHeader("tensorrt_rtx", (10, 16, 2, 10))]
)
def test_record_of_another_plan(header: PlanHeader) -> None:
    with pytest.raises(BuildFailed, match=r"and its record says tensorrt 10\.16\.2"):
        check_fit(RECORD, header, "10.16.2", ORIN, "x.plan")
