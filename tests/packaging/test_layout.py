from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
ROOMS = ("benchmarks", "calibration", "export", "runtimes", "shipping")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_packages_folders_and_links_name_the_same_rooms() -> None:
    setuptools = CONFIG["tool"]["setuptools"]
    folders = setuptools["package-dir"]
    assert folders == {"resedge": "resedge", **{f"resedge.{room}": room for room in ROOMS}}
    inner = [p.name for p in (ROOT / "resedge").iterdir() if (p / "__init__.py").exists()]
    assert sorted(setuptools["packages"]) == sorted(["resedge", *(f"resedge.{name}" for name in inner)])
    for room in ROOMS:
        assert (ROOT / "resedge" / room).resolve() == ROOT / room


def test_rooms_are_flat() -> None:
    for room in ROOMS:
        nested = [p for p in (ROOT / room).iterdir() if p.is_dir() and (p / "__init__.py").exists()]
        assert nested == []


def test_every_room_stands_in_the_import_contract() -> None:
    (contract,) = CONFIG["tool"]["importlinter"]["contracts"]
    layers = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    modules = {
        f"resedge.{p.stem}"
        for p in (ROOT / "resedge").iterdir()
        if p.suffix == ".py" and p.stem not in ("__init__", "__main__")
    }
    packages = {name for name in CONFIG["tool"]["setuptools"]["packages"] if name != "resedge"}
    assert modules | packages <= layers


def test_no_registry_and_no_path_of_a_machine_is_named() -> None:
    for path in ROOT.rglob("*"):
        skipped = {".git", ".venv", ".resedge-home", "__pycache__"}
        if path.suffix not in (".py", ".toml", ".md", ".txt") or skipped & set(path.parts):
            continue
        text = path.read_text(encoding="utf-8")
        for word in ("/wo" + "rk/", "/ro" + "ot/", "index-" + "url", "find-" + "links"):
            assert word not in text, f"{path.relative_to(ROOT)} names {word}"
