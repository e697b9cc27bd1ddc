from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from resedge.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "shipping/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_is_in_the_readme_and_has_help(name: str) -> None:
    assert f"resedge {name}" in (ROOT / "README.md").read_text()
    command = main.commands[name]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help or option.metavar, f"{name} {option.name} has no help"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    for target in targets:
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_the_scripts_that_are_there() -> None:
    for script in re.findall(r"^scripts/\w+", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert (ROOT / script).exists()
