"""Which JetPack brings which TensorRT, CUDA and Python, and whether its TensorRT can use a DLA."""

from __future__ import annotations

from dataclasses import dataclass

COLUMNS: tuple[tuple[str, str], ...] = (
    ("JetPack", "jetpack"),
    ("L4T", "l4t"),
    ("Python", "python"),
    ("CUDA", "cuda"),
    ("TensorRT", "tensorrt"),
    ("DLA", "dla"),
    ("modules", "modules"),
    ("compute", "capabilities"),
)
LEGEND = (
    "?: not confirmed, or read in one place that is not NVIDIA's. -: not known. DLA: where TensorRT can use "
    "one, and how it takes INT8: from a calibration table, where a graph with Q/DQ is refused, or as Q/DQ. "
    "compute: the GPUs' compute capability."
)


@dataclass(frozen=True)
class Release:
    """One JetPack, or several that differ in their L4T alone.

    `versions` maps L4T ("36.4.3") to JetPack ("6.2"); a JetPack whose L4T is not known has the key None.
    A field that is None is not known; those named in `doubtful` are not confirmed. `sources` are where the
    row was read; the keys of `SOURCES`.
    """

    versions: tuple[tuple[str | None, str], ...]
    python: str
    cuda: str | None
    tensorrt: str | None
    dla: str
    modules: str
    capabilities: str
    sources: tuple[str, ...]
    doubtful: frozenset[str] = frozenset()

    @property
    def jetpack(self) -> str:
        """The JetPacks of this row."""
        return _span([jetpack for _, jetpack in self.versions])

    @property
    def l4t(self) -> str | None:
        """The L4Ts of this row, None if not known."""
        return _span([l4t for l4t, _ in self.versions if l4t]) or None

    def cell(self, column: str) -> str:
        """Return the text of one column: "-" where it is not known, with "?" where it is doubtful."""
        text: str | None = getattr(self, column)
        return "-" if text is None else f"{text}?" if column in self.doubtful else text


def _span(versions: list[str]) -> str:
    """Return one version, both of two, or the first and the last of several."""
    different = list(dict.fromkeys(versions))
    return ", ".join(different) if len(different) < 3 else f"{different[0]} to {different[-1]}"


SOURCES = {
    "jtop": "jetson_stats, `jtop/core/jetson_variables.py`: the JetPack of each L4T",
    "containers": "jetson-containers, `l4t_version.py`: the Python of each; JetPack 5.1.5",
    "versions-4": "Tiryoh's list of JetPack 4's components; developer.nvidia.com/embedded/linux-tegra-r3272",
    "sdk-502": "developer.nvidia.com/embedded/jetpack-sdk-502",
    "mlperf": "MLPerf Inference 3.1, NVIDIA's Orin_TRT.json: JetPack 5.1.1, TensorRT 8.5.2, CUDA 11.4",
    "manifest-60": "a third party's manifest of JetPack 6.0's packages; jetson-containers says CUDA 12.4",
    "torchtrt": "Torch-TensorRT, `getting_started/jetpack.rst`: JetPack 6.1, CUDA 12.6, TensorRT 10.3",
    "archive-70": "developer.nvidia.com/embedded/jetpack/downloads/archive-7.0",
    "archive-71": "developer.nvidia.com/embedded/jetpack/downloads/archive-7.1",
    "orin-wheels": "Shattered217's Jetson-Orin-Wheels: an Orin NX with L4T 39.2.0",
    "juxi": "Juxi's notes on AGX Orin, after NVIDIA's downloads and apt index",
    "trt-1141": "docs.nvidia.com/deeplearning/tensorrt/11.4.1: release notes, migration on Jetson, DLA",
    "dla-blog": "developer.nvidia.com/blog on TensorRT and DLA: no explicit quantisation",
}

