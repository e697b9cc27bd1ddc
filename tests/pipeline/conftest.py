"""One export of the built-in model on a few images, shared by the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from resedge import images
from resedge.pipeline.exporting import Exported, export
from resedge.pipeline.options import ExportOptions, Measuring


@dataclass(frozen=True)
class Job:
    """An export that was done: where its images, cache and bundle are, and what it returned."""

    data: Path
    home: Path
    result: Exported

    @property
    def bundle(self) -> Path:
        return self.result.published.bundle.path


def write_images(folder: Path, count: int, start: int = 0) -> Path:
    """Write built-in test images as PNG files, one folder a class."""
    builtin = images.builtin_test()
    labels = builtin.labels
    assert labels is not None
    for i in range(start, start + count):
        name = f"{labels[i]:02d}-{builtin.class_names[labels[i]].replace('/', '-')}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(builtin.decode([i])[0]).save(folder / name / f"{i:05d}.png")
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", 240)


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Job:
    root = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESEDGE_HOME", str(root / "home"))
        options = ExportOptions(
            data=data_folder,
            batchnorm="split",
            measuring=Measuring(max_drop=0.5, threads=1),
            out=root / "model.resedge",
        )
        return Job(data_folder, root / "home", export(options))


@pytest.fixture
def home(job: Job, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the shared export, for commands that go on from it."""
    monkeypatch.setenv("RESEDGE_HOME", str(job.home))
    return job.home


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESEDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
