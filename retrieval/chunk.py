"""Documents to chunks: along headings, with lists, code and tables whole where they fit and sentences never cut.

A chunk is a span of its document: `text[chunk.start:chunk.end] == chunk.text`, asserted here and relied upon by every citation.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from retrieval.convert import Part
from retrieval.errors import BadRequest
from retrieval.load import FRONT_MATTER, PLAIN, plain

VERSION = "2"
"""Raised when the same text may now give other chunks."""
TARGET = 200
"""Word pieces of a chunk's text; with the headings above it, it stays within the 256 that the encoder sees."""
CONTEXT = 48
"""Word pieces of title and headings that are embedded in front of a chunk."""

LONGEST = 4000
"""Characters of a chunk, at most: a picture in base64 is one word piece, whatever its length."""

STRATEGIES = ("structure", "sentences")
SMALLEST = 8
"""Word pieces of a chunk that may be asked for, at least."""

Starts = Callable[[str], np.ndarray]
"""Character offset of each word piece of a text: `Encoder.token_starts`."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """How the documents of an index are cut.

    Parameters
    ----------
    strategy: `structure` keeps paragraphs, lists, code and tables whole where they fit; `sentences` fills every chunk with as
        many sentences as fit.
    tokens: word pieces of a chunk, at most; `SMALLEST` to `TARGET`.
    overlap: word pieces of a chunk's end that the next one of its section repeats, in whole pieces; at most half of `tokens`.

    Raises
    ------
    BadRequest: one of them is something else.
    """

    strategy: str = STRATEGIES[0]
    tokens: int = TARGET
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise BadRequest(f"a chunking strategy is {' or '.join(STRATEGIES)}, not {self.strategy!r}")
        if not SMALLEST <= self.tokens <= TARGET:
            raise BadRequest(f"chunks take {SMALLEST} to {TARGET} tokens, which is what the encoder reads, not {self.tokens}")
        if not 0 <= self.overlap <= self.tokens // 2:
            raise BadRequest(f"chunks of {self.tokens} tokens overlap by 0 to {self.tokens // 2}, not {self.overlap}")

    @property
    def version(self) -> str:
        """What tells documents that were cut so from others."""
        return VERSION if self == Chunking() else f"{VERSION}-{self.strategy}-{self.tokens}-{self.overlap}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of a document. `page` is 1-based, for paged formats."""

    text: str
    start: int
    end: int
    heading: tuple[str, ...]
    page: int | None = None


@dataclass(frozen=True, slots=True)
class _Block:
    """Part of a document that reads as one: `kind` is text, list, code or table."""

    start: int
    end: int
    kind: str


def chunk(
    text: str,
    starts: Starts,
    *,
    media_type: str = "text/markdown",
    pages: Sequence[int] = (),
    headings: Sequence[tuple[int, int, str]] = (),
    parts: Sequence[Part] = (),
    plan: Chunking = Chunking(),
) -> list[Chunk]:
    """Cuts a document.

    Parameters
    ----------
    starts: gives the offset of each token; sizes are counted in them.
    media_type: Markdown, HTML and docx text is read as Markdown; other text by blank lines.
    pages: offset at which each page begins; a chunk never spans two.
    headings: (offset, level, title), where the format knows them and Markdown does not apply.
    parts: texts of files that were in the file, each cut as what it is; their names are headings.
    plan: how; a single word of more than its tokens is a chunk all the same, and cut where it is `LONGEST`.
    """
    ends = [part.start for part in parts] + [len(text)]
    chunks = _chunk(text[: ends[0]], starts, media_type, pages, headings, plan)
    for part, end in zip(parts, ends[1:], strict=True):
        inside = _chunk(text[part.start : end], starts, part.media_type, part.pages, part.headings, plan)
        chunks += [
            replace(c, start=c.start + part.start, end=c.end + part.start, heading=(*part.path, *c.heading)) for c in inside
        ]
    assert all(text[made.start : made.end] == made.text for made in chunks)
    return chunks


