"""Every name that the code looks up on TensorRT or CUDA is in every version, by the versions' own lists."""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from resedge import runtimes

ROOM = Path(str(runtimes.__file__)).resolve().parent
FILES = ("tensorrt.py", "trt_build.py", "trt_layers.py", "trt_log.py", "trt_run.py")
API = runpy.run_path(str(Path(__file__).with_name("api_reader.py")))


def violations(sources: Mapping[str, str], snapshots: Mapping[str, Any]) -> list[str]:
    """Return what the sources use and a version lacks, and what cannot be told."""
    versions = {name: known["api"] for name, known in snapshots.items() if name.startswith("tensorrt")}
    assert len(versions) == 5
    found: list[str] = []
    for file, source in sources.items():
        reader = API["Reader"]()
        reader.read(source)
        found += [f"{file}: {problem}" for problem in reader.problems]
        for use in reader.uses:
            lacking = [name for name, api in versions.items() if not _has(api, use.owner, use.name)]
            if lacking and (not use.guarded or len(lacking) == len(versions)):
                found.append(f"{file}:{use.line}: {use.owner}.{use.name} is not in {', '.join(lacking)}")
    return found


def _has(api: Mapping[str, Any], owner: str, name: str) -> bool:
    if owner == API["MODULE"]:
        return name in api
    described = api.get(owner)
    if described is None:
        return False
    return name in next(iter(described.values()))


def sources() -> dict[str, str]:
    return {name: (ROOM / name).read_text() for name in FILES}


def test_every_name_is_in_every_version(snapshots: Mapping[str, Any]) -> None:
    assert violations(sources(), snapshots) == []


def test_reading_finds_what_is_used() -> None:
    reader = API["Reader"]()
    for source in sources().values():
        one = API["Reader"]()
        one.read(source)
        reader.uses += one.uses
    uses = {(use.owner, use.name) for use in reader.uses}
    assert {
        ("module", "Builder"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("IBuilderConfig", "set_timing_cache"),
        ("ITimingCache", "serialize"),
        ("IProgressMonitor", "step_complete"),
        ("ILogger", "log"),
        ("ParserError", "node_operator"),
        ("IExecutionContext", "execute_async_v3"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("EngineInspector", "get_engine_information"),
        ("Runtime", "engine_host_code_allowed"),
    } <= uses
    assert len(uses) > 50


def test_every_file_that_speaks_to_tensorrt_is_read() -> None:
    speaking = {path.name for path in ROOM.glob("*.py") if re.search(r"\btrt\b[.:,)]", path.read_text())}
    assert speaking == set(FILES)


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        (
            "trt_build.py",
            "STRONGLY_TYPED)",
            "EXPLICIT_BATCH)",
            "NetworkDefinitionCreationFlag.EXPLICIT_BATCH is not in tensorrt-11.4.0.106",
        ),
        (
            "trt_build.py",
            "1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)",
            "1 << 1",
            "create_network is given a number, not an enum",
        ),
        ("trt_build.py", "trt.BuilderFlag.TF32", "trt.BuilderFlag.FP16", "BuilderFlag.FP16 is not in"),
        ("trt_build.py", "config.max_aux_streams = 0", "config.int8_calibrator = 0", "int8_calibrator"),
        ("trt_build.py", "builder.max_threads", "builder.platform_has_fast_int8", "platform_has_fast_int8"),
        (
            "trt_build.py",
            "profile.set_shape(",
            "profile.profile_stream(",
            "IOptimizationProfile.profile_stream",
        ),
        ("trt_build.py", 'hasattr(config, "num_compute_capabilities")', "True", "num_compute_capabilities"),
        ("trt_build.py", "def phase_start(", "def phase_begin(", "IProgressMonitor.phase_begin is not in"),
        ("trt_build.py", "refusal.node_name()", "refusal.nodeName()", "ParserError.nodeName"),
        ("trt_build.py", "(layer.name, ", "(layer.precision, ", "ILayer.precision is not in"),
        (
            "trt_build.py",
            "builder: Any, config: Any",
            "maker: Any, config: Any",
            "what is the parameter 'maker'?",
        ),
        ("trt_run.py", "engine.num_io_tensors", "engine.num_bindings", "ICudaEngine.num_bindings is not in"),
        ("trt_run.py", "_context.execute_async_v3(", "_context.execute_async_v2(", "execute_async_v2"),
        (
            "trt_run.py",
            "context.engine.get",
            "context.engine.has_implicit_batch_dimension.get",
            "has_implicit",
        ),
        ("trt_layers.py", "engine.create_engine_inspector()", "engine.get_engine_stat()", "get_engine_stat"),
        ("tensorrt.py", "del engine, runtime", "engine.device_memory_size", "ICudaEngine.device_memory_size"),
    ],
)
def test_planted_name_is_found(
    snapshots: Mapping[str, Any], file: str, old: str, new: str, complaint: str
) -> None:
    source = sources()[file]
    assert old in source
    found = violations({file: source.replace(old, new)}, snapshots)
    assert found
    assert all(complaint in line for line in found)


def test_every_cuda_name_is_in_every_version(snapshots: Mapping[str, Any]) -> None:
    source = (ROOM / "cuda.py").read_text()
    assert missing_cuda_names(source, snapshots) == set()
    assert missing_cuda_names(source.replace(".cudaMallocHost", ".cudaMallocPinned"), snapshots) == {
        "cudaMallocPinned"
    }
    assert missing_cuda_names(source.replace("found.integrated", "found.clockRate"), snapshots) == {
        "clockRate"
    }


def missing_cuda_names(source: str, snapshots: Mapping[str, Any]) -> set[str]:
    """Return what the source looks up on cuda-python, or on a device's properties, and a version lacks."""
    versions = [known for name, known in snapshots.items() if name.startswith("cuda-")]
    assert len(versions) == 3
    used = set(re.findall(r"\.(cuda[A-Z]\w+)", source))
    properties = set(re.findall(r"\bfound\.(\w+)", source))
    assert len(used) > 20
    assert len(properties) > 5
    missing = set()
    for known in versions:
        members = {member for kind in known["members"].values() for member in kind}
        missing |= used - {*known["names"], *members}
        missing |= properties - set(known["members"]["cudaDeviceProp"])
    return missing
