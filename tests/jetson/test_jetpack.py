from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from resedge.jetson.jetpack import COLUMNS, RELEASES, SOURCES, Release, jetpack_of, release_of
from resedge.jetson.modules import COMPUTE_CAPABILITIES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("l4t", "jetpack", "tensorrt", "python"),
    [
        ("32.7.4", "4.6.4", "8.2.1", "3.6"),
        ("35.4.1", "5.1.2", "8.5.2", "3.8"),
        ("36.4.3", "6.2", "10.3.0", "3.10"),
        ("36.4.7", "6.2.1", "10.3.0", "3.10"),
        ("39.2.0", "7.2", "10.16.2", "3.12"),
    ],
)
def test_the_release_of_an_l4t(l4t: str, jetpack: str, tensorrt: str, python: str) -> None:
    release = release_of(l4t)
    assert release is not None
    assert (jetpack_of(l4t), release.tensorrt, release.python) == (jetpack, tensorrt, python)


@pytest.mark.parametrize("l4t", ["36.4.5", "36.4", "40.0.0", ""])
def test_an_l4t_that_is_not_in_the_table_is_unknown(l4t: str) -> None:
    assert release_of(l4t) is None
    assert jetpack_of(l4t) is None


def test_a_doubtful_cell_is_marked_and_an_unknown_one_is_a_dash() -> None:
    cells = {column: RELEASES[-1].cell(column) for _, column in COLUMNS}
    assert cells["l4t"] == "-"
    assert cells["tensorrt"] == "11.4.1?"


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.jetpack)
def test_every_row_has_sources_and_marks_columns_that_are_there(release: Release) -> None:
    assert release.sources
    assert set(release.sources) <= set(SOURCES)
    assert release.doubtful <= {column for _, column in COLUMNS}
    assert set(release.capabilities.split(", ")) <= set(COMPUTE_CAPABILITIES.values())


def test_no_l4t_has_two_rows_and_every_source_is_used() -> None:
    numbers = [l4t for release in RELEASES for l4t, _ in release.versions if l4t]
    assert len(numbers) == len(set(numbers))
    assert {source for release in RELEASES for source in release.sources} == set(SOURCES)


def test_the_page_shows_the_table_as_it_is() -> None:
    script = ROOT / "benchmarks/scripts/describe_jetpack.py"
    spec = importlib.util.spec_from_file_location("describe_jetpack", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs/jetson.md").read_text()
    assert page == module.rewritten(page)
    with pytest.raises(ValueError, match="before an"):
        module.rewritten("no marks")
