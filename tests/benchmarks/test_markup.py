from __future__ import annotations

import pytest

from resedge.benchmarks.markup import Markup, element, escaped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<script>", "&lt;script&gt;"),
        ("a & \"b\" 'c'", "a &amp; &quot;b&quot; &#x27;c&#x27;"),
        ("nul\x00 esc\x1b half\ud800", "nul\ufffd esc\ufffd half\ufffd"),
        ("tab\tline\n", "tab\tline\n"),
    ],
)
def test_text_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_children_are_escaped_unless_they_are_elements() -> None:
    inner = element("b", "<x>")
    assert inner == "<b>&lt;x&gt;</b>"
    assert element("span", inner, "&") == "<span><b>&lt;x&gt;</b>&amp;</span>"
    assert isinstance(inner, Markup)


def test_attributes_are_escaped_named_and_left_out() -> None:
    found = element("a", "x", class_="n", aria_label='"><script>', href=None, x=1.25, y=2.0)
    assert found == '<a class="n" aria-label="&quot;&gt;&lt;script&gt;" x="1.2" y="2">x</a>'


def test_an_empty_element_has_no_end() -> None:
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">\n'
