"""Train the ResNet-20 that quantisers are compared on, and write its weights.

    python benchmarks/scripts/train_resnet20.py --data DIR --out benchmarks/peers/resnet20.safetensors \
        --epochs 6 --learning-rate 4e-3

The options and the log are those of train_notebook.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))

from networks import resnet20  # type: ignore[import-not-found]  # beside this script, not packaged
from train_notebook import main  # type: ignore[import-not-found]

if __name__ == "__main__":
    main(resnet20, __doc__.splitlines()[0])
