"""Every outcome of the two parts and how they join; the exit codes."""

import math

import pytest

from resedge.artifacts import Accuracy, Latency, Outcome, Verdict
from resedge.benchmarks.bounds import drop_upper, images_needed
from resedge.benchmarks.verdict import Budget, exit_code, judge, levels, unavailable
from resedge.errors import UsageError


def labelled(negative: int, positive: int, images: int = 10_000) -> Accuracy:
    drop = (negative - positive) / images
    upper = drop_upper(negative, positive, images, 0.95)
    return Accuracy(images, 0.99, 0.1, 0.92 - drop, 0.92, drop, upper, negative, positive)


def unlabelled(disagreements: int, images: int = 10_000) -> Accuracy:
    return Accuracy(images, 1 - disagreements / images, 0.1)


def speed(low: float, high: float, rounds: int = 8) -> Latency:
    return Latency(1.0, 2.0, math.sqrt(low * high), low, high, 1.0, "inconclusive", rounds, 50)


FAST = speed(5.4, 5.8)
SAME = labelled(11, 9)


def verdict_of(accuracy: Accuracy, latency: Latency, budget: Budget | None = None) -> Verdict:
    return judge("openvino", "int8", accuracy, latency, budget or Budget(), {"threads": 2})


def test_a_pass_has_no_reasons_and_keeps_what_it_was_given() -> None:
    assert verdict_of(SAME, FAST) == Verdict("openvino", "int8", "pass", (), SAME, FAST, {"threads": 2})


@pytest.mark.parametrize(
    ("accuracy", "outcome", "words"),
    [
        (labelled(30, 20), "pass", ()),
        (labelled(200, 20), "fail", ("drops by 1.80 points, by at least 1.57", "allows 0.50")),
        (labelled(60, 20), "inconclusive", ("0.40 points, at most 0.56", "10,000 images are too few")),
        (labelled(70, 10), "inconclusive", ("0.60 points, at most 0.76", "would settle it")),
        (labelled(0, 0, 597), "inconclusive", ("0.00 points, at most 0.50", "597 images are too few")),
        (labelled(0, 0, 598), "pass", ()),
        (unlabelled(20), "pass", ("without labels", "20 of 10,000 predictions differ, at most 0.29 %")),
        (unlabelled(45), "inconclusive", ("without labels", "at most 0.58 %", "images would settle it")),
        (unlabelled(300), "inconclusive", ("without labels", "Labels would settle it")),
    ],
)
def test_accuracy_decides(accuracy: Accuracy, outcome: Outcome, words: tuple[str, ...]) -> None:
    found = verdict_of(accuracy, FAST)
    assert found.outcome == outcome
    assert len(found.reasons) == (1 if words else 0)
    for word in words:
        assert word in found.reasons[0]


def test_the_images_needed_are_those_of_the_formula() -> None:
    # psi = 82 / 10,002 and D = 40 / 10,002 (one flip more each way); 6.1826 (psi - D^2) / (0.005 - D)^2.
    (reason,) = verdict_of(labelled(60, 20), FAST).reasons
    psi, drop = 82 / 10_002, 40 / 10_002
    needed = math.ceil((1.6448536 + 0.8416212) ** 2 * (psi - drop**2) / (0.005 - drop) ** 2)
    assert f"about {needed:,} would settle it" in reason
    assert 50_000 < needed < 51_000


