"""Train plain and residual networks of 20 and 56 layers, and draw training error against epoch.

    python benchmarks/scripts/degradation.py --data DIR --json benchmarks/results/degradation.json \
        --picture docs/degradation.svg

Why residual networks exist (He et al., arXiv:1512.03385, section 4.2 and figure 6): a plain network of 56
layers has a higher training error than one of 20, which is no overfitting, and shortcuts cure it. The
networks are resedge's `plain-N` and `resnet-N`, on Fashion-MNIST, all with the same seed, images, order and
schedule. Training error is that of the epoch's own batches, as in the paper's figure; each epoch ends with
the error on test images.

The file is written after each network, and a run that is started again goes on with those that it lacks.
The picture needs matplotlib.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from resedge import files
from resedge.export.cifar import cifar

sys.path.insert(0, str(Path(__file__).resolve().parent))

from train_notebook import augment, normalise, read_idx  # type: ignore[import-not-found]  # beside this script

NETWORKS: Final = {
    "plain-20": (20, False),
    "plain-56": (56, False),
    "resnet-20": (20, True),
    "resnet-56": (56, True),
}
CLASSES: Final = 10
LEARNING_RATE: Final = 0.1
SHIFT: Final = 2
TEST_IMAGES: Final = 2000


def train(
    name: str, images: dict[str, Tensor], epochs: int, batch: int, seed: int
) -> list[dict[str, float | int]]:
    """Train one network; return its epochs.

    SGD with momentum 0.9 and weight decay 1e-4, the paper's; the learning rate rises to 0.1 in the first
    epoch, so that the deep plain network starts at all, and falls to 0 as a cosine.
    """
    layers, residual = NETWORKS[name]
    torch.manual_seed(seed)
    order_of = torch.Generator().manual_seed(seed)
    model = cifar(layers, residual=residual, classes=CLASSES)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    optimiser = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    steps = len(images["train"]) // batch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, steps, epochs * steps))
    history: list[dict[str, float | int]] = []
    for epoch in range(epochs):
        started = time.process_time()
        wrong, loss_sum = 0, 0.0
        model.train()
        order = torch.randperm(len(images["train"]), generator=order_of)
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            labels = images["train_labels"][chosen]
            logits = model(normalise(augment(images["train"][chosen], SHIFT, order_of)))
            loss = nn.functional.cross_entropy(logits, labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            schedule.step()
            wrong += int((logits.detach().argmax(1) != labels).sum())
            loss_sum += float(loss.detach())
        history.append(
            {
                "epoch": epoch + 1,
                "training_error": round(wrong / (steps * batch), 5),
                "loss": round(loss_sum / steps, 5),
                "test_error": round(error(model, images["test"], images["test_labels"]), 5),
                "cpu_seconds": round(time.process_time() - started, 1),
            }
        )
        print(name, history[-1], flush=True)
    return history


def rate_at(step: int, warm: int, steps: int) -> float:
    """Return the learning rate at a step, of its largest."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


@torch.no_grad()
def error(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images that the model gets wrong, in evaluation mode."""
    model.eval()
    wrong = sum(
        int((model(normalise(images[i : i + 250])).argmax(1) != labels[i : i + 250]).sum())
        for i in range(0, len(images), 250)
    )
    return wrong / len(images)


def read(data: Path, count: int, seed: int) -> dict[str, Tensor]:
    """Read the images; of the training images a seeded draw of `count`."""
    train = torch.from_numpy(read_idx(data / "train-images-idx3-ubyte.gz").copy())
    labels = torch.from_numpy(read_idx(data / "train-labels-idx1-ubyte.gz").copy()).long()
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
    test = torch.from_numpy(read_idx(data / "t10k-images-idx3-ubyte.gz").copy())
    test_labels = torch.from_numpy(read_idx(data / "t10k-labels-idx1-ubyte.gz").copy()).long()
    return {
        "train": train[chosen],
        "train_labels": labels[chosen],
        "test": test[:TEST_IMAGES],
        "test_labels": test_labels[:TEST_IMAGES],
    }


def draw(networks: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    """Draw training error against epoch: plain networks on the left, residual ones on the right."""
    import matplotlib as mpl  # type: ignore[import-not-found]  # not among resedge's own libraries

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "resedge", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.4), sharey=True, layout="constrained")
    for axis, kind, title in zip(axes, ("plain", "resnet"), ("plain", "residual"), strict=True):
        for layers, colour in ((20, "#d97706"), (56, "#2563eb")):
            rows = networks.get(f"{kind}-{layers}", [])
            epochs = [row["epoch"] for row in rows]
            axis.plot(epochs, [100 * row["training_error"] for row in rows], color=colour, marker="o", ms=3)
            axis.plot(epochs, [100 * row["test_error"] for row in rows], color=colour, lw=1, ls=":")
            if rows:
                axis.annotate(
                    f"{layers} layers",
                    (epochs[-1], 100 * rows[-1]["training_error"]),
                    xytext=(6, 0),
                    textcoords="offset points",
                    color=colour,
                    va="center",
                )
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.16)
    axes[0].set_ylabel("error, %  (solid: training, dotted: test)")
    figure.savefig(picture, metadata={"Date": None})


def main() -> None:
    """Train what is missing, write the file, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    images = read(options.data, options.images, options.seed)
    made_with = {
        "data": "Fashion-MNIST (MIT), a seeded draw of the training images",
        "data_sha256": hashlib.sha256(images["train"].numpy().tobytes()).hexdigest(),
        "images": options.images,
        "test_images": TEST_IMAGES,
        "epochs": options.epochs,
        "batch": options.batch,
        "seed": options.seed,
        "optimiser": "SGD, momentum 0.9, weight decay 1e-4",
        "schedule": f"linear to {LEARNING_RATE:g} in the first epoch, then a cosine to 0",
        "augmentation": f"mirrored with probability 1/2, shifted by up to {SHIFT} pixels",
        "threads": options.threads,
        "torch": torch.__version__,
    }
    document: dict[str, Any] = {"conditions": made_with, "networks": {}}
    if options.json.exists():
        document = json.loads(options.json.read_text())
        if document["conditions"] != made_with:
            raise SystemExit(f"{options.json} was made with other conditions. Remove it first.")
    for name in NETWORKS:
        if name not in document["networks"]:
            document["networks"][name] = train(name, images, options.epochs, options.batch, options.seed)
            files.write_bytes(options.json, (json.dumps(document, indent=1) + "\n").encode())
    if options.picture:
        draw(document["networks"], options.picture)


if __name__ == "__main__":
    main()
