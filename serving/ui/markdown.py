"""Markdown of an answer as safe HTML, block by block.

Raw HTML is text, images are links (nothing is fetched from elsewhere), and only http, https, mailto and local links are
kept: what a model or a document says can never run. `[n]` becomes a chip where citation `n` is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from serving.ui.turn import Source

_MARKER = re.compile(r"\[(\d{1,3})\](?![(:])")
_MATHS = re.compile(
    r"\$\$(?=\S).{1,2000}?\$\$|\$(?=[^\s$\d])[^$\n]{0,200}?(?<![\s\\])\$(?![\w$])|\\\(.{1,2000}?\\\)|\\\[.{1,2000}?\\\]", re.S
)
"""A formula in TeX: `$…$`, `$$…$$`, `\\(…\\)` or `\\[…\\]`; an amount of money is none."""
_HIGHLIGHT_LIMIT = 20_000
"""Characters of code that are coloured; longer code stays plain."""


def chip(source: Source) -> str:
    """The numbered tile of a citation; its card (title, quote) is drawn by the page from the data attributes."""
    where = " › ".join((*source.heading,)) or source.source
    return (
        f'<a class="cite tile-{source.number % 5}" href="{escape(source.url)}" target="_blank" rel="noopener noreferrer" '
        f'data-title="{escape(source.title)}" data-where="{escape(where)}" data-quote="{escape(source.quote)}" '
        f'aria-label="Source {source.number}: {escape(source.title)}">{source.number}</a>'
    )


def _marker(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] != "[" or not (match := _MARKER.match(state.src, state.pos)):
        return False
    if int(match[1]) not in state.env.get("sources", {}):
        return False
    if not silent:
        state.push("cite", "", 0).meta = {"number": int(match[1])}
    state.pos = match.end()
    return True


def _formula(state: StateInline, silent: bool) -> bool:
    """TeX stays as it was written: its stars, underscores and backslashes are no Markdown."""
    if state.src[state.pos] not in "$\\" or not (match := _MATHS.match(state.src, state.pos)):
        return False
    if not silent:
        state.push("formula", "code", 0).content = match[0]
    state.pos = match.end()
    return True


def _link_ok(url: str) -> bool:
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return False
    return parts.scheme.lower() in {"http", "https", "mailto"} or (not parts.scheme and not parts.netloc)


def _code(text: str, language: str) -> str:
    shown = escape(text)
    if language and len(text) < _HIGHLIGHT_LIMIT:
        try:
            shown = highlight(text, get_lexer_by_name(language, stripnl=False), HtmlFormatter(nowrap=True))
        except ClassNotFound:
            language = ""
    label = f'<span class="lang">{escape(language)}</span>' if language else '<span class="lang"></span>'
    return (
        f'<div class="code"><div class="code-bar">{label}<button type="button" class="copy" data-copy="code">Copy</button></div>'
        f'<pre tabindex="0"><code>{shown}</code></pre></div>'
    )


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "typographer": False}).enable(["table", "strikethrough"])
    parser.validateLink = _link_ok  # type: ignore[method-assign]
    parser.inline.ruler.before("link", "cite", _marker)
    parser.inline.ruler.before("escape", "formula", _formula)

    def cite(renderer: Any, tokens: list[Token], i: int, options: Any, env: dict[str, Any]) -> str:
        return chip(env["sources"][tokens[i].meta["number"]])

    def formula(renderer: Any, tokens: list[Token], i: int, options: Any, env: dict[str, Any]) -> str:
        return f'<code class="formula" dir="ltr">{escape(tokens[i].content)}</code>'

    def image(renderer: Any, tokens: list[Token], i: int, options: Any, env: dict[str, Any]) -> str:
        url, text = str(tokens[i].attrGet("src") or ""), tokens[i].content or "image"
        return f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer nofollow">{escape(text)}</a>'

    def link(renderer: Any, tokens: list[Token], i: int, options: Any, env: dict[str, Any]) -> str:
        tokens[i].attrSet("target", "_blank")
        tokens[i].attrSet("rel", "noopener noreferrer nofollow")
        return renderer.renderToken(tokens, i, options, env)

    def fence(renderer: Any, tokens: list[Token], i: int, options: Any, env: dict[str, Any]) -> str:
        return _code(tokens[i].content, (tokens[i].info.split() or [""])[0])

    def table(opening: bool) -> Any:
        def draw(renderer: Any, tokens: list[Token], i: int, options: Any, env: dict[str, Any]) -> str:
            return '<div class="wide" tabindex="0" role="region" aria-label="Table"><table>' if opening else "</table></div>"

        return draw

    for name, rule in {
        "cite": cite, "formula": formula, "image": image, "link_open": link, "fence": fence, "code_block": fence,
        "table_open": table(True), "table_close": table(False),
    }.items():  # fmt: skip
        parser.add_render_rule(name, rule)
    return parser


_PROSE = re.compile(r"""^ {0,3}(?:[^\W\d_]|\*\*\w|\[\d+\]|["“„(‘'])""")
"""A line that stays part of a paragraph, whatever comes behind: no list, heading, fence or rule begins so."""
_LONG, _OPEN = 240, 60
"""Characters of a paragraph above which its beginning is settled, and those at its end that stay open."""


@dataclass(slots=True)
class Blocks:
    """A growing answer as top-level blocks of HTML. While text streams only the last block is parsed again, and of a
    paragraph only its end; what a settled beginning and a later end would have said together is drawn with the whole.

    `update` returns the first block that changed; everything from there is new.
    """

    html: list[str] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    """Line at which each block starts."""
    _text: str = ""
    _known: int = 0
    """Sources there were."""
    _settled: str = ""
    """HTML of the beginning of the last paragraph."""
    _tail: str | None = None
    """Markdown of its end; None where the last block is no paragraph, or a new block may begin."""

    def update(self, text: str, sources: Mapping[int, Source], *, whole: bool = False) -> int:
        more = text[len(self._text) :]
        open_ = self._tail is not None and self._known == len(sources) and text.startswith(self._text)
        before, self._text, self._known = self._tail, text, len(sources)
        if open_ and before is not None and not whole and "\n" not in more and "\r" not in more:
            self._grow(before + more, sources)
            return len(self.html) - 1
        keep = 0 if whole or not self.html else len(self.html) - 1
        first_line = self._starts[keep] if keep else 0
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        html, starts = render(lines[first_line:], sources)
        if whole:
            keep = next(
                (i for i, (old, new) in enumerate(zip(self.html, html, strict=False)) if old != new),
                min(len(self.html), len(html)),
            )
            self.html, self._starts = html, starts
            return keep
        self.html[keep:] = html
        self._starts[keep:] = [first_line + start for start in starts]
        plain = bool(html) and html[-1].startswith("<p>") and _PROSE.match(lines[-1]) is not None
        self._settled, self._tail = "", "\n".join(lines[self._starts[-1] :]) if plain else None
        return keep

    def _grow(self, tail: str, sources: Mapping[int, Source]) -> None:
        """Draw the last paragraph with an end that has grown."""
        parser, env = _parser(), {"sources": sources}
        cut = tail.rfind(" ", 0, -_OPEN) + 1 if len(tail) > _LONG else 0
        if cut and _closed(tail[:cut]):
            self._settled += parser.renderInline(tail[:cut], env)
            tail = tail[cut:]
        self._tail = tail
        self.html[-1] = f"<p>{self._settled}{parser.renderInline(tail, env)}</p>\n"


def _closed(text: str) -> bool:
    """Whether nothing that was begun in it seems to go on behind it."""
    even = all(text.count(mark) % 2 == 0 for mark in "*_~`$")
    return even and text.count("[") == text.count("]") and text.count("(") == text.count(")") and not {"<", "\\"} & set(text)


def render(lines: list[str], sources: Mapping[int, Source]) -> tuple[list[str], list[int]]:
    """HTML of each top-level block and the line at which it starts."""
    parser, env = _parser(), {"sources": sources}
    html: list[str] = []
    starts: list[int] = []
    group: list[Token] = []
    depth = 0
    for token in parser.parse("\n".join(lines), env):
        if depth == 0 and not group:
            starts.append((token.map or [0])[0])
        group.append(token)
        depth += token.nesting
        if depth == 0:
            html.append(parser.renderer.render(group, parser.options, env))
            group = []
    return html, starts
