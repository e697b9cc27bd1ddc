from __future__ import annotations

from dataclasses import replace

import pytest

from resedge.benchmarks.comparing import AccuracyChange, Changes, EngineChange, LatencyChange
from resedge.calibration.blame import LayerError
from resedge.console import print_changes, print_comparison, print_error, print_pairs
from resedge.errors import InputRefused
from resedge.pipeline.comparing import Comparison

SOUND = LayerError("a.out", ("a",), 40.0, 41.0, 50.0, 0.0, 0.0, ("a",), ("b",))
CUT_OFF = LayerError("b.out", ("b", "relu"), 3.0, 3.5, 3.5, 0.25, 0.99, ("b",), ("c", "d"))
SEEN = Comparison("openvino:int8", 57, 20.0, (SOUND, CUT_OFF), 1.0, 120.0, 1, 0, ())


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            SEEN,
            (
                "first bad layer: b + relu: its output is 3.0 dB above its error, 20 are asked for",
                "most of the error up to there comes from b + relu, 3.5 dB alone: ",
                "its output's integers cut off 25.00% of the values",
                "cure: `resedge export … --keep c --keep d`",
                "Watched in 1 session; the logits are those of the engine itself to the bit.",
            ),
        ),
        (
            replace(SEEN, layers=(SOUND, replace(CUT_OFF, readers=()))),
            ("no --keep takes these integers away",),
        ),
        (
            replace(SEEN, layers=(replace(SOUND, alone=10.0, rounding=30.0), replace(CUT_OFF, alone=30.0))),
            ("comes from a, 10.0 dB alone: its weights, and how it is computed", "--keep a`"),
        ),
        (
            replace(SEEN, layers=(replace(SOUND, alone=10.0, rounding=10.0), CUT_OFF), floor=1.0),
            ("no layer is bad: every output is 1 dB or more above its error", "dB alone"),
        ),
        (
            replace(SEEN, layers=(SOUND, replace(CUT_OFF, sqnr=None, alone=None))),
            ("first bad layer: b + relu: its output holds NaN or infinity", "not finite bad", "--keep b`"),
        ),
        (
            replace(SEEN, layers=(replace(SOUND, sqnr=1.0, rounding=None, cut_off=None, weighted=()),)),
            ("41.0 dB alone: how it is computed", "cure: none by --keep, for it has no quantised weight"),
        ),
        (
            replace(SEEN, views=3, changed=2, unseen=("x.out", "y.out")),
            (
                "watched in 3 sessions whose logits were not the engine's own on 2 images",
                "Not to be seen without changing what is computed: x.out, y.out.",
            ),
        ),
    ],
    ids=["range", "no reader to keep", "earlier", "none bad", "not finite", "float", "not to be seen"],
)
def test_a_comparison_is_said(
    capsys: pytest.CaptureFixture[str], found: Comparison, said: tuple[str, ...]
) -> None:
    print_comparison(found)
    text = " ".join(capsys.readouterr().out.split())
    for words in said:
        assert words in text


@pytest.mark.parametrize("width", [80, 140])
def test_changes_are_printed_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    latency = LatencyChange(0.9, 0.88, 0.92, "slower", "rounds", 4.0, 3.6)
    accuracy = AccuracyChange("top-1", 0.01, -0.002, 0.022, "not shown to differ", -0.001)
    engine = EngineChange("openvino", "int8", "pass", "fail", latency, accuracy)
    gone = EngineChange("tensorrt", "int8", "pass", "unavailable", None, None)
    print_changes(Changes(0.95, (engine, gone), ("[old] fp32",), (), False, ("other weights",)))
    text = capsys.readouterr().out
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for words in ("-10.0", "slower", "+1.00", "pass → ", "unavailable", "only in the older run: [old] fp32"):
        assert words in text


def test_names_in_a_file_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b]0;title\x07[red]b\u202e\u00e9"
    print_pairs([("node", name)])
    print_error(InputRefused("is refused.", where=name))
    for text in capsys.readouterr():
        assert r"a\x1b]0;title\x07[red]b\u202eé" in text
