"""Measure what calibrating ResNet-50 costs in time and memory: NNCF, resedge's pass, resedge's whole stage.

    python benchmarks/peers/calibration_cost.py --data DIR --nncf-python P --json FILE

DIR holds the idx files of Fashion-MNIST (Debian: dataset-fashion-mnist). The network is seeded and
untrained, its images are those of Fashion-MNIST, enlarged: what a calibration costs depends on the shapes
alone. Every call runs in a process of its own (calibrate_once.py), all ways in turn, the order reversed
every other round. The JSON has every run, the stage's step by step, and the conditions. Where other work
shared the processor (`foreign_cpu_cores`), compare CPU seconds, not those of the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from resedge.artifacts import JsonValue
from resedge.benchmarks.conditions import Watch, conditions

HERE = Path(__file__).resolve().parent
WAYS = ("nncf", "pass", "stage")
TUNING = 100
_PREPARE = "from calibration_cost import prepare; import sys; prepare(*sys.argv[1:])"
_VERSIONS = """
import importlib.metadata, json
print(json.dumps({name: importlib.metadata.version(name) for name in ("nncf", "openvino", "numpy")}))
"""


def prepare(data: str, images: str, folder: str) -> None:
    """Write the FP32 graph, grey images, and ONNX Runtime's answers to the tuning images."""
    import numpy as np
    import onnxruntime as ort  # type: ignore[import-untyped]
    from calibrate import answers  # type: ignore[import-not-found]  # beside this script, not packaged
    from calibrate_once import MEAN, SIDE, STD, enlarged  # type: ignore[import-not-found]
    from networks import untrained  # type: ignore[import-not-found]
    from prepare import read_idx  # type: ignore[import-not-found]

    from resedge.artifacts import Preprocessing
    from resedge.export.fold import fold
    from resedge.export.onnxfile import write_onnx
    from resedge.export.trace import trace
    from resedge.images import prepare as prepared

    out, count, shape = Path(folder), int(images), (3, SIDE, SIDE)
    grey = read_idx(Path(data) / "train-images-idx3-ubyte.gz")
    np.save(out / "calibration.npy", grey[:count])
    tuning = grey[count : count + TUNING]
    np.save(out / "tuning.npy", tuning)
    batch = prepared(enlarged(tuning), Preprocessing(SIDE, SIDE, (MEAN,) * 3, (STD,) * 3))
    folded = fold(trace(untrained("resnet50"), shape), batch[:4])
    write_onnx(folded.graph, shape, out / "fp32.onnx")
    session = ort.InferenceSession(out / "fp32.onnx", providers=["CPUExecutionProvider"])
    logits = answers(lambda part: np.asarray(session.run(None, {"input": part})[0]), batch)
    np.save(out / "tuning-logits.npy", logits)


def run_once(python: str, way: str, folder: Path, threads: int) -> dict[str, JsonValue]:
    """Measure one way in a process of its own."""
    command = [python, str(HERE / "calibrate_once.py"), way, str(folder), str(threads)]
    with Watch() as watch:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way}:\n{done.stderr}")
    found: dict[str, JsonValue] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"way": way} | found | watch.found()


def summary(rows: Sequence[Mapping[str, JsonValue]]) -> dict[str, dict[str, float]]:
    """Return each way's medians of time, their ratio to NNCF's where it ran, and the highest peak."""
    found: dict[str, dict[str, float]] = {}
    for way in dict.fromkeys(str(row["way"]) for row in rows):
        runs = [row for row in rows if row["way"] == way]
        found[way] = {
            key: statistics.median(float(str(run[key])) for run in runs) for key in ("seconds", "cpu_seconds")
        }
        found[way]["peak_resident_mib"] = max(float(str(run["peak_resident_mib"])) for run in runs)
    for figures in found.values() if "nncf" in found else ():
        for key in ("seconds", "cpu_seconds"):
            figures[f"{key}_over_nncf"] = round(figures[key] / found["nncf"][key], 3)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nncf-python", default=sys.executable)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    pythons = {way: options.nncf_python if way == "nncf" else sys.executable for way in WAYS}
    rows: list[dict[str, JsonValue]] = []
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: this one waits, and should hold neither torch nor the images.
        subprocess.run(
            [sys.executable, "-c", _PREPARE, str(options.data.resolve()), str(options.images), folder],
            cwd=HERE,  # where `-c` imports from
            check=True,
        )
        for repeat in range(options.repeats):
            for way in options.ways[:: -1 if repeat % 2 else 1]:
                rows.append(run_once(pythons[way], way, Path(folder), options.threads))
                print(json.dumps(rows[-1]), flush=True)
                document = {
                    "network": "resnet50, untrained, 3 x 224 x 224",
                    "calibration_images": options.images,
                    "tuning_images": TUNING,
                    "conditions": conditions(options.threads, ("resedge", "onnxruntime", "onnx", "onnx-ir")),
                    "nncf": peer_versions(options.nncf_python),
                    "summary": summary(rows),
                    "rows": rows,
                }
                options.json.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document["summary"], indent=2))


def peer_versions(python: str) -> JsonValue:
    """Return the versions in NNCF's environment."""
    done = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    versions: JsonValue = json.loads(done.stdout)
    return versions


if __name__ == "__main__":
    main()
