"""Quantise one prepared network with one peer, and print how its answers compare with eager's, as JSON.

    PEER_PYTHON benchmarks/peers/quantise.py TOOL SETTING FOLDER DRAW [--pairs]

Runs in the peer's own environment (requirements-*.txt), which need not have resedge. FOLDER is
prepare.py's. NNCF's models run in OpenVINO, ONNX Runtime's in ONNX Runtime, both in their integer
kernels; ModelOpt's graph, which is for TensorRT, in ONNX Runtime with every Q and DQ computed in float.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]
Quantised = tuple[Run, dict[str, Any]]
"""What runs the quantised network, and what else the row says of it."""
BATCH = 20
CONTROLLED = "accuracy control"


def nncf(setting: str, folder: Path, images: np.ndarray, _work: Path) -> Quantised:
    """NNCF on OpenVINO: "default", "minmax without bias correction", or "accuracy control [MAX_DROP]"."""
    import nncf as library  # type: ignore[import-not-found]  # a peer's environment has it
    import openvino as ov  # type: ignore[import-untyped]
    from nncf.quantization.advanced_parameters import (  # type: ignore[import-not-found]
        AdvancedQuantizationParameters,
    )
    from nncf.quantization.range_estimator import (  # type: ignore[import-not-found]
        RangeEstimatorParametersSet,
    )

    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = ov.Core().read_model(folder / "fp32.onnx")
    dataset = library.Dataset([image[None] for image in images])
    preset = library.QuantizationPreset.PERFORMANCE
    if setting.startswith(CONTROLLED):
        labels = np.load(folder / "tuning-labels.npy")
        validation = [
            (image[None], label) for image, label in zip(np.load(folder / "tuning.npy"), labels, strict=True)
        ]

        def top1(compiled: Any, items: Any) -> float:  # noqa: ANN401
            right = [int(np.argmax(compiled([image])[0])) == label for image, label in items]
            return float(np.mean(right))

        quantised = library.quantize_with_accuracy_control(
            model,
            dataset,
            library.Dataset(validation),
            top1,
            max_drop=float(setting.removeprefix(CONTROLLED) or 0.0),
            subset_size=len(images),
            preset=preset,
        )
    else:
        advanced = None
        if setting != "default":
            advanced = AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                disable_bias_correction=True,
            )
        quantised = library.quantize(
            model, dataset, subset_size=len(images), preset=preset, advanced_parameters=advanced
        )
    compiled = ov.Core().compile_model(quantised, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: np.array(compiled([batch])[0]), {"kept": _float_layers(quantised)}


def _float_layers(model: Any) -> list[str]:  # noqa: ANN401 - an openvino.Model
    """Return the layers whose weight is not quantised, by their names in the ONNX file."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            weight = node.input_value(1).get_node()
            if weight.get_type_name() not in ("FakeQuantize", "Multiply"):
                found.append(node.get_friendly_name().removesuffix("/WithoutBiases"))
    return found


def onnxruntime(setting: str, folder: Path, images: np.ndarray, work: Path) -> Quantised:
    """ONNX Runtime's static quantisation; the setting is a calibration method, "7 bit" after it or not."""
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped]
        quant_pre_process,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"input": image[None]}

    quant_pre_process(folder / "fp32.onnx", work / "pre.onnx")
    method = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[setting.split()[0]]
    quantize_static(
        work / "pre.onnx",
        work / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range="7 bit" in setting,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )
    return _session(work / "int8.onnx"), {}


def modelopt(setting: str, folder: Path, images: np.ndarray, work: Path) -> Quantised:
    """NVIDIA ModelOpt's explicit quantisation; the setting is "entropy" or "max"."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    quantize(
        str(folder / "fp32.onnx"),
        quantize_mode="int8",
        calibration_data=images,
        calibration_method=setting,
        calibration_eps=["cpu"],
        output_path=str(work / "int8.onnx"),
        high_precision_dtype="fp32",
        log_level="ERROR",
    )
    return _session(work / "int8.onnx", as_written=True), {}


def _session(path: Path, *, as_written: bool = False) -> Run:
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def compared(eager: np.ndarray, given: np.ndarray, labels: np.ndarray) -> dict[str, float | int]:
    """Return agreement, flips and the mean divergence of the softmax of two sets of logits."""
    chosen, found = eager.argmax(axis=1), given.argmax(axis=1)
    p, q = (x - x.max(axis=1, keepdims=True) for x in (eager.astype(np.float64), given.astype(np.float64)))
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    right, kept = chosen == labels, found == labels
    return {
        "images": len(labels),
        "differ": int((chosen != found).sum()),
        "agreement": float((chosen == found).mean()),
        "negative_flips": int((right & ~kept).sum()),
        "positive_flips": int((~right & kept).sum()),
        "top1": float(kept.mean()),
        "kl": float((np.exp(p) * (p - q)).sum(axis=1).mean()),
    }


def main() -> None:
    """Quantise, run over the test images, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=("nncf", "onnxruntime", "modelopt"))
    parser.add_argument("setting")
    parser.add_argument("folder", type=Path)
    parser.add_argument("draw", type=int)
    options = parser.parse_args()
    images = np.load(options.folder / f"calibration-{options.draw}.npy")
    test = np.load(options.folder / "test.npy")
    with tempfile.TemporaryDirectory() as work:
        started, cpu = time.monotonic(), time.process_time()
        run, details = {"nncf": nncf, "onnxruntime": onnxruntime, "modelopt": modelopt}[options.tool](
            options.setting, options.folder, images, Path(work)
        )
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
        given = np.concatenate([run(test[start : start + BATCH]) for start in range(0, len(test), BATCH)])
    eager, labels = (np.load(options.folder / f"test-{part}.npy") for part in ("logits", "labels"))
    row = {
        "tool": options.tool,
        "setting": options.setting,
        "draw": options.draw,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
    }
    print(json.dumps(row | details | compared(eager, given, labels)))


if __name__ == "__main__":
    main()
