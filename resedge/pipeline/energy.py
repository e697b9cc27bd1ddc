"""What a benchmark adds on a Jetson: the energy of each engine, and how the board is set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from resedge.artifacts import JsonValue, decode, encode
from resedge.pipeline.reporting import Reporter
from resedge.protocols import Progress

Arm = Callable[[], object]


def energy_and_settings(
    arms: Mapping[str, Arm], tegrastats: Path, progress: Progress
) -> dict[str, JsonValue]:
    """Return how this Jetson is set, and the energy of each engine and of eager."""
    from resedge.benchmarks.telemetry import settings, sustained
    from resedge.jetson import device

    progress.start("energy", len(arms))
    energies: dict[str, JsonValue] = {}
    for name, arm in arms.items():
        energies[name] = encode(sustained(arm, tegrastats))
        progress.advance(1)
    progress.finish()
    here = device.read()
    return {"energy": energies, **({"jetson": settings(here)} if here else {})}


def say_energy(conditions: Mapping[str, JsonValue], reporter: Reporter) -> None:
    """Say what an image costs each engine on a Jetson, or that it is not known; elsewhere nothing."""
    from resedge.benchmarks.telemetry import Energy

    energies, jetson = conditions.get("energy"), conditions.get("jetson")
    if not isinstance(energies, Mapping):
        return
    found = {name: decode(Energy, energy, f"energy: {name}") for name, energy in energies.items()}
    for name, energy in found.items():
        if energy.joules_per_image is not None:
            millijoules = f"{1e3 * energy.joules_per_image:.3g} mJ an image"
            reporter.stage("energy", f"{name}: {millijoules}, {energy.watts:.3g} W ({energy.rule})")
    unknown = [name for name, energy in found.items() if energy.joules_per_image is None]
    if unknown:
        rails = sorted({rail for name in unknown for rail in found[name].rails})
        reporter.warn(
            f"no energy of {', '.join(unknown)}: it takes two readings, and rails whose total is known; "
            f"rails read: {', '.join(rails) or 'none'}"
        )
    if isinstance(jetson, Mapping) and jetson["clocks_locked"] is False:
        reporter.warn("the clocks move with the load; for steady figures: sudo jetson_clocks")


def power_mode() -> dict[str, JsonValue]:
    """Return a Jetson's power mode, which changes times and no answers; nothing elsewhere."""
    from resedge.jetson import device

    mode = device.power_mode()
    return {"power_mode": mode.number} if mode else {}