@pytest.mark.parametrize(
    ("latency", "min_speedup", "outcome", "words"),
    [
        (speed(1.01, 1.10), 1.0, "pass", ()),
        (speed(0.985, 1.02), 1.0, "pass", ()),
        (speed(0.985, 0.995), 1.0, "pass", ()),  # shown slower, by less than counts as slower
        (speed(0.90, 0.95), 1.0, "fail", ("0.92x eager's speed (0.90 to 0.95", "asks for 1x.")),
        (speed(0.97, 0.99), 1.0, "fail", ("asks for 1x.",)),
        (speed(0.95, 1.10), 1.0, "inconclusive", ("8 rounds are too few: about", "more would settle")),
        (speed(5.40, 5.80), 5.0, "pass", ()),
        (speed(4.95, 5.80), 5.0, "inconclusive", ("asks for 5x. 8 rounds are too few: about 3 more",)),
        (speed(4.80, 4.90), 5.0, "fail", ("4.85x eager's speed", "asks for 5x.")),
        (speed(4.0, 6.25), 5.0, "inconclusive", ("lies on the limit itself",)),
    ],
)
def test_latency_decides(
    latency: Latency, min_speedup: float, outcome: Outcome, words: tuple[str, ...]
) -> None:
    found = verdict_of(SAME, latency, Budget(min_speedup=min_speedup))
    assert found.outcome == outcome
    assert len(found.reasons) == (1 if words else 0)
    for word in words:
        assert word in found.reasons[0]


GOOD, OPEN, BAD = labelled(11, 9), labelled(60, 20), labelled(200, 20)
QUICK, UNSURE, SLOW = speed(5.4, 5.8), speed(0.9, 1.2), speed(0.8, 0.9)


@pytest.mark.parametrize(
    ("accuracy", "latency", "outcome", "reasons"),
    [
        (GOOD, UNSURE, "inconclusive", 1),
        (GOOD, SLOW, "fail", 1),
        (OPEN, QUICK, "inconclusive", 1),
        (OPEN, UNSURE, "inconclusive", 2),
        (OPEN, SLOW, "fail", 2),
        (BAD, QUICK, "fail", 1),
        (BAD, UNSURE, "fail", 2),
        (BAD, SLOW, "fail", 2),
    ],
)
def test_the_worse_part_decides_and_both_give_reasons(
    accuracy: Accuracy, latency: Latency, outcome: Outcome, reasons: int
) -> None:
    found = verdict_of(accuracy, latency)
    assert (found.outcome, len(found.reasons)) == (outcome, reasons)


def test_the_confidence_of_the_budget_is_said_and_used() -> None:
    accuracy = labelled(72, 10)  # 0.62 points; more than 0.50 at 75 %, not at 95 %
    assert verdict_of(accuracy, FAST, Budget(confidence=0.95)).outcome == "inconclusive"
    found = verdict_of(accuracy, FAST, Budget(confidence=0.75))
    assert found.outcome == "fail"
    assert "with 75 % confidence" in found.reasons[0]


@pytest.mark.parametrize(
    ("latency", "words"),
    [
        (QUICK, "5.60x eager's speed (5.40 to 5.80 with 95 % confidence); the budget asks for 1x. An"),
        (SLOW, "0.85x eager's speed (0.80 to 0.90"),
    ],
)
def test_an_unstable_run_settles_nothing_of_time(latency: Latency, words: str) -> None:
    found = judge("openvino", "int8", GOOD, latency, Budget(), {}, stable=False)
    assert found.outcome == "inconclusive"
    (reason,) = found.reasons
    assert words in reason
    assert "An unstable run settles nothing" in reason


def test_an_unstable_run_settles_accuracy_all_the_same() -> None:
    assert judge("openvino", "int8", BAD, QUICK, Budget(), {}, stable=False).outcome == "fail"


def test_what_was_open_stays_open_in_an_unstable_run() -> None:
    found = judge("openvino", "int8", GOOD, UNSURE, Budget(), {}, stable=False)
    assert "rounds are too few" in found.reasons[0]


def test_the_images_needed_are_kept_where_the_drop_is_open() -> None:
    found = verdict_of(OPEN, FAST).accuracy
    assert found is not None
    assert found.images_needed == images_needed(60, 20, 10_000, 0.005, 0.95)
    passed = verdict_of(GOOD, FAST).accuracy
    assert passed is not None
    assert passed.images_needed is None


# --- several engines ------------------------------------------------------------------------------


def test_one_engine_is_held_to_the_budget_s_confidence() -> None:
    found = levels({"a": OPEN}, Budget())["a"]
    assert (found.within, found.beyond) == pytest.approx((0.95, 0.95))


