"""Draw what a command prints as an SVG of a terminal, colours and all.

    python benchmarks/scripts/terminal_picture.py --out docs/export.svg -- resedge export

The command runs in a pseudo-terminal of 100 columns. Progress bars are left out: they leave the screen too.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 100


def printed_by(command: list[str]) -> str:
    """Run a command in a pseudo-terminal; return what it printed, ANSI codes included."""
    chunks: list[bytes] = []

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        chunks.append(data)
        return data

    os.environ.update(COLUMNS=str(COLUMNS), TERM="xterm-256color")
    pty.spawn(command, read)
    return b"".join(chunks).decode()


def without_progress(output: str) -> str:
    """Return the lines that stay: what a bar overwrote or erased is gone."""
    lines = [line.split("\r")[-1] if not line.endswith("\r") else line for line in output.split("\n")]
    text = "\n".join(line.rstrip("\r").split("\r")[-1] for line in lines)
    text = re.sub(r"\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A", "", text)
    return "\n".join(line for line in text.split("\n") if "━" not in line and line.strip())


def main() -> None:
    """Run, clean, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    output = without_progress(printed_by(options.command))
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text("$ " + " ".join(options.command), style="bold"))
        console.print(Text.from_ansi(output))
        options.out.write_text(console.export_svg(title="resedge"), encoding="utf-8")
    print(f"{options.out}: {len(output.splitlines())} lines", file=sys.stderr)


if __name__ == "__main__":
    main()
