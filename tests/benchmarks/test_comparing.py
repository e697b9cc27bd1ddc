from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest

from resedge.benchmarks.comparing import Changes, Interval, compare_documents, exit_code, joined
from resedge.benchmarks.documents import read_document
from resedge.errors import InputRefused

Document = dict[str, Any]
Make = Callable[..., Document]


def compared(before: Document, now: Document) -> Changes:
    return compare_documents(read_document(before, "old.json"), read_document(now, "new.json"))


def test_a_run_compared_with_itself_shows_no_change(make_document: Make) -> None:
    found = compared(make_document(), make_document())
    for engine in found.engines[:2]:
        assert engine.latency is not None
        assert engine.accuracy is not None
        assert (engine.latency.ratio, engine.latency.relation) == (1.0, "equivalent")
        assert engine.latency.low < 1 < engine.latency.high
        assert (engine.accuracy.loss, engine.accuracy.direction) == (0.0, "not shown to differ")
        assert engine.outcome_before == engine.outcome_now == "pass"
    assert (found.same_images, found.warnings, exit_code(found)) == (True, (), 0)


@pytest.mark.parametrize(
    ("factor", "relation", "code"), [(0.90, "slower", 1), (1.10, "faster", 0), (1.00, "equivalent", 0)]
)
def test_a_known_change_of_speed_is_found(
    make_document: Make, factor: float, relation: str, code: int
) -> None:
    found = compared(make_document((2.0, 4.0), seed=1), make_document((2.0, 4.0 * factor), seed=2))
    changed = found.engines[1].latency
    assert changed is not None
    assert changed.relation == relation
    assert changed.low < factor < changed.high
    assert changed.basis == "rounds"
    assert exit_code(found) == code


def test_the_pace_of_the_machine_cancels(make_document: Make) -> None:
    now = make_document()
    for engine in now["engines"][:2]:
        engine["latency"]["p50_ms"] *= 3
        engine["latency"]["p50_ms_eager"] *= 3
    assert exit_code(compared(make_document(), now)) == 0


def test_runs_too_noisy_to_tell_are_inconclusive(make_document: Make) -> None:
    found = compared(make_document(seed=1, spread=0.1), make_document(seed=2, spread=0.1))
    assert {engine.latency.relation for engine in found.engines if engine.latency} == {"inconclusive"}
    assert exit_code(found) == 3


def test_without_rounds_the_stated_intervals_serve(make_document: Make) -> None:
    before, now = make_document((2.0, 4.0), seed=1), make_document((2.0, 3.6), seed=2)
    exact = compared(before, now).engines[1].latency
    for document in (before, now):
        for engine in document["engines"][:2]:
            del engine["latency"]["log_ratios"]
    stated = compared(before, now).engines[1].latency
    assert exact is not None
    assert stated is not None
    assert (stated.basis, stated.relation) == ("intervals", "slower")
    assert stated.ratio == pytest.approx(exact.ratio)
    assert math.log(stated.high / stated.low) == pytest.approx(math.log(exact.high / exact.low), rel=0.35)


def test_an_older_document_compares_with_itself(older_document: Document) -> None:
    found = compared(older_document, older_document)
    assert [e.latency.ratio for e in found.engines if e.latency] == [1.0] * 5
    assert found.same_images is None
    assert any("one process" in warning for warning in found.warnings)


def test_the_difference_of_two_intervals() -> None:
    found = Interval(5.0, 2.0, 6.0).minus(Interval(1.0, 0.0, 5.0))
    assert found == Interval(4.0, 4.0 - math.hypot(3, 4), 4.0 + math.hypot(1, 1))


@pytest.mark.parametrize(("flips", "direction", "code"), [(120, "worse", 1), (14, "not shown to differ", 0)])
def test_a_loss_of_accuracy_beyond_the_interval_closes_the_gate(
    make_document: Make, flips: int, direction: str, code: int
) -> None:
    found = compared(make_document(), make_document(flips=flips))
    accuracy = found.engines[0].accuracy
    assert accuracy is not None
    assert accuracy.loss == pytest.approx((flips - 12) / 10_000)
    assert accuracy.low < accuracy.loss < accuracy.high
    assert (accuracy.measure, accuracy.direction) == ("top-1", direction)
    assert exit_code(found) == code


def _unlabelled(document: Document, agreement: float) -> Document:
    for engine in document["engines"][:2]:
        known = {"images": 10_000, "agreement": agreement, "max_abs_logit_error": 0.2}
        engine["accuracy"] = known
    return document


@pytest.mark.parametrize(("agreement", "direction"), [(0.97, "worse"), (0.999, "better")])
def test_without_labels_the_agreement_is_compared(
    make_document: Make, agreement: float, direction: str
) -> None:
    found = compared(make_document(), _unlabelled(make_document(), agreement)).engines[0].accuracy
    assert found is not None
    assert (found.measure, found.direction) == ("agreement", direction)
    assert found.loss == pytest.approx(0.99 - agreement)


def test_engines_of_one_document_alone_are_named(make_document: Make) -> None:
    found = compared(make_document((2.0, 4.0)), make_document((2.0, 4.0, 3.0)))
    assert (found.only_before, found.only_now) == ((), ("ONNX Runtime int8",))
    assert exit_code(found) == 0
    back = compared(make_document((2.0, 4.0, 3.0)), make_document((2.0, 4.0)))
    assert (back.only_before, back.only_now) == (("ONNX Runtime int8",), ())