RELEASES: tuple[Release, ...] = (
    Release(
        versions=(("32.6.1", "4.6"),),
        python="3.6",
        cuda="10.2",
        tensorrt="8.0.1",
        dla="Xavier: table",
        modules="Nano, TX1, TX2, Xavier",
        capabilities="5.3, 6.2, 7.2",
        sources=("jtop", "containers", "versions-4", "dla-blog"),
        doubtful=frozenset({"tensorrt"}),
    ),
    Release(
        versions=tuple((f"32.7.{patch}", f"4.6.{patch}") for patch in range(1, 7)),
        python="3.6",
        cuda="10.2",
        tensorrt="8.2.1",
        dla="Xavier: table",
        modules="Nano, TX1, TX2, Xavier",
        capabilities="5.3, 6.2, 7.2",
        sources=("jtop", "containers", "versions-4", "dla-blog"),
        doubtful=frozenset({"tensorrt"}),
    ),
    Release(
        versions=(("35.1.0", "5.0.2"),),
        python="3.8",
        cuda="11.4",
        tensorrt="8.4.1",
        dla="Xavier, Orin: table",
        modules="AGX Xavier, Xavier NX, AGX Orin",
        capabilities="7.2, 8.7",
        sources=("jtop", "containers", "sdk-502", "dla-blog"),
    ),
    Release(
        versions=(("35.3.1", "5.1.1"), ("35.4.1", "5.1.2")),
        python="3.8",
        cuda="11.4",
        tensorrt="8.5.2",
        dla="Xavier, Orin: table",
        modules="Xavier, Orin",
        capabilities="7.2, 8.7",
        sources=("jtop", "containers", "mlperf", "dla-blog"),
    ),
    Release(
        versions=(
            ("35.5.0", "5.1.3"),
            ("35.6.0", "5.1.4"),
            ("35.6.1", "5.1.5"),
            ("35.6.2", "5.1.5"),
            ("35.6.4", "5.1.6"),
        ),
        python="3.8",
        cuda="11.4",
        tensorrt="8.5.2",
        dla="Xavier, Orin: table",
        modules="Xavier, Orin",
        capabilities="7.2, 8.7",
        sources=("jtop", "containers", "dla-blog"),
        doubtful=frozenset({"cuda", "tensorrt"}),
    ),
    Release(
        versions=(("36.2.0", "6.0 DP"), ("36.3.0", "6.0")),
        python="3.10",
        cuda="12.2",
        tensorrt="8.6.2",
        dla="Orin: table",
        modules="Orin",
        capabilities="8.7",
        sources=("jtop", "containers", "manifest-60", "dla-blog"),
        doubtful=frozenset({"cuda", "tensorrt"}),
    ),
    Release(
        versions=(
            ("36.4.0", "6.1"),
            ("36.4.3", "6.2"),
            ("36.4.4", "6.2.1"),
            ("36.4.7", "6.2.1"),
            ("36.5.0", "6.2.2"),
        ),
        python="3.10",
        cuda="12.6",
        tensorrt="10.3.0",
        dla="Orin: table",
        modules="Orin",
        capabilities="8.7",
        sources=("jtop", "containers", "torchtrt", "dla-blog"),
    ),
    Release(
        versions=(("38.2.0", "7.0"), ("38.2.1", "7.0"), ("38.2.2", "7.0")),
        python="3.12",
        cuda="13.0",
        tensorrt="10.13",
        dla="none",
        modules="Thor",
        capabilities="11.0",
        sources=("jtop", "containers", "archive-70"),
        doubtful=frozenset({"tensorrt"}),
    ),
    Release(
        versions=(("38.4.0", "7.1"),),
        python="3.12",
        cuda="13.0",
        tensorrt="10.13",
        dla="none",
        modules="Thor",
        capabilities="11.0",
        sources=("jtop", "containers", "archive-71"),
        doubtful=frozenset({"tensorrt"}),
    ),
    Release(
        versions=(("39.2.0", "7.2"), ("39.2.1", "7.2.1")),
        python="3.12",
        cuda="13.2.1",
        tensorrt="10.16.2",
        dla="none",
        modules="Orin, Thor",
        capabilities="8.7, 11.0",
        sources=("jtop", "containers", "orin-wheels", "juxi"),
        doubtful=frozenset({"dla", "tensorrt"}),
    ),
    Release(
        versions=((None, "7.2.2"),),
        python="3.12",
        cuda="13",
        tensorrt="11.4.1",
        dla="AGX Orin: Q/DQ",
        modules="AGX Orin, Thor",
        capabilities="8.7, 11.0",
        sources=("trt-1141",),
        doubtful=frozenset({"cuda", "modules", "python", "tensorrt"}),
    ),
)


def release_of(l4t: str) -> Release | None:
    """Return the row of an L4T such as "36.4.3"; None for one that the table does not name.

    The next lower row would be a guess: a patch of L4T can bring another JetPack.
    """
    return next((release for release in RELEASES if l4t in dict(release.versions)), None)


def jetpack_of(l4t: str) -> str | None:
    """Return the JetPack of an L4T, "6.2" for "36.4.3"; None for one that the table does not name."""
    release = release_of(l4t)
    return dict(release.versions)[l4t] if release else None
