"""Running one stage through the cache, with values whose files are known by their place in the bundle.

Inside a stage's folder files lie where the bundle will have them (onnx/fp32.onnx). A stage's value is kept
in that folder as JSON with such paths; outside, `Places` says where each of them is now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import resedge
from resedge import files
from resedge.artifacts import (
    Artifact,
    InputType,
    Preprocessing,
    canonical_json,
    encode,
    load,
    sha256_file,
    sha256_json,
)
from resedge.data import FASHION_MNIST_CLASSES
from resedge.images import ImageSet
from resedge.pipeline.reporting import Reporter
from resedge.store import Key, Store

T = TypeVar("T")

Places = Mapping[str, Path]  # a path in the bundle -> the file, absolute

VALUE = "value.json"


@dataclasses.dataclass(frozen=True)
class Site:
    """Where stages run: the cache, the machine (its digest), its compute threads, who is told."""

    store: Store
    machine: str
    threads: int
    reporter: Reporter


@dataclasses.dataclass(frozen=True)
class Data:
    """The three disjoint sets of images, how an image becomes the model's input, the names of its classes.

    `input` is what graphs and engines are given of an image; eager's is prepared whatever theirs is.
    """

    calibration: ImageSet
    tuning: ImageSet
    test: ImageSet
    preprocessing: Preprocessing
    labels: tuple[str, ...] = FASHION_MNIST_CLASSES
    input: InputType = "float32"

    @property
    def outside(self) -> Preprocessing | None:
        """What is left to do to a frame before a graph gets it; None where the graph does all."""
        return None if self.input == "uint8" else self.preprocessing


@dataclasses.dataclass(frozen=True)
class Done(Generic[T]):
    """A finished stage: its value with absolute paths, its files, whether it was there."""

    value: T
    places: Places
    reused: bool


def run_stage(
    site: Site,
    key: Key,
    kind: type[T],
    make: Callable[[Path], T],
    *,
    known: Places | None = None,
) -> Done[T]:
    """Run `make(folder)` through the cache.

    Args:
        site: Where.
        key: What the result depends on.
        kind: The dataclass that `make` returns; its artifacts lie in the folder or among `known`.
        make: Writes files into the folder and returns the value, with absolute paths.
        known: Where files of earlier stages are that the value may refer to.

    Raises:
        ResedgeError: Whatever `make` raises, and the errors of `Store.run`.
    """
    earlier = known or {}

    def write(folder: Path) -> None:
        names = {path: name for name, path in earlier.items()}
        value = map_artifacts(make(folder), lambda a: _inside(a, folder, names))
        files.write_bytes(folder / VALUE, canonical_json(encode(value)).encode())

    def waiting() -> None:
        site.reporter.note(f"another resedge is making the stage {key.name}; waiting for it")

    stored = site.store.run(key, write, waiting=waiting)
    places = {
        path.relative_to(stored.folder).as_posix(): path
        for path in sorted(stored.folder.rglob("*"))
        if path.is_file() and path.parent != stored.folder
    }
    everywhere = {**earlier, **places}
    value = map_artifacts(
        load(kind, stored.folder / VALUE),
        lambda a: dataclasses.replace(a, path=everywhere[a.path.as_posix()]),
    )
    return Done(value, places, stored.reused)


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of distributions, resedge's own code (by digest) among them.

    A distribution that is not installed is "absent".
    """
    found = {"resedge": own_digest()}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def own_digest() -> str:
    """Return the digest of this package's source, so that no stage outlives the code that made it."""
    root = Path(resedge.__file__).parent
    rooms = ["", "gate", "images", "pipeline", "export", "calibration", "runtimes", "benchmarks"]
    sources = {f"{room}/{p.name}": p for room in rooms for p in _room(root, room).glob("*.py")}
    return sha256_json({name: sha256_file(path) for name, path in sorted(sources.items())})[:16]


def _room(root: Path, name: str) -> Path:
    """Return a room's folder: below the package when installed, beside it in a checkout."""
    inside = root / name
    return inside if inside.is_dir() else root.parent / name


def _inside(artifact: Artifact, folder: Path, names: Mapping[Path, str]) -> Artifact:
    if artifact.path in names:
        return dataclasses.replace(artifact, path=Path(names[artifact.path]))
    return artifact.relative_to(folder)


def map_artifacts(value: T, change: Callable[[Artifact], Artifact]) -> T:
    """Return `value` with every artifact in it changed; dataclasses, tuples and mappings are entered."""

    def changed(item: Any) -> Any:  # noqa: ANN401 - anything that a dataclass of ours holds
        if isinstance(item, Artifact):
            return change(item)
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            fields = {f.name: changed(getattr(item, f.name)) for f in dataclasses.fields(item)}
            return dataclasses.replace(item, **fields)
        if isinstance(item, tuple):
            return tuple(changed(inner) for inner in item)
        if isinstance(item, Mapping):
            return {key: changed(inner) for key, inner in item.items()}
        return item

    mapped: T = changed(value)
    return mapped
