"""Document files to text, by converters that others keep: pypdfium2, trafilatura, mammoth, docutils."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_TEXT = 20_000_000
"""Characters of one document; more is a bomb or a data set."""
MAX_UNPACKED = 400_000_000
"""Bytes a docx may unpack to."""


class Unreadable(Exception):
    """A file that its converter cannot read; the message is for the file's owner."""


@dataclass(frozen=True, slots=True)
class Part:
    """Text of a file that was in another: from `start` to the next part. `pages` and `headings` count from `start`.

    `path` names the file, and before it the files that it was in.
    """

    start: int
    path: tuple[str, ...]
    media_type: str
    pages: list[int] = field(default_factory=list)
    headings: list[tuple[int, int, str]] = field(default_factory=list)


@dataclass(slots=True)
class Converted:
    """What a converter made of a file.

    `pages` holds the offset at which each page begins; `headings` (offset, level, title) where the text has no Markdown headings.
    """

    text: str
    title: str = ""
    pages: list[int] = field(default_factory=list)
    headings: list[tuple[int, int, str]] = field(default_factory=list)
    note: str = ""
    attached: list[tuple[str, str, str]] = field(default_factory=list)
    """Files in the file, not converted yet: name, media type as the file tells it, bytes in base64."""
    parts: list[Part] = field(default_factory=list)
    """What of the text stems from files in the file, in order; it comes after the file's own."""


def pdf(data: bytes) -> Converted:
    import pypdfium2 as pdfium

    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        locked = "password" in str(error).lower()
        raise Unreadable("PDF is protected by a password" if locked else "broken PDF") from error
    with document:
        parts, starts, at, empty, broken = [], [], 0, [], []
        for number in range(len(document)):
            try:
                page = document[number]
                textpage = page.get_textpage()
            except pdfium.PdfiumError:
                text = ""
                broken.append(number + 1)
            else:
                read = textpage.get_text_bounded().replace("\r\n", "\n")
                text = re.sub(r"[ \t]+\n", "\n", read).replace("\ufffe", "-").strip()
                textpage.close()
                page.close()
                if not text:
                    empty.append(number + 1)
            starts.append(at)
            parts.append(text)
            at += len(text) + 2
            if at > MAX_TEXT:
                raise Unreadable(f"holds more than {MAX_TEXT:,} characters")
        if not any(parts):
            none = "PDF has no text (scanned pages need OCR first)" if empty else "broken PDF (no page can be read)"
            raise Unreadable(none if parts else "PDF has no pages")
        notes = []
        for numbers, what in ((empty, "no text on page {} (scanned pages need OCR first)"), (broken, "page {} is damaged")):
            shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
            notes += [what.format(shown)] if numbers else []
        note = "; ".join([*notes, "the rest is indexed"]) if notes else ""
        title = (document.get_metadata_value("Title") or "").strip()
    # Word's and LaTeX's leftovers are worse than the file's name.
    if re.search(r"^(untitled|\(anonymous\)|microsoft word|\S+\.(docx?|tex|dvi|indd))", title, re.I):
        title = ""
    return Converted("\n\n".join(parts), title, starts, note=note)


def html(data: bytes) -> Converted:
    import trafilatura
    from lxml import html as lxml_html

    try:
        tree: Any = trafilatura.load_html(data)
    except Exception as error:
        raise Unreadable("broken HTML") from error
    if tree is None:
        tree = lxml_html.fromstring(decoded(data) or "<p></p>")
    title = " ".join("".join(tree.xpath("(//head/title)[1]//text()")).split())
    for block in tree.xpath("//pre[not(.//code)]"):  # which trafilatura takes for prose
        content, tail = block.text_content(), block.tail
        block.clear()
        block.tail = tail
        block.append(lxml_html.Element("code"))
        block[0].text = content
    text = trafilatura.extract(
        tree,
        output_format="markdown",
        include_comments=False,
        include_tables=True,
        include_formatting=True,
        favor_recall=True,
        prune_xpath=ANCHORS,
    )
    text = unescaped(text or "")
    if not text or not text.strip():
        text = markdown(tree)
    if not text.strip():
        parser: Any = lxml_html.HTMLParser()
        lxml_html.document_fromstring(data or b"<p></p>", parser=parser)
        deep = any("depth" in entry.message for entry in parser.error_log)
        raise Unreadable("HTML is nested too deeply, all its text lies below 256 levels" if deep else "HTML has no text")
    return Converted(text.strip() + "\n", title)


