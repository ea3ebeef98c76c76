"""Open formats to text: OpenDocument, EPUB, RTF and XML. Run where `retrieval.convert` runs."""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from retrieval.convert import MAX_TEXT, SPAN, Converted, Unreadable, decoded, html, markdown
from retrieval.convert_more import table_rows, unpacks

_HTML = re.compile(r"<(?:p|br|div|ul|ol|h[1-6]|table|a|img)\b[^<>]*>", re.I)
PROSE = 8
"""Words from which what an XML element holds is a paragraph, and its name says nothing."""


def _parsed(data: bytes, what: str) -> Any:
    """An XML tree; entities and what lies elsewhere stay unread. Raises Unreadable."""
    from lxml import etree  # type: ignore[attr-defined]

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True)
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise Unreadable(f"broken {what} (line {error.lineno}: {error.msg.split(',')[0][:100]})") from error


def _name(node: Any) -> str:
    """An element's name without its namespace; "" for what is none."""
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _said(node: Any) -> str:
    return " ".join("".join(node.itertext()).split())


def _archive(data: bytes, what: str) -> zipfile.ZipFile:
    unpacks(data, what)
    return zipfile.ZipFile(io.BytesIO(data))


def _member(archive: zipfile.ZipFile, name: str, what: str) -> bytes:
    try:
        return archive.read(name)
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise Unreadable(f"broken {what}") from error


def opendocument(data: bytes) -> Converted:
    """OpenDocument 1.3 (https://docs.oasis-open.org/office/OpenDocument/v1.3): texts, spreadsheets, presentations."""
    what = "OpenDocument file"
    with _archive(data, what) as archive:
        names = set(archive.namelist())
        if "META-INF/manifest.xml" in names and b"encryption-data" in _member(archive, "META-INF/manifest.xml", what):
            raise Unreadable("OpenDocument file is protected by a password")
        body = next((node for node in _parsed(_member(archive, "content.xml", what), what) if _name(node) == "body"), None)
        meta = _parsed(_member(archive, "meta.xml", what), what) if "meta.xml" in names else ()
    title = next((_said(node) for each in meta for node in each if _name(node) == "title"), "")
    if body is None or not len(body):
        raise Unreadable(f"broken {what}")
    text = _sheets(body[0]) if _name(body[0]) == "spreadsheet" else markdown(_as_html(body[0]))
    if not text.strip():
        raise Unreadable("OpenDocument file has no text")
    return Converted(text, title)


# What was deleted, what reviewers noted and the cells below a merged one are no text of their own.
UNSAID = frozenset(("tracked-changes", "annotation", "covered-table-cell", "note-citation", "desc", "title", "forms"))
AS_HTML = {
    "p": "p",
    "list": "ul",
    "list-item": "li",
    "table": "table",
    "table-header-rows": "thead",
    "table-rows": "tbody",
    "table-row": "tr",
    "table-cell": "td",
    "line-break": "br",
    "span": "span",
    "a": "a",
    "note": "span",
}


SPANS = (("colspan", "number-columns-spanned"), ("rowspan", "number-rows-spanned"))


def _as_html(root: Any) -> Any:
    """The same text in HTML's elements. An explicit stack: nesting in a hostile file may be deeper than Python's."""
    from lxml import html as lxml_html

    made = lxml_html.Element("div")
    stack = [(child, made, False) for child in reversed(root)]
    while stack:
        node, parent, noted = stack.pop()
        name, here = _name(node), {key.rpartition("}")[2]: value for key, value in node.attrib.items()}
        if not name or name in UNSAID or name in ("s", "tab"):
            said = (" " if name in ("s", "tab") else "") + (node.tail or "")
            if len(parent):
                parent[-1].tail = (parent[-1].tail or "") + said
            else:
                parent.text = (parent.text or "") + said
            continue
        level = here.get("outline-level", "")
        tag = (
            f"h{min(int(level), 6)}"
            if name == "h" and re.fullmatch("[1-9]", level)
            else "p"
            if name == "h"
            else AS_HTML.get(name, "div")
        )
        if noted or (name == "p" and parent.tag == "li" and not len(parent)):
            tag = "span"  # a footnote stays in the paragraph that it is in, and an item's mark before its text
        inside = lxml_html.Element(tag)
        if tag == "td":
            inside.attrib.update({name: here.get(given, "1") for name, given in SPANS})
        parent.append(inside)
        inside.text, inside.tail = node.text, node.tail
        if name == "note":
            inside.text, inside.tail = " (", ")" + (node.tail or "")
        if name == "page":
            heading = lxml_html.Element("h2")
            heading.text = here.get("name", "")
            inside.append(heading)
        stack.extend((child, inside, noted or name == "note") for child in reversed(node))
    return made


def _sheets(book: Any) -> str:
    """A workbook's sheets, row by row with the names of their columns."""
    parts = []
    for sheet in book:
        if _name(sheet) != "table":
            continue
        lines = table_rows(_cells(row) for row in sheet.iter("{*}table-row"))
        named = next((value for key, value in sheet.attrib.items() if key.endswith("}name")), "")
        parts += [f"## {named}\n\n" + "\n".join(lines)] if lines else []
    return "\n\n".join(parts) + "\n" if parts else ""


