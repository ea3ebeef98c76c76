"""Answers' markdown: safe by construction, and the same whether it streams or comes at once."""

from __future__ import annotations

import re
from html import escape

import pytest

from serving.ui.markdown import Blocks, render
from serving.ui.turn import Source

SOURCES = {
    1: Source(1, 'A "title" <b>', "/documents/i/d?start=1&end=2", 'quote "x" <script>', "a.md", ("One", "Two")),
    2: Source(2, "B", "/b"),
}


def html(text, sources=SOURCES):
    blocks = Blocks()
    blocks.update(text, sources, whole=True)
    return "".join(blocks.html)


def test_no_payload_survives_as_markup(samples):
    for payload in [*samples.xss, "\n\n".join(samples.xss)]:
        shown = html(payload)
        assert set(re.findall(r"<(\w+)", shown)) <= {
            "p", "a", "div", "span", "button", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "em", "strong",
        }  # fmt: skip
        for url in re.findall(r'href="([^"]*)"', shown):
            assert not re.match(r"\s*(javascript|data|vbscript)", url, re.I)
        assert not re.search(r"<[^>]*\son\w+=[^>]*>", re.sub(r'"[^"]*"', '""', shown))


def test_markers_become_chips_where_the_citation_is_known():
    shown = html("Yes.[1] And [2][1], not [3].")
    assert re.findall(r'class="cite[^>]*>(\d)</a>', shown) == ["1", "2", "1"]
    assert "not [3]." in shown
    assert 'data-quote="quote &quot;x&quot; &lt;script&gt;"' in shown
    assert 'data-where="One › Two"' in shown
    assert 'aria-label="Source 1: A &quot;title&quot; &lt;b&gt;"' in shown


@pytest.mark.parametrize("text", ["`[1]`", "```\n[1]\n```", "[1](http://a.example)", "\\[1]"])
def test_markers_elsewhere_are_left_alone(text):
    assert 'class="cite' not in html(text)


def test_pictures_become_links_so_that_nothing_is_fetched():
    assert "<img" not in html("![a chart](http://elsewhere.example/x.png?leak=1)")
    assert ">a chart</a>" in html("![a chart](http://elsewhere.example/x.png)")


def test_links_open_elsewhere_and_tell_nothing():
    shown = html("[site](https://a.example/x?a=1&b=2)")
    assert 'target="_blank"' in shown
    assert "noopener noreferrer nofollow" in shown


def test_code_is_coloured_and_copied_and_tables_scroll():
    shown = html("```python\nimport os  # <b>\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n")
    assert '<span class="kn">import</span>' in shown
    assert "&lt;b&gt;" in shown
    assert 'data-copy="code"' in shown
    assert '<div class="wide"' in shown
    assert "text-align:right" in shown
    assert '<span class="lang"></span>' in html("```no-such-language\nx\n```")


TEXT = """# Title

First *paragraph* with a citation.[1]
Second line.

- one
- two

  still two

1. a
2. b

```python
x = 1

y = 2
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

Last.[2]
"""


@pytest.mark.parametrize("step", [1, 3, 17, 1000])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_streamed_in_pieces_ends_like_all_at_once(step, newline):
    text = TEXT.replace("\n", newline)
    blocks = Blocks()
    shown: list[str] = []
    for end in range(step, len(text) + step, step):
        first = blocks.update(text[:end], SOURCES)
        shown = shown[:first] + blocks.html[first:]  # what the page does
        assert shown == blocks.html
    whole = Blocks()
    whole.update(text, SOURCES, whole=True)
    assert shown == whole.html
    assert blocks.update(text, SOURCES, whole=True) == len(whole.html)  # nothing is drawn again


def test_finished_blocks_are_not_parsed_again():
    blocks = Blocks()
    blocks.update("One.\n\nTwo.\n\nThr", {})
    assert blocks.update("One.\n\nTwo.\n\nThree.", {}) == 2


def test_a_citation_that_arrives_late_is_drawn():
    blocks = Blocks()
    blocks.update("One.[1]\n\nTwo.", {})
    assert blocks.update("One.[1]\n\nTwo.", SOURCES, whole=True) == 0
    assert 'class="cite' in blocks.html[0]


def test_a_paragraph_that_grows_by_its_end_reads_as_it_does_whole():
    text = "Tiles of **glass** and `stone` [1] are set, with *care* and (where asked) [a link](https://example.com/x). " * 8
    text += "\n\n- one `a\n- two\n\nAnd an <b>end</b> with **two words** in it. " + "More of it. " * 40
    blocks, source = Blocks(), {1: Source(1, "T", "/documents/i/d")}
    for end in range(3, len(text) + 3, 3):
        blocks.update(text[:end], source)
    shown = [html.strip().replace(" </p>", "</p>") for html in blocks.html]
    assert shown == [html.strip() for html in render(text.split("\n"), source)[0]]


def test_what_begins_as_a_paragraph_may_still_become_something_else():
    blocks = Blocks()
    for text in ("1", "1.", "1. one", "1. one\n", "1. one\n\nTitle", "1. one\n\nTitle\n", "1. one\n\nTitle\n---\n"):
        blocks.update(text, {})
    assert [html[:4] for html in blocks.html] == ["<ol>", "<h2>"]
    for payload in ("Say ", "Say <img src=x onerror=1> " * 20):
        blocks.update(payload, {}, whole=payload == "Say ")
    assert "<img" not in "".join(blocks.html)


@pytest.mark.parametrize(
    "formula", ["$a_1*b_2*c$", "$$\\int_0^1\nx^2$$", "\\(x_1 \\cdot y_2\\)", "\\[E = mc^2\\]", "$<img src=x onerror=alert(1)>$"]
)
def test_a_formula_stays_as_it_was_written(formula):
    (drawn,), _ = render(f"It is {formula} here.".split("\n"), {})
    assert drawn == f'<p>It is <code class="formula" dir="ltr">{escape(formula)}</code> here.</p>\n'


def test_money_is_no_formula():
    (drawn,), _ = render(["From $5 to $6, or US$ 7, *each*."], {})
    assert drawn == "<p>From $5 to $6, or US$ 7, <em>each</em>.</p>\n"
