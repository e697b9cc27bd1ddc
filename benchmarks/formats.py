"""How figures are written wherever a verdict is read: on a terminal, in Markdown, on a page."""

from __future__ import annotations

_RUNTIMES = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT for RTX",
}


def engine_name(runtime: str, precision: str) -> str:
    """Return an engine as a reader calls it: "OpenVINO int8"."""
    return f"{_RUNTIMES.get(runtime, runtime)} {precision}"


def percent(fraction: float) -> str:
    """Return a fraction in percent, or in percentage points, with two decimals."""
    return _without_negative_zero(f"{100 * fraction:.2f}")


def signed_percent(fraction: float) -> str:
    """Return the same with its sign; what rounds to zero has none."""
    return _without_negative_zero(f"{100 * fraction:+.2f}")


def short(number: float) -> str:
    """Return three digits, more only before the point."""
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def interval(low: float, high: float) -> str:
    """Return the ends of an interval of a ratio."""
    return f"{short(low)} to {short(high)}"


def change(ratio: float) -> str:
    """Return a ratio as a change in percent: 1.05 is "+5.0"."""
    return _without_negative_zero(f"{100 * (ratio - 1):+.1f}")


def _without_negative_zero(text: str) -> str:
    return text.lstrip("+-") if float(text) == 0 else text
