"""What a page shows beside the document of a bench: how the engines came to be, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Flip:
    """An image on which an engine chooses another class than eager.

    `image` is its position in the test set, from 0; classes are names, `label` None where there is none.
    """

    image: int
    label: str | None
    eager: str
    engine: str
    png: bytes


@dataclass(frozen=True)
class Flips:
    """One engine's: how many there are, and those shown."""

    runtime: str
    precision: str
    total: int
    shown: tuple[Flip, ...]


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs in INT8: `resedge.calibration.budget.Sensitivity`, and whether it stays float."""

    name: str
    share: float
    kl_gain: float
    agreement_gain: float
    sqnr: float | None
    kept: bool


@dataclass(frozen=True)
class Candidate:
    """One that a bake-off tried: the images on which its top class differs from eager's, its KL in nats."""

    name: str
    disagreements: int
    kl: float


@dataclass(frozen=True)
class Contest:
    """A bake-off: of which Q/DQ scheme, for what ("ranges", "weights"), on how many images, who won."""

    scheme: str
    subject: str
    images: int
    winner: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Evidence:
    """All of it; what is empty has no section.

    `command` reproduces the document. `sizes` has the bytes of each engine by (runtime, precision).
    """

    command: str = ""
    class_names: tuple[str, ...] = ()
    sizes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    layers: tuple[LayerCost, ...] = ()
    contests: tuple[Contest, ...] = ()
    flips: tuple[Flips, ...] = ()
