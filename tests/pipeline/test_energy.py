from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from resedge.artifacts import JsonValue, encode
from resedge.benchmarks import telemetry
from resedge.benchmarks.telemetry import Energy
from resedge.jetson import device
from resedge.jetson.device import PowerMode
from resedge.pipeline.energy import energy_and_settings, power_mode, say_energy
from resedge.pipeline.reporting import Silent

KNOWN = Energy(30, 2.9, 580.0, {"VDD_IN": 5.8}, "VDD_IN", 5.8, 0.029)
UNKNOWN = Energy(30, 2.9, 580.0, {"VDD_NEW": 5.8}, None, None, None)


class Listener(Silent):
    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def stage(self, name: str, detail: str, *, reused: bool = False) -> None:
        self.heard.append((name, detail))

    def warn(self, text: str) -> None:
        self.heard.append(("warning", text))


def said(conditions: Mapping[str, JsonValue]) -> list[tuple[str, str]]:
    listener = Listener()
    say_energy(conditions, listener)
    return listener.heard


def test_elsewhere_than_on_a_jetson_nothing_is_said() -> None:
    assert said({"threads": 2}) == []


def test_what_an_image_costs_and_where_that_is_not_known() -> None:
    energies = {"eager": encode(KNOWN), "tensorrt:int8": encode(UNKNOWN)}
    assert said({"energy": energies, "jetson": {"clocks_locked": False}}) == [
        ("energy", "eager: 29 mJ an image, 5.8 W (VDD_IN)"),
        (
            "warning",
            "no energy of tensorrt:int8: it takes two readings, and rails whose total is known; "
            "rails read: VDD_NEW",
        ),
        ("warning", "the clocks move with the load; for steady figures: sudo jetson_clocks"),
    ]


def test_locked_clocks_are_no_warning() -> None:
    assert said({"energy": {}, "jetson": {"clocks_locked": True}}) == []


def test_every_arm_runs_once_more_for_its_energy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured: list[object] = []

    def sustained(arm: object, tegrastats: Path) -> Energy:
        assert tegrastats == tmp_path
        measured.append(arm)
        return KNOWN

    monkeypatch.setattr(telemetry, "sustained", sustained)
    arms = {"eager": lambda: 1, "openvino:int8": lambda: 2}
    found = energy_and_settings(arms, tmp_path, Silent())
    assert measured == list(arms.values())
    assert found == {"energy": dict.fromkeys(arms, encode(KNOWN))}  # this machine is no Jetson


def test_a_power_mode_is_part_of_what_latency_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert power_mode() == {}
    monkeypatch.setattr(device, "power_mode", lambda: PowerMode(2, "MAXN"))
    assert power_mode() == {"power_mode": 2}
