"""Check what the built-in job must reach, in the document that `resedge export --json` wrote.

    python benchmarks/scripts/check_builtin.py verdicts.json

FP32 engines agree with eager on every image, logits within 1e-3; INT8 ones on 99.6 % of them, with a drop of
at most 0.5 points at 95 % confidence. Times are not checked: they are the machine's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def faults_of(engine: dict[str, Any]) -> list[str]:
    """Return what an engine misses, in words."""
    name = f"{engine['runtime']} {engine['precision']}"
    accuracy = engine["accuracy"]
    if accuracy is None:
        on_device = engine["runtime"] == "tensorrt"
        return [] if on_device else [f"{name}: {engine['outcome']}, {engine['reasons']}"]
    least = {"fp32": 1.0, "fp16": 0.999, "int8": 0.996}[engine["precision"]]
    limits = (
        (accuracy["images"] == 10_000, f"{accuracy['images']} images"),
        (accuracy["agreement"] >= least, f"agreement {accuracy['agreement']}, below {least}"),
        (accuracy["drop_upper"] <= 0.005, f"the drop may be {accuracy['drop_upper']}"),
        (
            engine["precision"] != "fp32" or accuracy["max_abs_logit_error"] <= 1e-3,
            f"a logit differs by {accuracy['max_abs_logit_error']}",
        ),
    )
    return [f"{name}: {words}" for holds, words in limits if not holds]


def main() -> None:
    """Check every engine; exit code 1 names what is missed."""
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    faults = [fault for engine in document["engines"] for fault in faults_of(engine)]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(document['engines'])} engines checked, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
