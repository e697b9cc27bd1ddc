from __future__ import annotations

import ast
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from resedge.agent.facts import RUNTIMES
from resedge.errors import InputRefused
from resedge.runtimes.table import RUNTIMES as TABLE
from resedge.shipping import wire, zipapp


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "resedge-agent.pyz"
    path.write_bytes(zipapp.build())
    return path


def test_equal_sources_give_equal_bytes_that_are_stored_as_they_are(agent: Path) -> None:
    assert zipapp.build() == agent.read_bytes()
    with zipfile.ZipFile(agent) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())


def test_it_needs_nothing_beyond_the_standard_library_numpy_and_runtimes(agent: Path) -> None:
    imported = set()
    with zipfile.ZipFile(agent) as archive:
        for name in archive.namelist():
            for node in ast.walk(ast.parse(archive.read(name), feature_version=(3, 10))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"resedge"}
    # onnx and its protobuf are imported by the gate of graphs alone, which the agent never calls.
    assert foreign == {"numpy", "onnx", "google"}


def test_it_has_the_runtimes_of_devices_and_neither_pipeline_nor_export(agent: Path) -> None:
    with zipfile.ZipFile(agent) as archive:
        names = set(archive.namelist())
    for runtime in RUNTIMES:
        assert TABLE[runtime].partition(":")[0].replace(".", "/") + ".py" in names
    rooms = {name.split("/")[1] for name in names if name.count("/") > 1}
    assert rooms == {"agent", "bundle", "gate", "jetson", "runtimes", "shipping"}


def test_it_runs_by_itself(agent: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(agent), "status", "--root", str(tmp_path)],
        capture_output=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert wire.read_answer(wire.Status, done.stdout.decode(), "agent").serving is None


def test_an_archive_is_no_source() -> None:
    with pytest.raises(InputRefused, match="has no source here"):
        zipapp.build(("resedge.nothing_of_this_name",))


def test_what_is_below_a_type_checkers_condition_is_left_out() -> None:
    names = zipapp.needed(("resedge.gate.onnx",))
    assert {"resedge", "resedge.gate", "resedge.gate.onnx_sizes", "resedge.errors"} <= set(names)
    assert not any(name.startswith("resedge.pipeline") for name in names)
    assert io.BytesIO(zipapp.build(("resedge.errors",))).read(2) == b"#!"