ANCHORS = ["//a[contains(@class, 'headerlink')]", "//span[contains(@class, 'mw-editsection')]"]
"""What documentation generators and wikis put beside headings for the mouse."""

VERBATIM = re.compile(r"(^ *```.*?^ *```|(?<![\\\\`])(`+)(?!`).+?(?<!`)\2(?!`))", re.S | re.M)
ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*)\\([*_`~\[\]<])")
OPENS_BLOCK = re.compile(r"\s*(?:```|~~~|\[[^\]]+\]:|<|([*_])[ \t]*(?:\1[ \t]*){2,}$)")


def unescaped(text: str) -> str:
    """Markdown with `max_retries` where it says `max\\_retries`: passages are quoted and their words counted as they are written.

    What escaping keeps from beginning a block stays as it is, and so does code.
    """

    def plain(line: str) -> str:
        made = ESCAPED.sub(lambda found: found[1][::2] + found[2], line)
        return line if OPENS_BLOCK.match(made) and line.lstrip().startswith("\\") else made

    parts, at = [], 0
    for code in VERBATIM.finditer(text):
        parts += ["\n".join(map(plain, text[at : code.start()].split("\n"))), code[0]]
        at = code.end()
    return "".join([*parts, "\n".join(map(plain, text[at:].split("\n")))])


def docx(data: bytes) -> Converted:
    import zipfile

    import mammoth
    from lxml import html as lxml_html

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(item.file_size for item in archive.infolist()) > MAX_UNPACKED:
                raise Unreadable(f"unpacks to more than {MAX_UNPACKED // 1_000_000} MB")
        result = mammoth.convert_to_html(
            io.BytesIO(data),
            convert_image=mammoth.images.img_element(lambda _: {"src": ""}),
            style_map="p[style-name='Title'] => h1:fresh",
        )
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        raise Unreadable("broken Word document") from error
    if not result.value.strip():
        raise Unreadable("Word document has no text")
    text = markdown(lxml_html.fromstring(f"<div>{result.value}</div>"))
    if not text.strip():
        raise Unreadable("Word document has no text")
    return Converted(text)


def rst(data: bytes) -> Converted:
    """The text stays as written; docutils says where its sections begin."""
    from docutils import nodes
    from docutils.core import publish_doctree

    text = decoded(data)
    settings = {
        "report_level": 5,
        "halt_level": 5,
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "_disable_config": True,
        "warning_stream": io.StringIO(),
    }
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    rows = text.splitlines()
    try:
        tree = publish_doctree(text, settings_overrides={**settings, "doctitle_xform": False})
    except Exception as error:
        raise Unreadable("broken reStructuredText") from error
    headings: list[tuple[int, int, str]] = []
    row = 0
    for section in tree.findall(nodes.section):
        level, parent = 1, section.parent
        while parent is not None:
            level += isinstance(parent, nodes.section)
            parent = parent.parent
        title = section.next_node(nodes.title)
        if title is None:
            continue
        raw = title.rawsource.strip()
        # docutils counts a title's line from its underline: the title itself is the next row that says so.
        row = next((i for i in range(row, len(rows)) if rows[i].strip() == raw), -1) + 1
        if not row:
            break
        # A line of the same marks above the title is its own.
        over = 1 < row < len(rows) and ADORNMENT.fullmatch(rows[row - 2]) and rows[row - 2].strip() == rows[row].strip()
        headings.append((lines[row - 2 if over else row - 1], level, title.astext()))
    return Converted(text, headings[0][2] if headings else "", headings=headings)


ADORNMENT = re.compile(r"([^\w\s])\1+\s*")
"""What stands below a title in reStructuredText, and perhaps above it."""


