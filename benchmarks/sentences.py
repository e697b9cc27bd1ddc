"""What a verdict says in plain sentences, for readers who want no table."""

from __future__ import annotations

from collections.abc import Mapping

from resedge.artifacts import JsonValue, Relation
from resedge.benchmarks.comparing import Changes
from resedge.benchmarks.documents import AccuracyReport, BenchDocument, EngineReport, LatencyReport
from resedge.benchmarks.formats import engine_name, interval, percent, short

_SPEEDS: dict[Relation, str] = {
    "faster": "is {0} times as fast as eager",
    "equivalent": "is as fast as eager to within 2 % ({0} times its speed)",
    "not slower": "is not slower than eager ({0} times its speed)",
    "slower": "is slower than eager ({0} times its speed)",
    "inconclusive": "is neither shown to be faster nor slower than eager ({0} times its speed)",
}
_OUTCOMES = {
    "pass": "It is within the budget.",
    "fail": "It is not within the budget.",
    "inconclusive": "Whether it is within the budget is open.",
}


def headline(document: BenchDocument) -> str:
    """Return what the whole document comes to, in one sentence or two."""
    measured = document.measured
    if not measured:
        return "No engine could be measured."
    passed = [engine for engine in measured if engine.outcome == "pass"]
    text = f"{len(passed)} of {len(measured)} engines that were measured: within the budget."
    fastest = max(passed, key=_speedup, default=None)
    if fastest is None or _speedup(fastest) <= 1:
        return text
    times = short(_speedup(fastest))
    return f"{text} The fastest of them, {engine_name(*fastest.key)}, is {times} times as fast as eager."


def engine_sentence(engine: EngineReport, confidence: float) -> str:
    """Return how much faster an engine is, what accuracy that costs, and whether it is within the budget."""
    name = engine_name(*engine.key)
    if engine.accuracy is None or engine.latency is None:
        state = "was not measured" if engine.outcome == "unavailable" else "gives no usable answers"
        return ": ".join((f"{name} {state}", *engine.reasons[:1])).removesuffix(".") + "."
    speed, accuracy = _speed(engine.latency, confidence), _accuracy(engine.accuracy, confidence)
    return f"{name} {speed} and {accuracy}. {_OUTCOMES.get(engine.outcome, '')}".strip()


def baseline(document: BenchDocument) -> str:
    """Return what every engine is compared with, and on what; "" where none was measured."""
    engine = next(iter(document.measured), None)
    if engine is None or engine.accuracy is None or engine.latency is None:
        return ""
    accuracy = engine.accuracy
    top1 = "" if accuracy.top1_eager is None else f"top-1 {percent(accuracy.top1_eager)} %, "
    p50 = f"median {short(engine.latency.p50_ms_eager)} ms an image at batch 1"
    return f"Compared with {document.reference}: {top1}{p50}, {accuracy.images:,} test images."


def cautions(document: BenchDocument) -> tuple[str, ...]:
    """Return what a reader must know before believing any of it."""
    found: list[str] = []
    if document.partial:
        found.append("The run was interrupted: these are the rounds until then.")
    if document.stability and not document.stability.stable:
        reasons = "; ".join(document.stability.reasons)
        found.append(f"The machine was not steady meanwhile, so the speeds are less certain: {reasons}.")
    check = document.self_check
    if check and check.alarm:
        within = f"{short(check.ratio)} ({interval(check.low, check.high)})"
        found.append(f"Eager measured against itself came out as {check.relation}, {within}: trust no speed.")
    return tuple(found)


def images_compared(changes: Changes) -> str:
    """Return whether the same test images were used, and what follows."""
    if changes.same_images is None:
        return (
            "Whether both runs used the same test images is not recorded; the intervals assume they did not."
        )
    if changes.same_images:
        return (
            "Both runs used the same test images, so the intervals of accuracy are wider than they need be."
        )
    return "The runs used different test images; the intervals of accuracy allow for that."


def differences(changes: Changes) -> tuple[str, ...]:
    """Return what differs beside the engines that both runs have."""
    gone = f"only in the older run: {', '.join(changes.only_before)}" if changes.only_before else ""
    new = f"only in this run: {', '.join(changes.only_now)}" if changes.only_now else ""
    return tuple(text for text in (*changes.warnings, gone, new) if text)


def scenario_sentence(scenario: str, value: JsonValue) -> str:
    """Return the figures of a scenario in a line; they are those of docs/verdict.md."""
    assert isinstance(value, Mapping)
    if scenario == "end-to-end":
        return (
            f"frame in, class out: {value['p50_ms']:.3f} ms, of which preprocessing {value['prepare_ms']:.3f}"
        )
    if scenario == "cold-start":
        return (
            f"from the start of a process to the first answer {value['first_answer_ms']:.0f} ms "
            f"({value['fastest_ms']:.0f} to {value['slowest_ms']:.0f}), peak {value['peak_mib']:.0f} MiB"
        )
    if scenario == "camera":
        tail = f", p99 {value['p99_ms']:.2f}" if value["p99_ms"] is not None else ""
        return (
            f"{value['frames']} frames at {value['rate']:g} Hz: p50 {value['p50_ms']:.2f} ms{tail}, "
            f"longest {value['longest_ms']:.2f}, {value['late']} late"
        )
    faults = value["faults"]
    assert isinstance(faults, (list, tuple))
    valid = "VALID" if value["valid"] else f"NOT VALID: {', '.join(map(str, faults))}"
    tail = f", p50 {value['p50_ms']:.3f} ms" if value["p50_ms"] is not None else ""
    return f"LoadGen {value['name']}: {value['samples_per_second']:.1f} images a second{tail}, {valid}"


def _speed(latency: LatencyReport, confidence: float) -> str:
    speed = _SPEEDS[latency.relation].format(short(latency.speedup))
    ends = interval(latency.speedup_low, latency.speedup_high)
    return f"{speed}, {ends} with {100 * confidence:.4g} % confidence,"


def _accuracy(accuracy: AccuracyReport, confidence: float) -> str:
    if accuracy.drop is None or accuracy.drop_upper is None:
        agreement = f"{percent(accuracy.agreement)} % of {accuracy.images:,} images"
        return f"chooses eager's class on {agreement}, which have no labels"
    bound = f"{percent(accuracy.drop_upper)} points"
    if percent(abs(accuracy.drop)) == "0.00":
        return f"loses no top-1, at most {bound}"
    if accuracy.drop < 0:
        return f"gains {percent(-accuracy.drop)} points of top-1; if it loses any, at most {bound}"
    return f"loses {percent(accuracy.drop)} points of top-1, at most {bound}"


def _speedup(engine: EngineReport) -> float:
    return engine.latency.speedup if engine.latency else 0.0
