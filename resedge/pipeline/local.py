"""The engines that this machine has built of a bundle, which itself does not change on a device.

    state/bundles/DIGEST/engines/     tensorrt-int8.plan and tensorrt-int8.json, its record
    state/timing/                     what kernels were measured to cost, by GPU, library and driver
    state/vouched/                    which files may be opened (`vouching.py`)

DIGEST is the start of that of the bundle's manifest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from resedge import bundle as bundles
from resedge import files, home
from resedge.artifacts import Engine, sha256_file
from resedge.bundle import Bundle
from resedge.engines import BUILT_ON_DEVICE, GRAPHS, EngineName
from resedge.errors import StaleArtifact
from resedge.pipeline.vouching import demand_vouched

_CURE = "Run `resedge build` again."


def timing_folder() -> Path:
    """Return where this machine's timing caches are, or would be."""
    return home.state_folder() / "timing"


def engines_folder(bundle: Bundle) -> Path:
    """Return where this machine's engines of a bundle are, or would be."""
    digest = sha256_file(bundle.path / bundles.MANIFEST)
    return home.state_folder() / "bundles" / digest[:24] / "engines"


def usage() -> tuple[int, int]:
    """Return of how many bundles this machine has built engines, and the bytes of these."""
    folders = _built()
    with files.disk_errors(home.state_folder(), "cannot be read"):
        sizes = [path.stat().st_size for folder in folders for path in folder.iterdir()]
    return len(folders), sum(sizes)


def clear() -> int:
    """Remove the engines of every bundle that no process is building; return of how many."""
    return sum(_removed(folder) for folder in _built())


def _built() -> list[Path]:
    return sorted((home.state_folder() / "bundles").glob("*/engines"))


def _removed(folder: Path) -> bool:
    with files.disk_errors(folder, "cannot be removed"):
        try:
            with files.locked_folder(folder, seconds=0):
                shutil.rmtree(folder.parent)
        except TimeoutError:
            return False
    return True


def engine_here(bundle: Bundle, name: EngineName) -> Engine | None:
    """Return the engine of that name: the bundle's own, or the one that this machine has built of it.

    A plan that a bundle brings is not used, whatever its manifest says: to load one is to run its code.

    Raises:
        InputRefused: The record of what was built cannot be read, or the bundle's engine was not made here
            and is refused by the gate, its runtime or a limit.
        StaleArtifact: It is the record of another graph.
    """
    from resedge.runtimes.trt_plans import engine_of, read_record, record_path

    if name[0] not in BUILT_ON_DEVICE:
        found = bundle.engine(*name)
        if found is not None:
            demand_vouched(found)
        return found
    plan = engines_folder(bundle) / f"{'-'.join(name)}.plan"
    beside = record_path(plan)
    if not (plan.exists() and beside.exists()):
        return None
    with files.disk_errors(beside, "cannot be read", _CURE):
        record = read_record(beside.read_bytes(), str(beside))
    if record.graph_sha256 != bundle.file(GRAPHS[name]).sha256:
        raise StaleArtifact("was built from another graph.", where=str(plan), cure=_CURE)
    return engine_of(record, plan)
