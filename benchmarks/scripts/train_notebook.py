"""Train the built-in model on Fashion-MNIST, as its notebook does, and write its weights.

    python benchmarks/scripts/train_notebook.py --data DIR --out first.safetensors
    python benchmarks/scripts/train_notebook.py --data DIR --out notebook.safetensors \
        --start-from first.safetensors --epochs 2 --learning-rate 1e-3 --shift 0 --seed 20260102

The first run warms up and down again (one-cycle); a run that starts from weights only decays, linearly to 0.

DIR holds the four idx files of Fashion-MNIST (Debian: package dataset-fashion-mnist). The run is
seeded; the log beside the weights (OUT with suffix .log.json) records every epoch, the digests of the
data and the settings, and `describe_notebook.py` makes the model card from it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resedge.export.notebook import ResNet

MEAN, STD = 0.2860, 0.3530


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes (the format of MNIST)."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def normalise(images: Tensor) -> Tensor:
    """(N, 28, 28) uint8 to (N, 3, 28, 28) float32."""
    grey = (images.to(torch.float32) / 255.0 - MEAN) / STD
    return grey[:, None].repeat(1, 3, 1, 1)


def augment(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Mirror half of the images and shift each by up to `shift` pixels (background is 0)."""
    padded = nn.functional.pad(images, (shift,) * 4)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    shifts = torch.randint(0, 2 * shift + 1, (len(images), 2), generator=generator)
    rows = shifts[:, :1] + torch.arange(28)
    columns = shifts[:, 1:] + torch.arange(28)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(len(images))[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]]


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor, *, batch_statistics: bool) -> float:
    """Top-1 in evaluation mode, or with the statistics of batches of 250 (no state is changed)."""
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    model.train(batch_statistics)
    right = 0
    for start in range(0, len(images), 250):
        logits = model(normalise(images[start : start + 250]))
        right += int((logits.argmax(1) == labels[start : start + 250]).sum())
    model.load_state_dict(saved)
    return right / len(images)


def main(make: Callable[[], nn.Module] = ResNet, purpose: str = __doc__.splitlines()[0]) -> None:
    """Train what `make` makes, and write its weights."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--shift", type=int, default=2)
    parser.add_argument("--start-from", type=Path)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(options.seed)
    files = {
        name: options.data / f"{name}-ubyte.gz"
        for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    }
    arrays = {name: torch.from_numpy(read_idx(path).copy()) for name, path in files.items()}
    images, labels = arrays["train-images-idx3"], arrays["train-labels-idx1"].long()
    test_images, test_labels = arrays["t10k-images-idx3"], arrays["t10k-labels-idx1"].long()

    model = make()
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.05)
    steps = options.epochs * (len(images) // options.batch)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if options.start_from:
        model.load_state_dict(load_file(options.start_from), strict=True)
        shape = f"from {options.learning_rate:g} linearly to 0"
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    else:
        shape = f"one-cycle to {options.learning_rate:g}"
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=options.learning_rate, total_steps=steps, pct_start=0.25
        )
    log: dict[str, object] = {
        "epochs": options.epochs,
        "batch": options.batch,
        "seed": options.seed,
        "optimiser": "AdamW, weight decay 0.05",
        "schedule": shape,
        "augmentation": f"mirrored with probability 1/2, shifted by up to {options.shift} pixels",
        "torch": torch.__version__,
        "data_sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()},
    }
    history = []
    for epoch in range(options.epochs):
        started = time.monotonic()
        model.train()
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for step in range(len(images) // options.batch):
            chosen = order[step * options.batch : (step + 1) * options.batch]
            batch = normalise(augment(images[chosen], options.shift, generator))
            loss = nn.functional.cross_entropy(model(batch), labels[chosen])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
            if step % 50 == 0:
                print(f"epoch {epoch} step {step} loss {float(loss.detach()):.4f}", flush=True)
        history.append(
            {
                "epoch": epoch + 1,
                "loss": total / (len(images) // options.batch),
                "top1_evaluation_mode": top1(model, test_images, test_labels, batch_statistics=False),
                "top1_batch_statistics": top1(model, test_images, test_labels, batch_statistics=True),
                "seconds": round(time.monotonic() - started, 1),
            }
        )
        print(history[-1], flush=True)
        save_file(model.state_dict(), options.out)
    log["history"] = history
    log["weights_sha256"] = hashlib.sha256(options.out.read_bytes()).hexdigest()
    options.out.with_suffix(".log.json").write_text(json.dumps(log, indent=2) + "\n")


if __name__ == "__main__":
    main()