def markdown(root: Any) -> str:
    """An HTML tree as plain Markdown: headings, paragraphs, lists, tables and code, in reading order."""
    out: list[str] = []
    line: list[str] = []

    def flush(prefix: str = "") -> None:
        text = " ".join("".join(line).split())
        line.clear()
        if text:
            out.append(prefix + text)

    def walk(root: Any) -> None:
        # An explicit stack: nesting in a hostile file may be deeper than Python's.
        stack: list[tuple[Any, bool, str]] = [(root, False, "")]
        while stack:
            node, leaving, prefix = stack.pop()
            tag = node.tag if isinstance(node.tag, str) else ""
            if leaving:
                if tag in BLOCKS:
                    flush(prefix)
                line.append(node.tail or "")
                continue
            if not tag or tag in {"script", "style", "head", "nav", "noscript", "template"}:
                line.append(node.tail or "")
                continue
            if tag == "table":
                flush()
                own = node.xpath("./tr|./thead/tr|./tbody/tr|./tfoot/tr")  # not those of a table in one of its cells
                rows = [row for row in _grid(own) if any(row)]
                if rows:
                    width = max(map(len, rows))
                    table = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in rows]
                    out.append("\n".join([table[0], "|" + " --- |" * width, *table[1:]]))
                line.append(node.tail or "")
                continue
            if tag == "pre":
                flush()
                out.append("```\n" + node.text_content().strip("\n") + "\n```")
                line.append(node.tail or "")
                continue
            if tag in BLOCKS:
                flush()
            if tag == "br":
                line.append(" ")
            mine = "#" * int(tag[1]) + " " if re.fullmatch(r"h[1-6]", tag) else "- " if tag == "li" else ""
            line.append(node.text or "")
            stack.append((node, True, mine))
            stack.extend((child, False, "") for child in reversed(node))

    walk(root)
    flush()
    text = "\n\n".join(out)
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", text) + "\n" if text else ""


BLOCKS = frozenset(
    """address article aside blockquote body dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr html
    li main nav ol p section table tbody td tfoot th thead tr ul""".split()  # noqa: SIM905
)


SPAN = 100
"""Columns or rows that one cell is taken to be merged over, at most."""


def _grid(rows: Any) -> list[list[str]]:
    """The cells of a table's rows, each in its column: one that is merged over others stands in all of them."""
    grid: list[list[str]] = []
    above: dict[int, tuple[int, str]] = {}  # by column: for how many rows more a cell goes on there
    for row in rows:
        made: list[str] = []
        below: dict[int, tuple[int, str]] = {}
        cells = iter(row.xpath("./td|./th"))
        while True:
            if len(made) in above:
                left, text = above.pop(len(made))
                across = 1
            elif (cell := next(cells, None)) is not None:
                left, text, across = _span(cell, "rowspan"), _cell(cell), _span(cell, "colspan")
            else:
                break
            for _ in range(across):
                if left > 1:
                    below[len(made)] = left - 1, text
                made.append(text)
        above = below
        grid.append(made)
    return grid


def _span(cell: Any, name: str) -> int:
    given = (cell.get(name) or "").strip()
    return min(max(int(given), 1), SPAN) if given.isascii() and given.isdigit() else 1


def _cell(cell: Any) -> str:
    """A cell's text in one line; its paragraphs, and the cells of a table in it, stay apart."""
    from lxml.etree import iterwalk  # type: ignore[attr-defined]

    parts: list[str] = []
    for event, node in iterwalk(cell, events=("start", "end", "comment", "pi")):
        if node is not cell and (node.tag in BLOCKS or node.tag == "br"):
            parts.append(" ")
        if event == "start":
            parts.append(node.text or "")
        elif node is not cell:
            parts.append(node.tail or "")
    return " ".join("".join(parts).split()).replace("|", "\\|")


MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


STRAY = re.compile("[\udc80-\udcff]+")


def decoded(data: bytes) -> str:
    """Bytes as text: byte order mark, UTF-8, else the likeliest encoding, else Latin-1. Line ends become `\\n`."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return clean(data.decode(encoding, "replace"))
    try:
        return clean(data.decode("utf-8"))
    except UnicodeDecodeError:
        pass
    mixed = data.decode("utf-8", "surrogateescape")
    stray = sum("\udc80" <= c <= "\udcff" for c in mixed)
    if stray <= sum(c > "\x7f" for c in mixed) - stray:  # UTF-8 with pieces of another encoding, as of a log
        return clean(STRAY.sub(lambda found: found[0].encode("utf-8", "surrogateescape").decode("cp1252", "replace"), mixed))
    try:
        from charset_normalizer import from_bytes

        best = from_bytes(data[:200_000]).best()
        if best is not None:
            return clean(data.decode(best.encoding))
    except Exception:  # an optional guesser must not lose the file
        pass
    return clean(data.decode("latin-1"))


def clean(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


CONVERTERS: dict[str, Callable[[bytes], Converted]] = {"pdf": pdf, "html": html, "docx": docx, "rst": rst}
