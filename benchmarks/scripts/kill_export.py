"""Kill `resedge export` with SIGKILL at moments spread over its run, run it again, compare the bytes.

    python benchmarks/scripts/kill_export.py --kills 10 --json FILE [-- EXPORT ARGUMENTS]

Each kill starts from an empty stage cache and no bundle. The run after it must end like an undisturbed one
in reference/, onnx/, calibration/, golden/ and engines/, and leave nothing else beside the bundle. What
differs is named, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("reference", "onnx", "calibration", "golden", "engines")
ACCEPTED = (0, 1, 3)  # a verdict may be anything here: the bytes of the bundle are what counts


def command(out: Path, arguments: list[str]) -> list[str]:
    """Return the export's command line."""
    return [sys.executable, "-m", "resedge", "export", "--quiet", "--out", str(out), *arguments]


def digests(bundle: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of the parts that must not differ."""
    return {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in PARTS
        for path in sorted((bundle / part).rglob("*"))
        if path.is_file()
    }


def run(out: Path, arguments: list[str], home: Path) -> None:
    """Run an export to its end.

    Raises:
        SystemExit: It failed.
    """
    environment = {**os.environ, "RESEDGE_HOME": str(home)}
    done = subprocess.run(command(out, arguments), env=environment, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in ACCEPTED:
        sys.exit(f"the export failed with exit code {done.returncode}")


def kill_after(seconds: float, out: Path, arguments: list[str], home: Path) -> bool:
    """Start an export, kill it after that time; return whether it was still running."""
    environment = {**os.environ, "RESEDGE_HOME": str(home)}
    child = subprocess.Popen(command(out, arguments), env=environment, stdout=subprocess.DEVNULL)
    try:
        child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
        return True
    return False


def main() -> None:
    """Run the undisturbed export, then each killed one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("arguments", nargs="*", help="for `resedge export`, after --")
    options = parser.parse_args()
    findings = []
    with tempfile.TemporaryDirectory() as root:
        undisturbed = Path(root, "undisturbed", "model.resedge")
        undisturbed.parent.mkdir()
        started = time.monotonic()
        run(undisturbed, options.arguments, Path(root, "undisturbed-home"))
        duration = time.monotonic() - started
        expected = digests(undisturbed)
        for number in range(options.kills):
            folder = Path(root, f"kill{number}")
            folder.mkdir()
            out, home = folder / "model.resedge", Path(root, f"home{number}")
            moment = duration * (number + 0.5) / options.kills
            alive = kill_after(moment, out, options.arguments, home)
            published = out.exists()
            run(out, options.arguments, home)
            found = digests(out)
            differing = sorted(
                name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
            )
            left = sorted(path.name for path in folder.iterdir() if path != out)
            findings.append(
                {
                    "after_s": round(moment, 2),
                    "was_running": alive,
                    "bundle_was_there": published,
                    "differing": differing,
                    "left_beside": left,
                }
            )
            print(findings[-1], flush=True)
    good = not any(finding["differing"] or finding["left_beside"] for finding in findings)
    document = {
        "undisturbed_s": round(duration, 2),
        "files_compared": len(expected),
        "all_the_same": good,
        "kills": findings,
    }
    options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
