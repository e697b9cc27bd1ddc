"""The manifest of an export: every file by its place in the bundle, and what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resedge.artifacts import FORMAT_VERSION, Engine
from resedge.bundle import Manifest, ModelInfo, Target
from resedge.machine import Machine
from resedge.pipeline.judging import Judged
from resedge.pipeline.options import RUNTIMES, ExportOptions
from resedge.pipeline.preparing import Prepared
from resedge.pipeline.staging import Data, Places, map_artifacts, versions

_TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "openvino", "numpy")


def manifest_of(
    options: ExportOptions,
    data: Data,
    here: Machine,
    prepared: Prepared,
    engines: Sequence[Engine],
    judged: Judged,
    places: Places,
) -> Manifest:
    """Return the manifest; `places` says where each file of the bundle is now."""
    from resedge.runtimes.trtexec import trtexec_commands

    names = {path: Path(name) for name, path in places.items()}
    parts = [part for engine in engines for part in (engine.artifact, *engine.companions)]
    # An engine may be a graph that is among the prepared files already; each file is named once.
    files = {a.path: a for a in (*parts, *prepared.files, judged.document, *judged.files)}
    reference, graphs = prepared.reference.value, prepared.graphs.value
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        counter=0,
        expires=None,
        signing=None,
        signed_at=None,
        model=ModelInfo(
            prepared.label,
            prepared.name,
            "split" if reference.repaired else "keep",
            graphs.fp32.inputs[0],
            graphs.fp32.outputs[0],
        ),
        preprocessing=data.preprocessing,
        labels=data.labels,
        target=Target(RUNTIMES, here.features),
        files=tuple(sorted(files.values(), key=lambda artifact: names[artifact.path].as_posix())),
        engines=tuple(engines),
        toolchain={name: v for name, v in versions(*_TOOLS).items() if v != "absent"},
        parents={
            "weights": reference.checkpoint,
            "calibration_images": data.calibration.sha256,
            "tuning_images": data.tuning.sha256,
            "test_images": data.test.sha256,
        },
        trtexec={
            half.value.path.name: dict(trtexec_commands(half.value, options.batch_range))
            for half in prepared.halves
        },
    )
    return map_artifacts(manifest, lambda artifact: replace(artifact, path=names[artifact.path]))
