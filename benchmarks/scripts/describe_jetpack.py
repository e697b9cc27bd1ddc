"""Write the tables of docs/jetson.md from the data that `resedge doctor --jetpack` prints.

python benchmarks/scripts/describe_jetpack.py docs/jetson.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from resedge.jetson.jetpack import COLUMNS, LEGEND, RELEASES, SOURCES, Release

BEGIN, END = "<!-- written by benchmarks/scripts/describe_jetpack.py -->", "<!-- end -->"


def rewritten(page: str) -> str:
    """Return a page with what stands between its marks written anew.

    Raises:
        ValueError: The page has not both marks.
    """
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page has no {BEGIN} before an {END}")
    return f"{before}{BEGIN}\n{tables()}{END}{after}"


def tables() -> str:
    """Return the releases, what the marks mean, and the sources, as Markdown."""
    numbers = {source: number for number, source in enumerate(SOURCES, start=1)}
    headings = [*(heading for heading, _ in COLUMNS), "sources"]
    rows = [
        [
            *(release.cell(column) for _, column in COLUMNS),
            ", ".join(str(numbers[source]) for source in release.sources),
        ]
        for release in RELEASES
    ]
    lines = [_row(headings), _row(["---"] * len(headings)), *map(_row, rows)]
    sources = [f"{numbers[source]}. {text}" for source, text in SOURCES.items()]
    several = [release for release in RELEASES if len(release.versions) > 1]
    return "\n".join([*lines, "", LEGEND, "", *map(_versions, several), "", "Sources:", "", *sources, ""])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _versions(release: Release) -> str:
    pairs = ", ".join(f"{l4t} is {jetpack}" for l4t, jetpack in release.versions)
    return f"- L4T {pairs}."


def main() -> None:
    """Rewrite the page that is named."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/jetson.md.")
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