def test_the_surest_is_held_to_most_and_what_is_shown_leaves_the_rest_fewer() -> None:
    found = levels({"good": GOOD, "open": OPEN, "bad": BAD}, Budget())
    assert found["good"].within == pytest.approx(1 - 0.05 / 3)
    assert found["open"].within == found["bad"].within == pytest.approx(0.975)
    assert found["bad"].beyond == pytest.approx(1 - 0.05 / 3)
    assert found["good"].beyond == found["open"].beyond == pytest.approx(0.975)


def test_what_one_engine_alone_would_pass_with_five_may_not() -> None:
    narrow = labelled(0, 0, 700)  # 598 images would do for one, 1,077 for the surest of five
    five = levels(dict.fromkeys("abcde", narrow), Budget())["a"]
    assert judge("openvino", "int8", narrow, FAST, Budget(), {}).outcome == "pass"
    found = judge("openvino", "int8", narrow, FAST, Budget(), {}, held_to=five)
    assert found.outcome == "inconclusive"
    assert "at most 0.77 with 99 % confidence" in found.reasons[0]
    assert found.accuracy is not None
    assert found.accuracy.drop_upper == narrow.drop_upper  # of this engine alone, as it was


def test_without_labels_no_engine_is_shown_to_be_beyond() -> None:
    found = levels({"a": unlabelled(3000), "b": unlabelled(0)}, Budget())
    assert found["a"].beyond == found["b"].beyond == pytest.approx(0.975)
    assert found["b"].within == pytest.approx(0.975)
    assert found["a"].within == pytest.approx(0.95)


def test_half_an_accuracy_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="flips"):
        verdict_of(Accuracy(10, 1.0, 0.0, drop_upper=0.2), FAST)


def test_unavailable() -> None:
    expected = Verdict("tensorrt", "int8", "unavailable", ("is not installed.",))
    assert unavailable("tensorrt", "int8", "is not installed.") == expected


@pytest.mark.parametrize(
    ("option", "budget"),
    [
        ("--max-drop", {"max_drop": -0.01}),
        ("--max-drop", {"max_drop": 1.0}),
        ("--max-drop", {"max_drop": math.nan}),
        ("--min-speedup", {"min_speedup": 0.0}),
        ("--min-speedup", {"min_speedup": math.inf}),
        ("--confidence", {"confidence": 0.5}),
        ("--confidence", {"confidence": 95.0}),
    ],
)
def test_an_impossible_budget_is_refused(option: str, budget: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"^{option}: .* is not possible. Expected:"):
        Budget(**budget)


@pytest.mark.parametrize(
    ("outcomes", "named", "code"),
    [
        ({"openvino": "pass", "tensorrt": "unavailable"}, set(), 0),
        ({"openvino": "unavailable", "tensorrt": "unavailable"}, set(), 4),
        ({"openvino": "pass", "tensorrt": "unavailable"}, {"openvino"}, 0),
        ({"openvino": "pass", "tensorrt": "unavailable"}, {"tensorrt"}, 4),
        ({"openvino": "fail", "tensorrt": "unavailable"}, {"tensorrt"}, 4),
        ({"openvino": "inconclusive", "tensorrt": "unavailable"}, set(), 3),
        ({"openvino": "inconclusive", "onnxruntime": "pass"}, {"openvino"}, 3),
        ({"openvino": "inconclusive", "onnxruntime": "fail"}, set(), 1),
        ({}, {"openvino"}, 0),
    ],
)
def test_exit_codes(outcomes: dict[str, Outcome], named: set[str], code: int) -> None:
    verdicts = [Verdict(runtime, "int8", outcome) for runtime, outcome in outcomes.items()]
    assert exit_code(verdicts, named) == code
    assert exit_code(verdicts[::-1], named) == code


@pytest.mark.parametrize(
    ("outcome", "named", "code"),
    [("pass", set(), 1), ("inconclusive", set(), 1), ("unavailable", {"openvino"}, 4)],
)
def test_an_alarm_is_a_failure(outcome: Outcome, named: set[str], code: int) -> None:
    assert exit_code([Verdict("openvino", "int8", outcome)], named, alarm=True) == code
