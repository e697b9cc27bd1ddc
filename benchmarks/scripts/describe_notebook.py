"""Write the model card of the built-in model from its training log and its own evaluation.

python benchmarks/scripts/describe_notebook.py --weights FILE --log LOG... --out MODEL_CARD.md
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from resedge import images
from resedge.export.architectures import instantiate
from resedge.export.batchnorm import call_counts, reestimate, shared, split
from resedge.export.checkpoints import load_weights, open_checkpoint, read_weights
from resedge.export.names import parse

CARD = """# The built-in model

A ResNet of three blocks at full 28 x 28 resolution (`resedge/export/notebook.py`), as its notebook defines it:
one BatchNorm is called after each of a block's three convolutions.

| | |
|---|---|
| task | Fashion-MNIST, 10 classes, grey repeated to three channels, (value / 255 - 0.2860) / 0.3530 |
| parameters | {parameters:,} ({size:,} bytes, float32) |
| weights | `notebook.safetensors`, SHA-256 `{weights_sha256}` |
| made by | `benchmarks/scripts/train_notebook.py` |

## Training

{training}

Data (gzipped idx files, SHA-256):

{data}

| epoch | learning rate | loss | test top-1, evaluation mode | test top-1, batch statistics |
|---|---|---|---|---|
{history}

## Accuracy on the 10,000 test images

| | top-1 |
|---|---|
| as trained, evaluation mode (`--batchnorm keep`) | {keep:.2%} |
| every call with statistics of its own, re-estimated from 1,024 training images (`--batchnorm split`) | {split:.2%} |

The difference is what the shared BatchNorm costs: in training each call normalises with its own batch's
statistics, but all three write into one running mean and variance. The model is kept as it was trained, so that
it shows what `--batchnorm split` is for.

## Limits

A demonstration and test model: it knows Fashion-MNIST's ten classes and nothing else. The test images were
looked at after each epoch, as the table shows, and the second run was added after seeing what the first had
reached; no epoch was chosen by them, the last one is kept.
"""


@torch.inference_mode()
def top1(module: nn.Module, test: images.ImageSet) -> float:
    """Return top-1 on the built-in test images."""
    module.eval()
    batches = test.batches(250, images.NOTEBOOK_PREPROCESSING)
    predicted = np.concatenate([module(torch.from_numpy(batch)).argmax(1).numpy() for batch in batches])
    return float((predicted == test.labels).mean())


def history_of(logs: list[dict[str, Any]]) -> str:
    """Return the table's rows, the epochs of all runs counted through."""
    rows = [(log["schedule"], entry) for log in logs for entry in log["history"]]
    return "\n".join(
        f"| {number} | {schedule} | {e['loss']:.4f} | {e['top1_evaluation_mode']:.2%} "
        f"| {e['top1_batch_statistics']:.2%} |"
        for number, (schedule, e) in enumerate(rows, start=1)
    )


def main() -> None:
    """Evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--log", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logs = [json.loads(path.read_text()) for path in options.log]
    module = instantiate(parse("notebook"))
    tensors = read_weights(open_checkpoint(options.weights)).tensors
    load_weights(module, tensors, str(options.weights))
    test = images.builtin_test()
    calibration, _ = images.halve(images.builtin_calibration(), 0)
    batches = list(calibration.batches(128, images.NOTEBOOK_PREPROCESSING))
    repaired = split(module, shared(call_counts(module, batches[0][:1])))
    reestimate(repaired, batches)
    training = "\n".join(
        f"- {len(log['history'])} epochs over all 60,000 training images, batch {log['batch']}, seed "
        f"{log['seed']}, {log['optimiser']}, {log['schedule']}; augmentation: {log['augmentation']}; "
        f"torch {log['torch']}"
        for log in logs
    )
    card = CARD.format(
        parameters=sum(p.numel() for p in module.parameters()),
        size=options.weights.stat().st_size,
        weights_sha256=hashlib.sha256(options.weights.read_bytes()).hexdigest(),
        training=training,
        data="\n".join(f"- {name}: `{digest}`" for name, digest in logs[0]["data_sha256"].items()),
        history=history_of(logs),
        keep=top1(module, test),
        split=top1(repaired, test),
    )
    options.out.write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