def test_an_engine_that_is_gone_leaves_the_gate_open_to_question(make_document: Make) -> None:
    now = make_document()
    now["engines"][1].update(outcome="unavailable", accuracy=None, latency=None)
    found = compared(make_document(), now)
    assert found.engines[1].latency is None
    assert (found.engines[1].outcome_before, found.engines[1].outcome_now) == ("pass", "unavailable")
    assert exit_code(found) == 3


def test_nothing_in_common_is_no_pass(make_document: Make) -> None:
    now = make_document()
    now["engines"] = now["engines"][2:]
    assert exit_code(compared(make_document(), now)) == 3


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("cpu", "Intel Xeon", "another machine (cpu was AMD EPYC, is Intel Xeon)"),
        ("threads", 4, "another number of compute threads (threads was 2, is 4)"),
        ("python", "3.12.1", "other versions (python was 3.11.7, is 3.12.1)"),
        ("libraries", {"torch": "2.14.0"}, "other versions (torch was 2.13.0, is 2.14.0)"),
        ("weights", "ef" * 32, "other weights"),
        ("budget", {"max_drop": 0.01, "min_speedup": 1, "confidence": 0.95}, "another budget"),
    ],
)
def test_what_else_differs_is_said(make_document: Make, key: str, value: object, words: str) -> None:
    now = make_document()
    now["conditions"][key] = value
    (warning,) = compared(make_document(), now).warnings
    assert warning.startswith(words)


def test_engines_that_were_given_prepared_images_and_now_frames_are_named(make_document: Make) -> None:
    before, now = make_document(), make_document()
    before["conditions"]["given"] = {"eager": "prepared", "openvino:int8": "prepared"}
    now["conditions"]["given"] = {"eager": "prepared", "openvino:int8": "frames"}
    (warning,) = compared(before, now).warnings
    assert warning.startswith("other inputs (openvino:int8 was prepared, is frames)")
    assert compared(make_document(), now).warnings == ()


@pytest.mark.parametrize(("images", "same"), [("ab" * 32, True), ("ef" * 32, False), (None, None)], ids=str)
def test_whether_the_images_were_the_same_is_known_by_their_digest(
    make_document: Make, images: str | None, same: bool | None
) -> None:
    now = make_document()
    if images is None:
        del now["conditions"]["test_images"]
    else:
        now["conditions"]["test_images"] = images
    assert compared(make_document(), now).same_images is same


def test_another_number_of_images_is_another_set(make_document: Make) -> None:
    now = make_document()
    for engine in now["engines"][:2]:
        engine["accuracy"]["images"] = 9_000
    assert compared(make_document(), now).same_images is False


def test_a_disturbed_run_settles_no_speed(make_document: Make) -> None:
    now = make_document((2.0, 3.0))
    now["stability"] = {"stable": False, "reasons": ["others kept 1.5 cores busy"]}
    found = compared(make_document((2.0, 4.0)), now)
    assert {e.latency.relation for e in found.engines if e.latency} == {"inconclusive"}
    assert found.warnings == ("this run was disturbed, so no difference in speed is settled",)
    assert exit_code(found) == 3


def test_an_interrupted_run_is_said(make_document: Make) -> None:
    before = {**make_document(), "partial": True}
    assert compared(before, make_document()).warnings == (
        "the older run was interrupted: it rests on fewer rounds",
    )


@pytest.mark.parametrize("key", ["model", "reference"])
def test_another_model_is_refused(make_document: Make, key: str) -> None:
    with pytest.raises(InputRefused, match=f"the older document: is of the {key} 'other'"):
        compared({**make_document(), key: "other"}, make_document())


def test_the_intervals_of_many_engines_hold_together(make_document: Make) -> None:
    one = compared(make_document((2.0,)), make_document((2.0,))).engines[0].latency
    four = (
        compared(make_document((2.0, 4.0, 3.0, 1.5)), make_document((2.0, 4.0, 3.0, 1.5))).engines[0].latency
    )
    assert one is not None
    assert four is not None
    assert four.low < one.low < 1 < one.high < four.high


def test_equal_runs_are_rarely_called_different(make_document: Make) -> None:
    """200 pairs of runs of one engine, of which 5 % may miss: 19 or more would be a chance of 0.5 %."""
    missed = 0
    for seed in range(200):
        before, now = (make_document((2.0,), seed=2 * seed + run, spread=0.05) for run in (0, 1))
        change = compared(before, now).engines[0].latency
        assert change is not None
        missed += not change.low <= 1 <= change.high
    assert missed < 19


@pytest.mark.parametrize(
    ("codes", "code"),
    [((0, 0), 0), ((0, 3), 3), ((3, 1), 1), ((1, 4), 4), ((4, 0), 4), ((130, 4), 130)],
)
def test_exit_codes_join_in_the_documented_order(codes: tuple[int, int], code: int) -> None:
    assert joined(*codes) == joined(*reversed(codes)) == code


def test_the_changes_are_json(make_document: Make) -> None:
    import json

    from resedge.artifacts import canonical_json, encode

    found = encode(compared(make_document(), copy.deepcopy(make_document())))
    assert json.loads(canonical_json(found))["engines"][0]["latency"]["ratio"] == 1.0
