"""A Jetson in words, for whoever stands before it."""

from __future__ import annotations

from resedge.jetson import device, jetpack
from resedge.jetson.device import Jetson

Line = tuple[str, str]


def lines(jetson: Jetson) -> list[Line]:
    """Describe a Jetson; what its files do not say is unknown, and the file is named."""

    def known(text: str | None, field: str) -> str:
        return text or f"unknown ({device.FILES[field]})"

    model = known(jetson.model, "model")
    capability = jetson.compute_capability or f"unknown ({jetson.chip or device.FILES['chip']})"
    return [
        ("jetson", f"{model}; module {_module(jetson)}; compute capability {capability}"),
        ("jetpack", _jetpack(jetson)),
        ("tensorrt (apt)", _against_release(jetson.tensorrt, jetson, "packages", "tensorrt")),
        ("cuda", _against_release(jetson.cuda, jetson, "cuda", "cuda")),
        ("power mode", _power_mode(jetson)),
        ("clocks", _clocks(jetson)),
        ("memory", _memory(jetson)),
    ]


def _module(jetson: Jetson) -> str:
    if jetson.part is None:
        return f"unknown ({device.FILES['part']})"
    return f"{jetson.module} ({jetson.part})"


def _jetpack(jetson: Jetson) -> str:
    package = (jetson.packages or {}).get("nvidia-jetpack")
    installed = f"; the package nvidia-jetpack is {package}" if package else ""
    if jetson.l4t is None:
        return f"unknown ({device.FILES['l4t']}){installed}"
    version = jetpack.jetpack_of(jetson.l4t)
    return f"{version or 'unknown (not in `resedge doctor --jetpack`)'}, by L4T {jetson.l4t}{installed}"


def _against_release(found: str | None, jetson: Jetson, field: str, column: str) -> str:
    """Return a version, and that of the JetPack where it is another."""
    expected = jetson.release.cell(column) if jetson.release else None
    if found is None:
        missing = f"unknown ({device.FILES[field]})"
        return f"{missing}; JetPack comes with {expected}" if expected else missing
    if expected and not f"{found}.".startswith(f"{expected.rstrip('?')}."):
        return f"{found}; JetPack comes with {expected}"
    return found


def _power_mode(jetson: Jetson) -> str:
    mode = jetson.power_mode
    if mode is None:
        return f"unknown ({device.FILES['power_mode']}); `sudo nvpmodel -q` tells it"
    return f"{mode.name or 'unnamed'} (nvpmodel {mode.number})"


def _clocks(jetson: Jetson) -> str:
    spans: dict[tuple[str, float, float], int] = {}
    for clock in jetson.clocks:
        unit = (clock.unit.rstrip("0123456789"), clock.lowest, clock.highest)
        spans[unit] = spans.get(unit, 0) + 1
    if not spans:
        return f"unknown ({device.FILES['clocks']})"
    texts = [
        f"{count} {unit} {f'{low:.0f}' if low == high else f'{low:.0f} to {high:.0f}'} MHz"
        for (unit, low, high), count in spans.items()
    ]
    locked = jetson.clocks_locked
    state = {
        True: "locked",
        False: "they move with the load; for steady times: sudo jetson_clocks",
        None: "whether all are locked is unknown",
    }[locked]
    return f"{', '.join(texts)}; {state}"


def _memory(jetson: Jetson) -> str:
    if jetson.memory is None:
        return f"unknown ({device.FILES['memory']})"
    total, available, swap = (
        f"{size / 1e3:.1f} GB" for size in (jetson.memory.total, jetson.memory.available, jetson.memory.swap)
    )
    return f"{total} for CPU and GPU together, {available} available; swap {swap}"
