from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.numpy import load_file, save_file

from resedge import data
from resedge.cli import main

if TYPE_CHECKING:
    from tests.pipeline.conftest import Job


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(result: Result, code: int, *words: str) -> None:
    """One clear line on standard error, the documented exit code, no traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    line = result.stderr.strip()
    assert "Traceback" not in line
    for word in words:
        assert word in line, line


def weights(tmp_path: Path, **change: np.ndarray | None) -> Path:
    tensors = load_file(data.NOTEBOOK_WEIGHTS)
    for name, value in change.items():
        key = name.replace("__", ".")
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    path = tmp_path / "mine.safetensors"
    save_file(tensors, path)
    return path


def test_help_is_quick_to_import_and_needs_no_heavy_library() -> None:
    script = (
        "import sys\nfrom resedge.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'numpy', 'rich', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("empty_home")
class TestBadInput:
    def test_an_unknown_model(self) -> None:
        refused(run("export", "resnet9000"), 2, "unknown model 'resnet9000'", "Known: notebook")

    def test_an_unknown_backend_with_the_nearest(self) -> None:
        refused(run("export", "--backend", "openvio"), 2, "unknown backend 'openvio'", "openvino?")

    def test_an_unknown_precision(self) -> None:
        refused(run("export", "--precision", "int9"), 2, "unknown precision 'int9'")

    def test_a_precision_that_the_backend_lacks(self) -> None:
        refused(run("export", "--backend", "onnxruntime:fp16"), 2, "onnxruntime has no fp16 engine")

    def test_a_backend_and_a_precision_that_exclude_each_other(self) -> None:
        refused(
            run("export", "--backend", "tensorrt", "--precision", "fp32"),
            2,
            "tensorrt has no engine of precision fp32",
        )

    def test_data_beside_test_data(self, tmp_path: Path) -> None:
        result = run("export", "--data", tmp_path, "--test-data", tmp_path)
        refused(result, 2, "--data is split")

    def test_a_confidence_that_means_nothing(self) -> None:
        refused(run("export", "--confidence", "0.5"), 2, "--confidence", "From 0.501")

    def test_a_document_without_a_place(self, tmp_path: Path) -> None:
        refused(run("export", "--json", tmp_path / "none" / "v.json"), 2, "--json", "is not a folder")

    def test_a_batch_range_out_of_order(self) -> None:
        refused(run("export", "--batch-range", "8,1,32"), 2, "1 <= MIN <= OPT <= MAX")

    def test_missing_weights(self, tmp_path: Path) -> None:
        refused(run("export", "--weights", tmp_path / "none.safetensors"), 5, "none.safetensors")

    def test_weights_of_another_format(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(b"PK")
        refused(run("export", "--weights", tmp_path / "model.pt"), 5, "save_file")

    def test_weights_that_do_not_fit_are_named(self, tmp_path: Path) -> None:
        path = weights(tmp_path, linear__bias=None, lineer__bias=np.zeros(10, np.float32))
        result = run("export", "--weights", path, "--out", tmp_path / "m.resedge")
        refused(result, 5, "linear.bias (10) is missing", "lineer.bias (10) is unexpected")
        assert not (tmp_path / "m.resedge").exists()

    def test_weights_of_another_shape(self, tmp_path: Path) -> None:
        path = weights(tmp_path, linear__bias=np.zeros(7, np.float32))
        refused(run("export", "--weights", path), 5, "linear.bias has (7), needs (10)")

    def test_nan_in_the_weights(self, tmp_path: Path) -> None:
        path = weights(tmp_path, linear__bias=np.full(10, np.nan, np.float32))
        refused(run("export", "--weights", path), 5, "linear.bias holds NaN or Inf")

    def test_infinite_logits(self, tmp_path: Path, data_folder: Path) -> None:
        path = weights(tmp_path, linear__weight=np.full((10, 50176), 3e38, np.float32))
        result = run("export", "--weights", path, "--data", data_folder, "--out", tmp_path / "m.resedge")
        refused(result, 5, "NaN or infinite")
        assert not (tmp_path / "m.resedge").exists()

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        refused(run("export", "--data", tmp_path), 5, "holds no images")

    def test_too_few_images(self, tmp_path: Path) -> None:
        Image.new("RGB", (28, 28)).save(tmp_path / "one.png")
        refused(run("export", "--data", tmp_path), 5, "too few")

    def test_images_of_another_size(self, tmp_path: Path) -> None:
        for i in range(9):
            Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / f"{i}.png")
        refused(run("export", "--data", tmp_path), 5, "is 32x32, the model takes 28x28", "8 more")

    def test_more_classes_than_the_model_has(self, tmp_path: Path) -> None:
        for i in range(11):
            (tmp_path / "data" / f"class{i}").mkdir(parents=True)
            Image.new("RGB", (28, 28), (i, i, i)).save(tmp_path / "data" / f"class{i}" / "1.png")
        refused(run("export", "--data", tmp_path / "data"), 5, "has 11 classes, the model has 10")

    def test_fewer_classes_than_the_model_has(self, tmp_path: Path) -> None:
        for i in range(9):
            (tmp_path / "data" / f"class{i}").mkdir(parents=True)
            Image.new("RGB", (28, 28), (i, i, i)).save(tmp_path / "data" / f"class{i}" / "1.png")
        refused(run("export", "--test-data", tmp_path / "data"), 5, "has 9 classes, the model has 10")

    def test_an_output_folder_that_is_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years")
        refused(run("export", "--out", tmp_path), 5, "not a bundle; nothing was written")
        assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["thesis.tex"]

    def test_an_output_folder_that_cannot_be_written(self) -> None:
        refused(run("export", "--out", "/proc/model.resedge"), 5, "cannot be written")

    def test_a_bench_of_no_bundle(self, tmp_path: Path) -> None:
        refused(run("bench", tmp_path / "none.resedge"), 5, "does not exist", "resedge export")

    def test_a_bench_of_another_folder(self, tmp_path: Path) -> None:
        refused(run("bench", tmp_path), 5, "is not a bundle")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, data_folder: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("this sandbox mounts nothing")
    try:
        export = ["export", "--data", str(data_folder), "--out", str(tmp_path / "m")]
        command = [sys.executable, "-m", "resedge", *export]
        environment = {**os.environ, "RESEDGE_HOME": str(small / "home")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 6, done.stderr
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "m").exists()
        assert not list((small / "home" / "cache" / "work").iterdir())
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.usefixtures("home")
class TestOnABundle:
    def test_inspect_names_engines_and_digests(self, job: Job) -> None:
        result = run("inspect", job.bundle)
        assert result.exit_code == 0
        for words in ("eager, batchnorm split", "openvino:int8", "onnx/int8.tensorrt.onnx", "not signed"):
            assert words in result.stdout

    def test_predict_names_the_class(self, job: Job) -> None:
        picture = next((job.data / "09-Ankle boot").iterdir())
        for engine in ("openvino:int8", "onnxruntime:fp32"):
            result = run("predict", job.bundle, picture, "--engine", engine)
            assert result.exit_code == 0
            assert "Ankle boot" in result.stdout

    def test_predict_with_an_engine_that_is_not_there(self, job: Job) -> None:
        picture = next((job.data / "09-Ankle boot").iterdir())
        result = run("predict", job.bundle, picture, "--engine", "tensorrt:int8")
        refused(result, 2, "has no tensorrt:int8 engine", "openvino:int8")

    def test_explain_says_what_int8_costs_layer_by_layer(self, job: Job) -> None:
        result = run("explain", job.bundle)
        assert result.exit_code == 0, result.output
        for words in ("cpu: ranges", "tensorrt: ranges", "hardest tuning images:", "fits:", "SQNR dB"):
            assert words in result.stdout
        for layer in ("layer.0.conv1", "layer.2.conv3", "linear"):
            assert len(re.findall(rf"^ {re.escape(layer)} +\d.* int8 ", result.stdout, re.MULTILINE)) == 1
        clipped = re.findall(r"^clips: (\S+) holds", result.stdout, re.MULTILINE)
        assert clipped
        assert len(set(clipped)) == len(clipped)
        assert re.search(r"^cure: `resedge export … --keep \S+` buys \d+%", result.stdout, re.MULTILINE)

    @pytest.mark.parametrize("engine", ["openvino:int8", "onnxruntime:int8"])
    def test_explain_compares_an_engine_layer_by_layer(self, job: Job, engine: str) -> None:
        result = run("explain", job.bundle, "--engine", engine)
        assert result.exit_code == 0, result.output
        text = " ".join(result.stdout.split())
        for words in (
            *("SQNR dB", "layer.0.conv1 + layer.0.relu", "no layer is bad", "most of the error comes from"),
            *(f"{engine} on 57 golden images", "stands for eager", "those of the engine itself to the bit"),
        ):
            assert words in text

    def test_explain_names_the_first_bad_layer_and_a_cure(self, job: Job) -> None:
        result = run("explain", job.bundle, "--engine", "onnxruntime:int8", "--min-sqnr", "45")
        assert result.exit_code == 0, result.output
        text = " ".join(result.stdout.split())
        assert "first bad layer: layer.0.conv1 + layer.0.relu: its output is 3" in text
        assert "cure: `resedge export … --keep layer.0.conv2`" in text

    def test_explain_of_an_engine_that_runs_on_the_device_alone(self, job: Job) -> None:
        result = run("explain", job.bundle, "--engine", "tensorrt:int8")
        refused(result, 4, "on the device alone", "openvino or onnxruntime")

    def test_bench_measures_and_writes_the_document(self, job: Job, tmp_path: Path) -> None:
        result = run(
            *("bench", job.bundle, "--test-data", job.data, "--backend", "openvino:int8"),
            *("--threads", "1", "--max-drop", "0.5", "--json", tmp_path / "v.json", "--quiet"),
            *("--rounds", "5", "--processes", "2", "--self-check"),
        )
        document = json.loads((tmp_path / "v.json").read_text())
        expected = (1,) if document["self_check"]["alarm"] else (0, 3)
        assert result.exit_code in expected, result.stderr
        assert document["partial"] is False
        assert document["stability"]["stable"] == (not document["stability"]["reasons"])
        assert document["eager"]["best"]["memory_format"] in ("contiguous", "channels_last")
        assert document["schema"] == 1
        assert document["reference"] == "eager, batchnorm split"
        assert document["conditions"]["threads"] == 1
        (engine,) = document["engines"]
        assert (engine["runtime"], engine["precision"]) == ("openvino", "int8")
        assert set(engine["latency"]) >= {
            *("p50_ms", "p50_ms_eager", "speedup", "speedup_low", "speedup_high"),
            *("speedup_best_eager", "relation"),
        }
        assert engine["latency"]["processes"] == [3, 2]
        assert len(engine["latency"]["log_ratios"]) == engine["latency"]["rounds"] == 5
        assert sum(engine["latency"]["distribution"]["counts"]) >= 5 * engine["latency"]["calls_per_block"]
        assert engine["accuracy"]["top5"] >= engine["accuracy"]["top1"]
        assert set(engine["accuracy"]["worst_class"]) == {"class", "images", "drop", "drop_upper"}
        # Half of the folder calibrated and tuned this bundle and may not certify it.
        assert engine["accuracy"]["images"] == 120
        assert "120 test images also served calibration" in " ".join(result.stderr.split())

    def test_bench_of_a_named_backend_that_is_not_there(self, job: Job) -> None:
        result = run(
            *("bench", job.bundle, "--test-data", job.data, "--backend", "tensorrt", "--quiet"),
            *("--rounds", "2", "--processes", "1"),
        )
        assert result.exit_code == 4
        assert "to be built on the device" in result.stdout

    def test_a_changed_file_is_refused_by_every_reader(self, job: Job, tmp_path: Path) -> None:
        import shutil

        copy = tmp_path / "copy.resedge"
        shutil.copytree(job.bundle, copy)
        target = copy / "engines" / "openvino-int8.bin"
        content = bytearray(target.read_bytes())
        content[100] ^= 1
        target.write_bytes(bytes(content))
        picture = next((job.data / "09-Ankle boot").iterdir())
        compared = ("explain", copy, "--engine", "onnxruntime:int8")
        for command in (("inspect", copy), ("bench", copy), ("predict", copy, picture), compared):
            refused(run(*command), 5, "openvino-int8.bin")

    def test_the_cache_is_shown(self, job: Job) -> None:
        result = run("cache", "show")
        assert result.exit_code == 0
        assert str(job.home) in result.stdout


def test_a_defect_is_told_apart_from_a_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from resedge.pipeline import inspecting

    def breaks(path: Path) -> list[tuple[str, str]]:
        raise ZeroDivisionError(str(path))

    monkeypatch.setattr(inspecting, "inspect", breaks)
    result = run("inspect", tmp_path)
    assert result.exit_code == 70
    assert "ZeroDivisionError" in result.stderr
    assert "please report" in result.stderr


def test_doctor_names_what_is_here_and_the_cure_for_what_is_not() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "openvino" in text
    assert "FP16 weights, computed in FP32" in text
    assert "resedge[tensorrt]" in text


def test_doctor_has_the_table_of_jetpack_on_any_machine() -> None:
    result = run("doctor", "--jetpack")
    assert result.exit_code == 0
    assert "36.4.0 to" in result.stdout
    assert "10.16.2?" in result.stdout
    assert "openvino" not in result.stdout


def test_doctor_on_a_jetson_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from resedge.console import print_diagnosis
    from resedge.pipeline.inspecting import diagnose

    release = tmp_path / "etc/nv_tegra_release"
    release.parent.mkdir()
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    print_diagnosis(diagnose(tmp_path))
    text = " ".join(capsys.readouterr().out.split())
    assert "6.2, by L4T 36.4.3" in text
    assert "unknown (/var/lib/nvpmodel/status)" in text
    assert "10.3.0" in text
    assert "10.16.2" not in text