def _cells(row: Any) -> list[str]:
    """A row's values. One that is repeated stands `SPAN` times at most; empty ones fill a row to the end of the sheet."""
    made: list[str] = []
    for cell in row:
        if _name(cell) in ("table-cell", "covered-table-cell"):
            value = " ".join(_said(part) for part in cell if _name(part) == "p")
            times = next((value for key, value in cell.attrib.items() if key.endswith("}number-columns-repeated")), "1")
            made += [value] * (min(int(times), SPAN) if times.isascii() and times.isdigit() else 1)
    return made


def epub(data: bytes) -> Converted:
    """A book's chapters in their order: EPUB 3.3, https://www.w3.org/TR/epub-33."""
    from lxml import html as lxml_html

    what = "EPUB book"
    with _archive(data, what) as archive:
        container = _parsed(_member(archive, "META-INF/container.xml", what), what)
        place = next((node.get("full-path") for node in container.iter("{*}rootfile")), None)
        if not place:
            raise Unreadable(f"broken {what}")
        package = _parsed(_member(archive, place, what), what)
        title = next((_said(node) for node in package.iter("{*}title")), "")
        files = {node.get("id"): node.get("href") or "" for node in package.iter("{*}item")}
        parts, size = [], 0
        for item in dict.fromkeys(node.get("idref") for node in package.iter("{*}itemref")):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(place), unquote(files.get(item, ""))))
            if path not in archive.NameToInfo:
                continue
            chapter = _member(archive, path, what)
            if chapter.strip() and b"<" not in chapter[:1000]:
                raise Unreadable("EPUB book is protected against copying")
            page = decoded(chapter).encode() or b"<p></p>"
            text = markdown(lxml_html.document_fromstring(page, parser=lxml_html.HTMLParser(encoding="utf-8")))
            size += len(text)
            if size > MAX_TEXT:
                raise Unreadable(f"holds more than {MAX_TEXT:,} characters")
            parts += [text] if text.strip() else []
    if not parts:
        raise Unreadable("EPUB book has no text")
    return Converted("\n".join(parts), title)


def rtf(data: bytes) -> Converted:
    from striprtf.striprtf import rtf_to_text

    if not data.lstrip().startswith(b"{\\rtf"):
        raise Unreadable("broken RTF (it does not begin as one)")
    said = rtf_to_text(data.decode("cp1252", "replace"), errors="replace")
    said = said.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # a character beyond 16 bits is written as two
    text = "\n\n".join(line.strip() for line in said.splitlines() if line.strip())
    if not text:
        raise Unreadable("RTF has no text")
    return Converted(text + "\n")


def xml(data: bytes) -> Converted:
    """What its elements say: prose as paragraphs below its titles, data as items that name their values, as of tables."""
    what = "XML"
    root = _parsed(data, what)
    if _name(root) == "html":
        return html(data)
    out: list[str] = []
    stack = [(root, 1)]
    while stack:
        node, depth = stack.pop()
        if not _name(node):
            continue
        children = [child for child in node if _name(child)]
        own = (node.text or "").strip() or any((child.tail or "").strip() for child in node)
        if own or not children:
            out.append(_leaf(node))
        elif len(children) <= 2 * len(set(map(_name, children))) and not any(len(c) or _prose(c) for c in children):
            said = "; ".join(filter(None, (_attributes(node), *map(_pair, children))))
            out.append(f"- {said}" if said else "")
        else:
            out.append("- " + held if (held := _attributes(node)) else "")
            if _name(children[0]) in ("title", "head") and _said(children[0]):
                out.append(f"{'#' * min(depth, 6)} {_said(children.pop(0))}")
                depth += 1
            stack.extend((child, depth) for child in reversed(children))
    text = "\n\n".join(filter(None, out))
    text = re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", text)
    if not text.strip():
        raise Unreadable("XML has no text")
    return Converted(text + "\n")


def _prose(node: Any) -> bool:
    return _said(node).count(" ") >= PROSE or bool(_HTML.search(node.text or ""))


def _attributes(node: Any) -> str:
    return ", ".join(
        f"{key.rpartition('}')[2]}: {' '.join(value.split())}" for key, value in node.attrib.items() if value.strip()
    )


def _pair(node: Any) -> str:
    """An element without elements: its name, its attributes and what it says."""
    said, held = _said(node), _attributes(node)
    return f"{_name(node)}{f' ({held})' if held else ''}: {said}" if said else f"{_name(node)} ({held})" if held else ""


def _leaf(node: Any) -> str:
    if not len(node) and _HTML.search(node.text or ""):  # as feeds hold their articles
        from lxml import html as lxml_html

        return markdown(lxml_html.fromstring(f"<div>{node.text}</div>")).strip()
    return _said(node) if _prose(node) or len(node) else f"- {pair}" if (pair := _pair(node)) else ""


CONVERTERS: dict[str, Callable[[bytes], Converted]] = {"opendocument": opendocument, "epub": epub, "rtf": rtf, "xml": xml}
