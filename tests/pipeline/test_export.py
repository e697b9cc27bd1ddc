from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from safetensors.numpy import load_file

from resedge import bundle as bundles
from resedge.artifacts import sha256_file
from resedge.pipeline.exporting import export
from resedge.pipeline.options import ExportOptions, Measuring, select
from resedge.pipeline.reporting import Silent

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job

EXPORT = """
import sys
from pathlib import Path
from resedge.pipeline.exporting import export
from resedge.pipeline.options import ExportOptions, Measuring
from resedge.store import Store
Store.discard = lambda *_: False  # an inconclusive latency, which would be measured again
result = export(ExportOptions(data=Path(sys.argv[1]), batchnorm="split",
    measuring=Measuring(max_drop=0.5, threads=1), out=Path(sys.argv[2])))
print(result.all_reused, result.published.changed,
      sorted({"torch", "openvino", "onnxruntime"} & set(sys.modules)))
"""


def test_the_bundle_holds_what_the_design_says(job: Job) -> None:
    bundle = bundles.read(job.bundle)
    bundles.check(bundle)
    files = [a.path.as_posix() for a in bundle.manifest.files]
    assert [name for name in files if name != "onnx/equalised.onnx"] == sorted(
        [
            "calibration/images.json",
            "calibration/layers.json",
            "calibration/ranges.json",
            *(f"engines/openvino-{p}.{s}" for p in ("fp32", "fp16", "int8") for s in ("xml", "bin")),
            "golden/golden.safetensors",
            "golden/trial.json",
            *(f"onnx/{g}.onnx" for g in ("fp32", "fp16", "int8.cpu", "int8.tensorrt")),
            *("onnx/folding.json", "onnx/half.json"),
            "reference/source.json",
            "reference/weights.safetensors",
            *("verdicts/all.json", "verdicts/report.html"),
            *(
                f"verdicts/{name}.json"
                for name in (
                    *("openvino-fp32", "openvino-fp16", "openvino-int8"),
                    *("onnxruntime-fp32", "onnxruntime-int8", "tensorrt-fp16", "tensorrt-int8"),
                )
            ),
        ]
    )
    assert [(e.runtime, e.precision) for e in bundle.manifest.engines] == [
        *(("openvino", "fp32"), ("openvino", "fp16"), ("openvino", "int8")),
        *(("onnxruntime", "fp32"), ("onnxruntime", "int8")),
    ]


def test_a_graph_in_int8_names_the_float_graph_that_it_was_made_from(job: Job) -> None:
    bundle = bundles.read(job.bundle)
    float_graphs = {a.sha256 for a in bundle.manifest.files if a.kind == "onnx/fp32"}
    for name in ("onnx/int8.cpu.onnx", "onnx/int8.tensorrt.onnx"):
        assert float_graphs & set(bundle.file(name).parents), name


def test_the_manifest_has_the_fields_that_later_steps_need(job: Job) -> None:
    document = json.loads((job.bundle / "manifest.json").read_text())
    assert document["format_version"] == 1
    assert document["counter"] == 1
    assert document["signing"] is None
    assert document["expires"] is None
    assert document["model"]["reference"] == "eager, batchnorm split"
    assert document["model"]["input"] == {
        "name": "input",
        "shape": ["batch", 3, 28, 28],
        "dtype": "float32",
    }
    assert document["target"]["tensorrt"] is None
    assert set(document["parents"]) == {
        *("weights", "calibration_images", "tuning_images", "test_images"),
    }
    assert "--stronglyTyped" in json.dumps(document["trtexec"]["int8.tensorrt.onnx"])


def test_nothing_in_the_bundle_names_a_folder_of_this_machine(job: Job) -> None:
    for path in job.bundle.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for trace in (str(job.home), str(job.bundle.parent), str(Path.home()) + "/", "site-packages"):
                assert trace.encode() not in content, f"{path.name} holds {trace}"


