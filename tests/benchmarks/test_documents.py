from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest

from resedge.benchmarks.documents import Distribution, read_document
from resedge.errors import InputRefused

Document = dict[str, Any]


def test_an_older_document_has_the_defaults(older_document: Document) -> None:
    found = read_document(older_document, "old.json")
    assert len(found.measured) == 5
    assert (found.eager, found.stability, found.self_check, found.partial) == (None, None, None, False)
    assert found.confidence == 0.95
    latency = found.measured[0].latency
    assert latency is not None
    assert (latency.log_ratios, latency.distribution, latency.p99_ms) == ((), None, None)


def test_every_key_is_read(make_document: Callable[..., Document]) -> None:
    found = read_document(make_document(), "new.json")
    accuracy, latency = found.measured[0].accuracy, found.measured[0].latency
    assert accuracy is not None
    assert accuracy.worst_class is not None
    assert latency is not None
    assert latency.p99_ms is not None
    assert (accuracy.worst_class.class_, accuracy.kl, accuracy.flips) == (1, 2.5e-4, (12, 9))
    assert (latency.p99_ms.ms, latency.processes, len(latency.log_ratios)) == (2.5, (7, 7, 6), 20)
    assert found.budget is not None
    assert found.budget.max_drop == 0.005


def test_keys_of_a_later_version_are_passed_over(make_document: Callable[..., Document]) -> None:
    document = make_document()
    expected = read_document(document, "new.json")
    document["later"] = 1
    document["engines"][0]["later"] = {"a": [None]}
    document["engines"][0]["latency"]["later"] = "b"
    document["engines"][0]["latency"]["p99_ms"]["later"] = "c"
    assert read_document(document, "new.json") == expected


def _changed(document: Document, path: tuple[str | int, ...], value: object) -> Document:
    changed = copy.deepcopy(document)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("schema",), 2, "has the schema 2, this resedge reads 1"),
        (("schema",), None, "has the schema None"),
        (("engines",), {}, "engines"),
        (("engines", 0, "outcome"), "great", "outcome"),
        (("engines", 0, "latency", "speedup"), "fast", "speedup"),
        (("engines", 0, "latency", "speedup_low"), 0, "impossible"),
        (("engines", 0, "latency", "speedup_high"), 0.1, "impossible"),
        (("engines", 0, "latency", "distribution", "edges_ms"), [1, 2], "no histogram"),
        (("engines", 0, "latency", "distribution", "edges_ms"), [0, 1, 2, 3], "no histogram"),
        (("engines", 0, "latency", "distribution", "counts"), [0, 0, 0], "no histogram"),
        (("engines", 0, "accuracy", "negative_flips"), 10_001, "impossible"),
        (("engines", 0, "accuracy", "images"), 0, "impossible"),
        (("conditions", "budget"), {"max_drop": 1}, "min_speedup"),
    ],
)
def test_what_is_no_document_is_refused_with_the_place(
    make_document: Callable[..., Document], path: tuple[str | int, ...], value: object, words: str
) -> None:
    with pytest.raises(InputRefused, match=words) as caught:
        read_document(_changed(make_document(), path, value), "new.json")
    assert "new.json" in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "text", {"schema": 1}])
def test_what_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(InputRefused, match=r"new\.json"):
        read_document(data, "new.json")


def test_the_quantiles_of_a_distribution() -> None:
    found = Distribution((1.0, 2.0, 4.0, 8.0), (50, 0, 50))
    assert found.quantile(0.25) == pytest.approx(math.sqrt(2))
    assert found.quantile(0.5) == pytest.approx(2)
    assert found.quantile(0.75) == pytest.approx(4 * math.sqrt(2))
    assert found.quantile(1.0) == pytest.approx(8)
