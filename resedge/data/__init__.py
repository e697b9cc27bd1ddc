"""The built-in model's weights and images, as files of the package (origin and licences: README.md here)."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
NOTEBOOK_WEIGHTS = FOLDER / "notebook.safetensors"
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