def _chunk(
    text: str,
    starts: Starts,
    media_type: str,
    pages: Sequence[int],
    headings: Sequence[tuple[int, int, str]],
    plan: Chunking,
) -> list[Chunk]:
    offsets = starts(text)

    def size(start: int, end: int) -> int:
        pieces = int(np.searchsorted(offsets, end) - np.searchsorted(offsets, start))
        return pieces if end - start <= LONGEST else max(pieces, plan.tokens + 1)

    sections = _plain(text, pages, headings) if media_type in PLAIN else _markdown(text)
    chunks: list[Chunk] = []
    for path, blocks in sections:
        for start, end in _pack(text, blocks, size, plan):
            page = bisect.bisect_right(pages, start) if pages else None
            chunks.append(Chunk(text[start:end], start, end, path, page))
    return chunks


def _pack(text: str, blocks: list[_Block], size: Callable[[int, int], int], plan: Chunking) -> Iterator[tuple[int, int]]:
    """Joins neighbouring pieces of a section while they fit: its blocks, cut where they do not fit, or their sentences."""
    pieces: list[tuple[int, int]] = []
    for block in blocks:
        start, end = _strip(text, block.start, block.end)
        cuts = _sentences(text, start, end) if plan.strategy == "sentences" and block.kind == "text" else []
        for a, b in pairwise([start, *cuts, end]):
            a, b = _strip(text, a, b)
            if a < b:
                pieces.extend(_split(text, a, b, block.kind, size, plan.tokens))
    first = 0
    while first < len(pieces):
        last = first
        while last + 1 < len(pieces) and size(pieces[first][0], pieces[last + 1][1]) <= plan.tokens:
            last += 1
        yield pieces[first][0], pieces[last][1]
        again = last + 1
        while plan.overlap and again < len(pieces) and again - 1 > first:
            repeated = size(pieces[again - 1][0], pieces[last][1])
            if repeated > plan.overlap or size(pieces[again - 1][0], pieces[last + 1][1]) > plan.tokens:
                break
            again -= 1
        first = again


def _split(text: str, start: int, end: int, kind: str, size: Callable[[int, int], int], target: int) -> Iterator[tuple[int, int]]:
    """A block in parts of at most `target` tokens: by the largest unit that fits (item or line, sentence, line, word)."""
    if size(start, end) <= target:
        yield start, end
        return
    steps: list[Callable[[str, int, int], list[int]]] = {
        "list": [_items, _sentences, _lines, _words],
        "code": [_groups, _lines, _words],
        "table": [_lines, _words],
    }.get(kind, [_sentences, _lines, _words])
    yield from _split_by(text, start, end, steps, size, target)


def _split_by(
    text: str,
    start: int,
    end: int,
    steps: list[Callable[[str, int, int], list[int]]],
    size: Callable[[int, int], int],
    target: int,
) -> Iterator[tuple[int, int]]:
    if not steps:  # one word, longer than a chunk
        for cut in range(start, end, LONGEST):
            yield cut, min(cut + LONGEST, end)
        return
    cuts = [start, *steps[0](text, start, end), end]
    at: tuple[int, int] | None = None
    for a, b in pairwise(cuts):
        a, b = _strip(text, a, b)
        if a >= b:
            continue
        if at is not None and size(at[0], b) <= target:
            at = (at[0], b)
            continue
        if at is not None:
            yield at
            at = None
        if size(a, b) <= target:
            at = (a, b)
        else:
            yield from _split_by(text, a, b, steps[1:], size, target)
    if at is not None:
        yield at


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without surrounding blank lines and trailing space; a first line keeps its indent unless it is alone."""
    while start < end and text[end - 1].isspace():
        end -= 1
    while start < end and text[start].isspace():
        start += 1
    return start, end


ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|cf|vs|al|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Fig|Eq|No|Vol|pp|approx|resp|Inc|Ltd|Co)|\b[A-Z])\.$"
)
SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]*_`]*\s+(?=[\"'“‘(\[*_`]*[^\W_a-z])|(?<=[。！？])|\n[ \t]*\n")


def _sentences(text: str, start: int, end: int) -> list[int]:
    cuts = []
    for match in SENTENCE.finditer(text, start, end):
        if match[0].count("\n") < 2 and ABBREVIATION.search(text, max(start, match.start() - 12), match.start()):
            continue
        cuts.append(match.end())
    return cuts


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences of `text`."""
    cuts = [0, *_sentences(text, 0, len(text)), len(text)]
    spans = (_strip(text, a, b) for a, b in pairwise(cuts))
    return [(a, b) for a, b in spans if a < b]


