"""The wheel, installed into an environment of its own with the core dependencies and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = (
    "MODEL_CARD.md",
    "README.md",
    "LICENSE.fashion-mnist",
    "notebook.safetensors",
    *(f"fashion-mnist-{part}-images-idx3-ubyte.xz" for part in ("test", "train2048")),
    *(f"fashion-mnist-{part}-labels-idx1-ubyte.xz" for part in ("test", "train2048")),
)
# These are about torch modules themselves, and are imported by those alone who have torch.
NEED_TORCH = {
    f"resedge.export.{name}"
    for name in ("batchnorm", "cifar", "fold", "halfrun", "notebook", "proof", "trace")
}
COMMANDS = (
    "",
    "export",
    "bench",
    "build",
    "predict",
    "explain",
    "inspect",
    "doctor",
    "cache",
    "cache show",
    "cache clear",
    "bundle",
    "bundle pack",
    "bundle unpack",
    "keys",
    "keys generate",
    "keys sign",
    "keys verify",
    "ship",
    "status",
    "rollback",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Built from a copy: setuptools would put what an earlier build left in build/ into the wheel.
    source = tmp_path_factory.mktemp("source") / "resedge"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.resedge")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and its core dependencies."""
    environment = tmp_path_factory.mktemp("bare") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [
            *(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--constraint", str(ROOT / "constraints.txt"), str(wheel)),
        ],
        check=True,
    )
    return python


def test_the_wheel_holds_the_builtin_job_and_installs_nothing_but_resedge(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    assert {name.split("/")[0] for name in names} == {"resedge", "resedge-0.1.0.dist-info"}
    data = {name.removeprefix("resedge/data/"): size for name, size in sizes.items() if "/data/" in name}
    assert set(data) == {*DATA, "__init__.py"}
    assert sum(data.values()) < 8_000_000
    in_repository = {
        f"resedge/{path.relative_to(ROOT / 'resedge').as_posix()}"
        for path in (ROOT / "resedge").rglob("*.py")
        if "scripts" not in path.parts
    } | {
        f"resedge/{room}/{path.name}"
        for room in ("benchmarks", "calibration", "export", "runtimes", "shipping")
        for path in (ROOT / room).glob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == in_repository


def test_every_module_imports_with_the_core_dependencies_alone(bare: Path) -> None:
    script = f"""
import importlib, pkgutil, resedge
names = [m.name for m in pkgutil.walk_packages(resedge.__path__, "resedge.") if m.name != "resedge.__main__"]
for name in sorted(set(names) - {NEED_TORCH!r}):
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([bare, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_works_with_the_core_dependencies_alone(bare: Path, command: str) -> None:
    call = [str(bare.parent / "resedge"), *command.split(), "--help"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: resedge" in done.stdout


def test_a_missing_library_is_said_with_its_cure(bare: Path, tmp_path: Path) -> None:
    call = [str(bare.parent / "resedge"), "export", "--out", str(tmp_path / "m")]
    done = subprocess.run(
        call, capture_output=True, text=True, env={"RESEDGE_HOME": str(tmp_path / "home")}, check=False
    )
    assert done.returncode == 4, done.stderr
    assert "pip install 'resedge[export,onnxruntime,bench]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_shipping_without_its_library_is_said_with_the_cure(bare: Path, tmp_path: Path) -> None:
    call = [str(bare.parent / "resedge"), "status", "nano"]
    done = subprocess.run(call, capture_output=True, text=True, env={"HOME": str(tmp_path)}, check=False)
    assert done.returncode == 4, done.stderr
    assert "pip install 'resedge[ship]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
