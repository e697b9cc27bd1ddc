"""The values that pass between the rooms: frozen, typed, and the same through JSON and back.

What turns them into JSON and back stands in `resedge.codec` and is imported from here. Needs the standard
library alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from resedge.codec import JsonValue as JsonValue
from resedge.codec import canonical_json as canonical_json
from resedge.codec import decode as decode
from resedge.codec import encode as encode
from resedge.codec import load as load
from resedge.codec import parse_json as parse_json
from resedge.codec import read_text as read_text
from resedge.errors import InputRefused, StaleArtifact

FORMAT_VERSION: Final = 1

Outcome = Literal["pass", "fail", "inconclusive", "unavailable"]
Relation = Literal["faster", "not slower", "equivalent", "slower", "inconclusive"]


# --- digests -------------------------------------------------------------------------------------


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the SHA-256 of bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_json(value: JsonValue) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return sha256_bytes(canonical_json(value).encode())


# --- the values ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor at a model's border, such as "input" ("batch", 3, 28, 28) float32."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


Channels = Literal["RGB", "BGR", "L", "RGBA"]
InputType = Literal["float32", "uint8"]  # images that are prepared, or frames


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input: (value / 255 - mean) / std, per channel, NCHW.

    `channels` are those of the model, in its order; "L" is grey, by the luma of ITU-R BT.601. `mean` and
    `std` are fractions of full scale, one a channel in that order. An image file is scaled, its proportions
    kept, until it just covers `resize` (height, width), and the middle of `height` x `width` is cut out of
    it; None: it must have that size.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: Channels = "RGB"
    resize: tuple[int, int] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != len(self.channels):
                raise InputRefused(f"the {name} has {len(numbers)} numbers for the channels {self.channels}.")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """What the model takes: channels, height, width."""
        return len(self.channels), self.height, self.width

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """What it is prepared from: height, width, and three channels (RGB), or four where alpha is one."""
        return self.height, self.width, max(3, len(self.channels))


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A file: where it is, its SHA-256, what it is, and the digests of what it was made from.

    `path` is relative (POSIX) in a manifest and absolute once `under` a root.
    """

    path: Path
    sha256: str
    kind: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parents: tuple[str, ...] = ()
    meta: Mapping[str, JsonValue] = dataclasses.field(default_factory=dict)

    def under(self, root: Path) -> Artifact:
        """Return this artifact with its path resolved below `root`."""
        return dataclasses.replace(self, path=root / self.path)

    def relative_to(self, root: Path) -> Artifact:
        """Return this artifact with its path relative to `root`, in POSIX form."""
        return dataclasses.replace(self, path=Path(PurePosixPath(*self.path.relative_to(root).parts)))

    def read(self) -> bytes:
        """Return the file's bytes, checked: what is returned is what the digest names.

        Raises:
            InputRefused: The file is missing or unreadable.
            StaleArtifact: The bytes are not those of the digest.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise InputRefused(
                f"cannot be read ({error.strerror}).",
                where=str(self.path),
                cure="Run `resedge export` again to write it anew.",
            ) from error
        if sha256_bytes(data) != self.sha256:
            raise StaleArtifact(
                f"has changed: SHA-256 {sha256_bytes(data)[:12]}, expected {self.sha256[:12]}.",
                where=str(self.path),
                cure="Run `resedge export` again, or restore the file.",
            )
        return data


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The calibrated range of every activation tensor of one graph.

    `table` maps a tensor's name in the fp32 graph to (low, high), low <= 0 <= high, float32 values.
    `graph_sha256` is the graph that was run, `dataset_sha256` the images, in no order.
    """

    table: Mapping[str, tuple[float, float]]
    method: str
    graph_sha256: str
    dataset_sha256: str
    images: int


@dataclasses.dataclass(frozen=True)
class Engine:
    """A built, runnable file; `companions` are files that it cannot be opened without."""

    artifact: Artifact
    runtime: str
    version: str
    device: str
    precision: str
    companions: tuple[Artifact, ...] = ()


@dataclasses.dataclass(frozen=True)
class WorstClass:
    """The class that loses most. `drop_upper` bounds the drop of every class (Holm over the classes)."""

    number: int = dataclasses.field(metadata={"key": "class"})
    images: int
    drop: float
    drop_upper: float


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Engine against eager on the same test images. Fractions; None where there are no labels.

    `drop` is eager's top-1 minus the engine's, `drop_upper` its one-sided bound (Tango 1998; exact where
    nothing flips back), of this engine alone.
    A negative flip: eager right, engine wrong. `kl` is the mean of KL(softmax eager || softmax engine), nats.
    `top5` takes at least ten classes; `images_needed` is of a drop that could not be settled.
    """

    images: int
    agreement: float
    max_abs_logit_error: float
    top1: float | None = None
    top1_eager: float | None = None
    drop: float | None = None
    drop_upper: float | None = None
    negative_flips: int | None = None
    positive_flips: int | None = None
    top5: float | None = None
    top5_eager: float | None = None
    kl: float | None = None
    worst_class: WorstClass | None = None
    images_needed: int | None = None


@dataclasses.dataclass(frozen=True)
class Percentile:
    """A percentile of single calls, with its two-sided 95 % interval. Milliseconds."""

    ms: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Of single calls: how many lie between one edge (milliseconds) and the next."""

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Latency:
    """Array in to array out, synchronous, from interleaved blocks. Milliseconds and ratios.

    `speedup` is eager's time over the engine's, with its two-sided interval, which holds for all engines of
    the run at once. A percentile is None where too few calls were made for it. `log_ratios` has one number a
    round, `processes` the rounds of each process, `rounds_needed` how many more would settle a relation.
    """

    p50_ms: float
    p50_ms_eager: float
    speedup: float
    speedup_low: float
    speedup_high: float
    speedup_best_eager: float
    relation: Relation
    rounds: int
    calls_per_block: int
    p90_ms: Percentile | None = None
    p95_ms: Percentile | None = None
    p99_ms: Percentile | None = None
    p999_ms: Percentile | None = None
    log_ratios: tuple[float, ...] = ()
    processes: tuple[int, ...] = ()
    distribution: Distribution | None = None
    rounds_needed: int | None = None


@dataclasses.dataclass(frozen=True)
class BestEager:
    """The memory format in which eager is fastest."""

    memory_format: str
    p50_ms: float


@dataclasses.dataclass(frozen=True)
class EagerLatency:
    """Eager as it was loaded, in the rounds that its engines were measured in."""

    p50_ms: float
    p90_ms: Percentile | None
    p95_ms: Percentile | None
    p99_ms: Percentile | None
    p999_ms: Percentile | None
    distribution: Distribution
    best: BestEager


@dataclasses.dataclass(frozen=True)
class Stability:
    """Whether a run was undisturbed, and sentences on what disturbed it."""

    stable: bool
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SelfCheck:
    """Eager against a second instance of itself: the first one's time over the second's, and its interval."""

    relation: Relation
    ratio: float
    low: float
    high: float
    alarm: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found about one engine, and whether it is within the budget."""

    runtime: str
    precision: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    conditions: Mapping[str, JsonValue] = dataclasses.field(default_factory=dict)
