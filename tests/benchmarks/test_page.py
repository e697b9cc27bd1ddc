from __future__ import annotations

import copy
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from resedge.benchmarks.comparing import compare_documents
from resedge.benchmarks.documents import read_document
from resedge.benchmarks.evidence import Candidate, Contest, Evidence, Flip, Flips, LayerCost
from resedge.benchmarks.formats import engine_name
from resedge.benchmarks.page import page
from resedge.benchmarks.pictures import png
from resedge.benchmarks.stylesheet import CSS

Document = dict[str, Any]
Make = Callable[..., Document]

HOSTILE = "<script>alert('x')</script> \"&amp;\x00"
VOID = {"meta", "img", "br", "link"}


class Outline(HTMLParser):
    """What a page is made of; an element that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def attributes(self, name: str) -> list[str]:
        return [str(found[name]) for _, found in self.elements if name in found]


def evidence(name: str = "Shirt", flips: int = 30) -> Evidence:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    shown = tuple(Flip(i, name, name, name, png(frame)) for i in range(min(flips, 4)))
    return Evidence(
        command=f"resedge bench '{name}'",
        class_names=("T-shirt/top", name),
        sizes={("openvino", "int8"): 1_234_567},
        layers=tuple(LayerCost(f"{name}.{i}", 0.2, 1e-5 * (i - 1), 0.0, 30.0, i == 1) for i in range(25)),
        contests=(
            Contest("CPUs", "Ranges", 256, "mse", (Candidate("mse", 3, 1e-4), Candidate(name, 9, 1e-2))),
        ),
        flips=(Flips("openvino", "int8", flips, shown), Flips("openvino", "fp32", 0, ())),
    )


@pytest.fixture
def full(make_document: Make) -> str:
    before, now = (read_document(make_document(), where) for where in ("old", "new"))
    return page(now, evidence(), compare_documents(before, now))


@pytest.fixture(params=["full", "older", "unlabelled", "nothing measured"])
def any_page(request: pytest.FixtureRequest, make_document: Make, older_document: Document) -> str:
    document = make_document()
    if request.param == "full":
        return str(request.getfixturevalue("full"))
    if request.param == "older":
        return page(read_document(older_document, "old"), Evidence())
    if request.param == "nothing measured":
        document["engines"] = document["engines"][2:]
    else:
        for engine in document["engines"][:2]:
            engine["accuracy"] = {"images": 50, "agreement": 0.98, "max_abs_logit_error": 0.1}
    return page(read_document(document, "new"), evidence())


def test_a_page_is_well_formed_small_and_needs_nothing_else(any_page: str) -> None:
    outline = Outline(any_page)
    assert any_page.startswith("<!doctype html>\n<html lang=")
    assert len(any_page.encode()) < 1_000_000
    assert not {"script", "link", "iframe", "object", "form"} & set(outline.tags)
    assert not re.search(r"https?:|//|@import|url\(", re.sub('src="data:[^"]*"', "", any_page))
    for source in outline.attributes("src"):
        assert source.startswith("data:image/png;base64,")
    for target in outline.attributes("href"):
        assert target.startswith("#")


def test_headings_are_in_order_and_every_reference_is_there(any_page: str) -> None:
    outline = Outline(any_page)
    levels = [int(tag[1]) for tag in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    identifiers = outline.attributes("id")
    assert len(set(identifiers)) == len(identifiers)
    referred = [target.removeprefix("#") for target in outline.attributes("href")]
    referred += [name for labels in outline.attributes("aria-labelledby") for name in labels.split()]
    assert referred
    assert set(referred) <= set(identifiers)


def test_a_page_can_be_read_without_seeing_it(any_page: str) -> None:
    outline = Outline(any_page)
    for landmark in ("header", "nav", "main", "footer"):
        assert outline.tags.count(landmark) == 1
    assert outline.tags.count("caption") == outline.tags.count("table")
    assert all("scope" in found for tag, found in outline.elements if tag == "th")
    assert all(found.get("alt") for tag, found in outline.elements if tag == "img")
    figures = [found for tag, found in outline.elements if tag == "svg"]
    assert outline.tags.count("desc") == len(figures)
    assert all(found["role"] == "img" for found in figures)
    wide = [found for _, found in outline.elements if found.get("class") == "wide"]
    assert all(found.get("tabindex") == "0" and found.get("aria-label") for found in wide)


def test_every_engine_is_named_with_its_verdict(make_document: Make, full: str) -> None:
    said = "".join(Outline(full).text)
    for engine in make_document()["engines"]:
        name = engine_name(engine["runtime"], engine["precision"])
        assert re.search(rf"{engine['outcome']}{name} ", said), name


def test_the_sections_of_all_that_is_known(full: str) -> None:
    headings = re.findall(r"<h2>([^<]+)</h2>", full)
    assert headings == [
        *("Summary", "Engines", "What changed", "Accuracy against speed", "Latency", "Sensitivity by layer"),
        *("How calibration was chosen", "Images that flipped", "Conditions", "How to reproduce"),
    ]
    assert full.count("<svg") == 3


def test_what_is_not_known_has_no_section(older_document: Document) -> None:
    text = page(read_document(older_document, "old"), Evidence())
    headings = re.findall(r"<h2>([^<]+)</h2>", text)
    assert headings == ["Summary", "Engines", "Accuracy against speed", "Conditions"]
    assert text.count("<svg") == 1


def test_what_was_measured_besides_has_a_section(make_document: Make) -> None:
    document = make_document()
    document["engines"][0]["scenarios"] = {"end-to-end": {"calls": 9, "p50_ms": 1.25, "prepare_ms": 0.5}}
    text = page(read_document(document, "new"), Evidence())
    assert "<h2>Measured besides</h2>" in text
    assert "frame in, class out: 1.250 ms, of which preprocessing 0.500" in text


def test_flips_are_shown_with_the_number_left_out(full: str) -> None:
    assert "It chooses another class than eager on 30 images, of which 26 are not shown." in full
    assert full.count("<img") == 4


def test_what_a_user_named_is_text_everywhere(make_document: Make) -> None:
    document = make_document()
    document["model"] = document["reference"] = HOSTILE
    document["conditions"][HOSTILE] = {HOSTILE: [HOSTILE]}
    document["engines"][0].update(runtime=HOSTILE, precision=HOSTILE, reasons=[HOSTILE])
    document["stability"] = {"stable": False, "reasons": [HOSTILE]}
    found = read_document(document, "new")
    text = page(found, evidence(HOSTILE), compare_documents(found, found))
    assert "<script" not in text
    assert "\x00" not in text
    said = "".join(Outline(text).text)
    assert said.count("<script>alert('x')</script>") > 50


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"partial": True}, "The run was interrupted"),
        ({"stability": {"stable": False, "reasons": ["drift"]}}, "The machine was not steady meanwhile"),
        (
            {"self_check": {"relation": "faster", "ratio": 1.1, "low": 1.05, "high": 1.2, "alarm": True}},
            "Eager measured against itself came out as faster, 1.10 (1.05 to 1.20)",
        ),
    ],
)
def test_what_makes_it_doubtful_stands_at_the_top(make_document: Make, change: Document, words: str) -> None:
    text = page(read_document({**make_document(), **change}, "new"), Evidence())
    assert text.index("<h2>Summary") < text.index(words) < text.index("<h2>Engines")


def test_the_same_values_give_the_same_bytes(make_document: Make) -> None:
    first, second = (page(read_document(make_document(), "new"), evidence()) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("missing", ["p90_ms", "distribution", "log_ratios", "processes"])
def test_a_missing_key_is_no_matter(make_document: Make, missing: str) -> None:
    document = copy.deepcopy(make_document())
    for engine in document["engines"][:2]:
        del engine["latency"][missing]
    del document["eager"]
    Outline(page(read_document(document, "new"), evidence()))


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme: int) -> None:
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", re.findall(r":root \{([^}]*)\}", CSS)[scheme]))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((_luminance(colours[one]), _luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for ground in ("ground", "raised"):
        for text in ("ink", "faint", "link"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for outcome in ("pass", "fail", "inconclusive", "unavailable"):
        assert contrast(outcome, f"{outcome}-ground") >= 4.5, outcome
    for series in range(8):
        assert contrast(f"s{series}", "ground") >= 3, series