def _matches(pattern: str) -> Callable[[str, int, int], list[int]]:
    compiled = re.compile(pattern, re.M)
    return lambda text, start, end: [m.end() for m in compiled.finditer(text, start, end)]


_items = _matches(r"\n(?=(?:[-*+•]|\d+[.)]) )")
_groups = _matches(r"\n[ \t]*\n(?=\S)")
_lines = _matches(r"\n")
_words = _matches(r"\s+")


KINDS = {"fence": "code", "code_block": "code", "table_open": "table", "bullet_list_open": "list", "ordered_list_open": "list"}


@lru_cache(maxsize=1)
def _parser():
    from markdown_it import MarkdownIt

    # Blocks only: what stands inside a line is no matter here, and costs most of the time.
    return MarkdownIt("commonmark").enable("table").disable(["inline", "text_join"])


def _markdown(text: str) -> Iterator[tuple[tuple[str, ...], list[_Block]]]:
    """Sections of a Markdown text: headings above, and the blocks below them."""
    front = FRONT_MATTER.match(text)
    base = front.end() if front else 0
    body = text[base:]
    # Only "\n" ends a line for the parser, as in CommonMark; str.splitlines would know others.
    lines = [base]
    lines.extend(base + m.end() for m in re.finditer("\n", body))
    lines.append(len(text))

    def offset(line: int) -> int:
        return lines[min(line, len(lines) - 1)]

    tokens = _parser().parse(body)
    path: list[tuple[int, str]] = []
    blocks: list[_Block] = []
    waiting: _Block | None = None  # a heading that nothing followed yet
    seen_body = False
    for i, token in enumerate(tokens):
        if token.level or not token.map or token.nesting < 0:
            continue
        start, end = offset(token.map[0]), offset(token.map[1])
        if token.type == "heading_open":
            if blocks:
                yield tuple(t for _, t in path), blocks
                blocks = []
            level = int(token.tag[1])
            if waiting is not None and path and path[-1][0] >= level and not seen_body:
                yield tuple(t for _, t in path), [waiting]
            path = [(n, t) for n, t in path if n < level]
            path.append((level, plain(tokens[i + 1].content)))
            waiting, seen_body = _Block(start, end, "text"), False
            continue
        if token.type != "hr":
            blocks.append(_Block(start, end, KINDS.get(token.type, "text")))
            seen_body = True
    if blocks:
        yield tuple(t for _, t in path), blocks
    elif waiting is not None and not seen_body:
        yield tuple(t for _, t in path), [waiting]


PARAGRAPH = re.compile(r"\n[ \t]*\n+(?=\S)")


def _plain(
    text: str, pages: Sequence[int], headings: Sequence[tuple[int, int, str]]
) -> Iterator[tuple[tuple[str, ...], list[_Block]]]:
    """Sections of a text without Markdown: cut at known headings and pages, in paragraphs."""
    titles = {start: (level, title) for start, level, title in headings}
    cuts = sorted({0, *pages, *titles, len(text)})
    path: list[tuple[int, str]] = []
    for start, end in pairwise(cuts):
        if start in titles:
            level, title = titles[start]
            path = [(n, t) for n, t in path if n < level]
            path.append((level, title))
        paragraphs = [start, *(m.end() for m in PARAGRAPH.finditer(text, start, end)), end]
        blocks = [_Block(a, b, "text") for a, b in pairwise(paragraphs)]
        if blocks:
            yield tuple(t for _, t in path), blocks


def context(title: str, heading: Sequence[str]) -> str:
    """What is put in front of a chunk for embedding and searched with it: title and headings, outermost first."""
    parts = [title, *heading]
    return " > ".join(part for i, part in enumerate(parts) if part and part not in parts[:i])


def embedded_text(context: str, text: str, starts: Starts) -> str:
    """What the encoder sees of a chunk: title and headings, then its text.

    Of a long context the innermost headings stay, so that the text is never pushed out of the encoder's sight.
    """
    if not context:
        return text
    if len(context) > CONTEXT:
        offsets = starts(context)
        if len(offsets) > CONTEXT:
            context = context[int(offsets[-CONTEXT]) :]
    return f"{context}\n{text}"
