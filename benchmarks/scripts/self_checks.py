"""Bench eager against itself several times, and say how often that raised an alarm.

    python benchmarks/scripts/self_checks.py BUNDLE --runs 10 --folder DIR --json F [-- OPTIONS OF BENCH]

DIR keeps the document of each run, self-N.json; one that is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from resedge import files

_CONDITIONS = ("cpu", "cpus_available", "threads", "rounds", "processes", "libraries", "kernel", "governor")


def run(bundle: Path, out: Path, others: list[str]) -> dict[str, Any]:
    """Run one bench with a self-check and return its document."""
    command = [sys.executable, "-m", "resedge", "bench", str(bundle), "--self-check", "--json", str(out)]
    done = subprocess.run([*command, *others], stdout=subprocess.DEVNULL, check=False)
    if not out.exists():
        raise SystemExit(f"resedge bench ended with exit code {done.returncode}.")
    document: dict[str, Any] = json.loads(out.read_text())
    return document


def row_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return what a run said of eager against itself, and of the machine meanwhile."""
    return {
        **document["self_check"],
        "foreign_cpu_cores": document["conditions"]["foreign_cpu_cores"],
        "stable": document["stability"]["stable"],
        "reasons": document["stability"]["reasons"],
    }


def main() -> None:
    """Run them, and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("others", nargs="*", help="options of resedge bench")
    options = parser.parse_args()

    documents = []
    for number in range(1, options.runs + 1):
        out = options.folder / f"self-{number}.json"
        there = out.exists()
        documents.append(json.loads(out.read_text()) if there else run(options.bundle, out, options.others))
        print(number, row_of(documents[-1]), flush=True)
    rows = [row_of(document) for document in documents]
    summary = {
        "conditions": {key: documents[-1]["conditions"].get(key) for key in _CONDITIONS},
        "runs": len(rows),
        "alarms": sum(row["alarm"] for row in rows),
        "self_checks": rows,
    }
    files.write_bytes(options.json, (json.dumps(summary, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
