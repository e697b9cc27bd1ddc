"""Make the built-in images from Fashion-MNIST: the test split, and 2,048 training images.

    python benchmarks/scripts/prepare_fashion_mnist.py --data DIR --out resedge/data

DIR holds the four gzipped idx files (Debian: package dataset-fashion-mnist). The training images are
drawn seeded and class-stratified from those whose pixels occur nowhere else in the data set, so that
calibration, tuning and test images are disjoint by digest. Byte-identical on every run.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import lzma
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
DRAWN, CLASSES, SEED = 2048, 10, 20260101


def read_idx(path: Path) -> Bytes:
    """Read a gzipped idx file of unsigned bytes (the format of MNIST)."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def write_idx_xz(path: Path, values: Bytes) -> None:
    """Write unsigned bytes as idx, compressed with xz."""
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    path.write_bytes(lzma.compress(header + values.tobytes(), lzma.FORMAT_XZ, filters=filters))
    print(f"{path.name}: {values.shape}, {path.stat().st_size:,} bytes")


def draw(images: Bytes, labels: Bytes, test_images: Bytes) -> npt.NDArray[np.int64]:
    """Return the indices of the drawn training images, classes as even as 2,048 allows, shuffled."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    counts = Counter(digests)
    counts.update(hashlib.sha256(image.tobytes()).digest() for image in test_images)
    unique = np.array([counts[digest] == 1 for digest in digests])
    generator = np.random.default_rng(SEED)
    chosen: list[int] = []
    for label in range(CLASSES):
        quota = DRAWN // CLASSES + (label < DRAWN % CLASSES)
        candidates = np.flatnonzero(unique & (labels == label))
        chosen.extend(generator.choice(candidates, quota, replace=False).tolist())
    return generator.permutation(np.array(chosen, dtype=np.int64))


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    images = read_idx(options.data / "train-images-idx3-ubyte.gz")
    labels = read_idx(options.data / "train-labels-idx1-ubyte.gz")
    test_images = read_idx(options.data / "t10k-images-idx3-ubyte.gz")
    test_labels = read_idx(options.data / "t10k-labels-idx1-ubyte.gz")
    chosen = draw(images, labels, test_images)
    write_idx_xz(options.out / "fashion-mnist-train2048-images-idx3-ubyte.xz", images[chosen])
    write_idx_xz(options.out / "fashion-mnist-train2048-labels-idx1-ubyte.xz", labels[chosen])
    write_idx_xz(options.out / "fashion-mnist-test-images-idx3-ubyte.xz", test_images)
    write_idx_xz(options.out / "fashion-mnist-test-labels-idx1-ubyte.xz", test_labels)


if __name__ == "__main__":
    main()
