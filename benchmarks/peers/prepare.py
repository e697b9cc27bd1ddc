"""Prepare what quantisers are compared on: the FP32 graph, five draws of calibration images, eager's answers.

    python benchmarks/peers/prepare.py notebook|resnet20 --data DIR --out FOLDER

DIR holds the idx files of Fashion-MNIST (Debian: dataset-fashion-mnist). FOLDER gets fp32.onnx and .npy
files: calibration-0..4 (300 training images each, float32), tuning (1,024 others, with labels), test (the
10,000 test images, labels and eager's logits), and draws.json, which has the training images' numbers.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import torch
from networks import resnet20  # type: ignore[import-not-found]  # beside this script, not packaged
from safetensors.torch import load_file

from resedge import data as builtin
from resedge.export import batchnorm
from resedge.export.fold import fold
from resedge.export.notebook import ResNet
from resedge.export.onnxfile import write_onnx
from resedge.export.trace import trace
from resedge.images import NOTEBOOK_PREPROCESSING, prepare

DRAWS, EACH, TUNING = 5, 300, 1024
HERE = Path(__file__).resolve().parent


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">u4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def model_of(network: str, statistics: np.ndarray) -> torch.nn.Module:
    """Return a trained network in evaluation mode; the notebook's BatchNorms are split, as `export` does."""
    if network == "resnet20":
        small: torch.nn.Module = resnet20()
        small.load_state_dict(load_file(HERE / "resnet20.safetensors"))
        return small.eval()
    model: torch.nn.Module = ResNet()
    model.load_state_dict(load_file(builtin.NOTEBOOK_WEIGHTS))
    model.eval()
    model = batchnorm.split(model, batchnorm.shared(batchnorm.call_counts(model, statistics[:1])))
    batchnorm.reestimate(model, np.array_split(statistics, len(statistics) // 128))
    return model.eval()


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("notebook", "resnet20"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def images(part: str, chosen: np.ndarray | None = None) -> np.ndarray:
        grey = read_idx(options.data / f"{part}-images-idx3-ubyte.gz")
        grey = grey if chosen is None else grey[chosen]
        return prepare(np.repeat(grey[..., None], 3, axis=-1), NOTEBOOK_PREPROCESSING)

    labels = read_idx(options.data / "train-labels-idx1-ubyte.gz").astype(np.int64)
    order = np.random.default_rng(1).permutation(len(labels))
    draws = order[: DRAWS * EACH].reshape(DRAWS, EACH)
    tuning = order[DRAWS * EACH : DRAWS * EACH + TUNING]
    for number, draw in enumerate(draws):
        np.save(options.out / f"calibration-{number}.npy", images("train", draw))
    np.save(options.out / "tuning.npy", images("train", tuning))
    np.save(options.out / "tuning-labels.npy", labels[tuning])
    test = images("t10k")
    np.save(options.out / "test.npy", test)
    np.save(
        options.out / "test-labels.npy", read_idx(options.data / "t10k-labels-idx1-ubyte.gz").astype(np.int64)
    )
    (options.out / "draws.json").write_text(json.dumps({"draws": draws.tolist(), "tuning": tuning.tolist()}))

    model = model_of(options.network, images("train", order[-1024:]))
    sample = test[:16]
    folded = fold(trace(model, sample.shape[1:]), sample)
    write_onnx(folded.graph, sample.shape[1:], options.out / "fp32.onnx", parents=())
    with torch.inference_mode():
        for part in ("test", "tuning"):
            batches = torch.split(torch.from_numpy(np.load(options.out / f"{part}.npy")), 50)
            np.save(
                options.out / f"{part}-logits.npy", torch.cat([model(batch) for batch in batches]).numpy()
            )


if __name__ == "__main__":
    main()