def test_every_graph_is_opset_19_with_the_fixed_names(job: Job) -> None:
    for name in ("fp32", "fp16", "int8.cpu", "int8.tensorrt"):
        model = onnx.load(job.bundle / "onnx" / f"{name}.onnx")
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 19)]
        assert model.ir_version <= 10
        assert [i.name for i in model.graph.input] == ["input"]
        assert [o.name for o in model.graph.output] == ["logits"]
        assert {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)} == {1}
        onnx.checker.check_model(model, full_check=True)


def test_the_float_engines_say_what_eager_says(job: Job) -> None:
    verdicts = {(v.runtime, v.precision): v for v in job.result.verdicts}
    for name in (("openvino", "fp32"), ("onnxruntime", "fp32")):
        accuracy = verdicts[name].accuracy
        assert accuracy is not None
        assert accuracy.agreement == 1.0
        assert accuracy.max_abs_logit_error < 1e-3
    int8 = verdicts["openvino", "int8"].accuracy
    assert int8 is not None
    assert int8.max_abs_logit_error > 1e-3  # it really is another engine


def test_tensorrt_is_left_to_the_device_and_that_is_no_failure(job: Job) -> None:
    verdicts = {(v.runtime, v.precision): v for v in job.result.verdicts}
    for precision in ("fp16", "int8"):
        assert verdicts["tensorrt", precision].outcome == "unavailable"
        assert "to be built on the device" in verdicts["tensorrt", precision].reasons[0]
    assert job.result.exit_code != 4


def test_the_golden_images_are_ones_that_eager_is_sure_of(job: Job) -> None:
    golden = load_file(job.bundle / "golden" / "golden.safetensors")
    assert golden["input"].shape[1:] == (3, 28, 28)
    best = np.sort(golden["logits"], axis=1)
    assert (best[:, -1] - best[:, -2]).min() > 0
    trial = json.loads((job.bundle / "golden" / "trial.json").read_text())
    assert trial == {"format_version": 1, "images": len(golden["input"]), "min_agreement": 1.0}


def test_a_second_export_does_nothing_and_needs_no_torch(job: Job) -> None:
    before = {p: p.stat().st_mtime_ns for p in job.bundle.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(job.data), str(job.bundle)],
        env={"RESEDGE_HOME": str(job.home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True False []"
    assert {p: p.stat().st_mtime_ns for p in job.bundle.rglob("*")} == before


def test_another_folder_and_an_empty_cache_give_the_same_bytes(job: Job, tmp_path: Path) -> None:
    again = tmp_path / "other.resedge"
    command = [sys.executable, "-c", EXPORT, str(job.data), str(again)]
    subprocess.run(command, env={"RESEDGE_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}, check=True)
    for part in ("reference", "onnx", "calibration", "golden", "engines"):
        names = sorted(p.name for p in (job.bundle / part).iterdir())
        assert names == sorted(p.name for p in (again / part).iterdir())
        for name in names:
            first, second = job.bundle / part / name, again / part / name
            assert sha256_file(first) == sha256_file(second), f"{part}/{name} differs"


def test_what_a_smaller_export_takes_away_is_said(job: Job, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.resedge"
    shutil.copytree(job.bundle, out)
    heard: list[str] = []

    class Heard(Silent):
        def warn(self, text: str) -> None:
            heard.append(text)

    result = export(
        ExportOptions(
            data=job.data,
            batchnorm="split",
            selection=select(["openvino:int8"], []),
            measuring=Measuring(max_drop=0.5, threads=1),
            out=out,
        ),
        Heard(),
    )
    assert f"{out} had onnxruntime:fp32, onnxruntime:int8, openvino:fp16, openvino:fp32" in " ".join(heard)
    assert result.published.changed
    assert bundles.read(out).manifest.counter == 2
    assert [e.precision for e in bundles.read(out).manifest.engines] == ["int8"]
