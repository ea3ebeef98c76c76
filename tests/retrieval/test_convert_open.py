"""OpenDocument, EPUB, RTF, XML, feeds and texts with an outline become passages; what is broken or hostile is named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from retrieval import Indexes
from retrieval.convert import Unreadable
from retrieval.convert_open import CONVERTERS
from retrieval.load import walk
from retrieval.outline import outline

NAMESPACES = " ".join(
    f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "text", "table", "drawing", "meta")
)


def zipped(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return out.getvalue()


def opendocument(body: str, **more: str) -> bytes:
    content = f"<office:document-content {NAMESPACES}><office:body>{body}</office:body></office:document-content>"
    return zipped(**{"content.xml": content}, **more)


LETTER = (
    "<office:text><text:tracked-changes><text:p>struck out</text:p></text:tracked-changes>"
    '<text:h text:outline-level="2">The kiln</text:h><text:p>It<text:s text:c="2"/>leaks<text:note>'
    "<text:note-citation>1</text:note-citation><text:note-body><text:p>Since May.</text:p></text:note-body></text:note>"
    ", badly.</text:p>"
    "<text:list><text:list-item><text:p>clay</text:p></text:list-item>"
    "<text:list-item><text:p>putty</text:p></text:list-item></text:list>"
    "<table:table><table:table-row><table:table-cell><text:p>Kind</text:p></table:table-cell>"
    "<table:table-cell><text:p>Euro</text:p></table:table-cell></table:table-row>"
    '<table:table-row><table:table-cell table:number-columns-spanned="2"><text:p>both</text:p></table:table-cell>'
    "<table:covered-table-cell/></table:table-row></table:table></office:text>"
)
SHEET = (
    '<office:spreadsheet><table:table table:name="Prices"><table:table-row>'
    "<table:table-cell><text:p>kind</text:p></table:table-cell>"
    '<table:table-cell><text:p>euro</text:p></table:table-cell><table:table-cell table:number-columns-repeated="16000000"/>'
    '</table:table-row><table:table-row table:number-rows-repeated="1000000">'
    "<table:table-cell><text:p>tile</text:p></table:table-cell>"
    "<table:table-cell><text:p>2</text:p></table:table-cell></table:table-row></table:table></office:spreadsheet>"
)


def test_open_documents_keep_headings_lists_tables_and_notes() -> None:
    meta = (
        f"<office:document-meta {NAMESPACES}><office:meta><meta:title>Repairs</meta:title></office:meta></office:document-meta>"
    )
    made = CONVERTERS["opendocument"](opendocument(LETTER, **{"meta.xml": meta}))
    assert made.title == "Repairs"
    assert made.text.split("\n\n") == [
        "## The kiln",
        "It leaks (Since May.), badly.",
        "- clay\n- putty",
        "| Kind | Euro |\n| --- | --- |\n| both | both |\n",
    ]
    assert CONVERTERS["opendocument"](opendocument(SHEET)).text == "## Prices\n\n- kind: tile; euro: 2\n"
    page = '<drawing:page drawing:name="Schedule"><text:p>Cool slowly</text:p></drawing:page>'
    slide = f"<office:presentation>{page}</office:presentation>"
    assert CONVERTERS["opendocument"](opendocument(slide)).text == "## Schedule\n\nCool slowly\n"


CONTAINER = '<container xmlns="c"><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'
PACKAGE = """<package xmlns="p" xmlns:dc="d"><metadata><dc:title>On glass</dc:title></metadata>
<manifest><item id="b" href="two%20.xhtml"/><item id="a" href="one.xhtml"/><item id="gone" href="../../etc/passwd"/></manifest>
<spine><itemref idref="a"/><itemref idref="b"/><itemref idref="a"/><itemref idref="gone"/></spine></package>"""


def test_a_book_is_its_chapters_in_their_order() -> None:
    page = "<html><head><title>x</title></head><body><h1>{}</h1><p>Glass is {}.</p></body></html>"
    book = {"META-INF__container.xml": CONTAINER, "OPS__book.opf": PACKAGE}
    pages = {"OPS__one.xhtml": page.format("One", "sänd"), "OPS__two .xhtml": page.format("Two", "ash")}
    made = CONVERTERS["epub"](zipped(**book, **pages))
    assert (made.title, made.text) == ("On glass", "# One\n\nGlass is sänd.\n\n# Two\n\nGlass is ash.\n")
    with pytest.raises(Unreadable, match="protected"):
        CONVERTERS["epub"](zipped(**book, **{"OPS__one.xhtml": "\x8f" * 50}))


def test_rtf_is_its_paragraphs() -> None:
    written = rb"{\rtf1\ansi{\fonttbl\f0\fswiss Helvetica;}\f0 This is {\b bold} caf\'e9.\par Glass \u-10179?\u-8704? too.\par}"
    assert CONVERTERS["rtf"](written).text == "This is bold café.\n\nGlass \U0001f600 too.\n"
    with pytest.raises(Unreadable, match="begin"):
        CONVERTERS["rtf"](b"{no rtf")


def test_xml_is_prose_or_named_values() -> None:
    xml = CONVERTERS["xml"]
    rows = b"<shop><item id='1'><kind>tile</kind><price unit='EUR'>2</price></item><item><kind>grout</kind><none/></item></shop>"
    assert xml(rows).text == "- id: 1; kind: tile; price (unit: EUR): 2\n- kind: grout\n"
    book = b"""<book><title>The kiln</title><chapter><title>Firing</title>
    <para>Anneal the <em>glass</em> slowly at 515 degrees, nine hours or more.</para></chapter></book>"""
    assert xml(book).text == "# The kiln\n\n## Firing\n\nAnneal the glass slowly at 515 degrees, nine hours or more.\n"
    page = escape("<p>It <b>glows</b>.</p><p>Green.</p>")
    feed = f"<rss><item><title>New</title><encoded>{page}</encoded><x><y/></x></item></rss>".encode()
    assert xml(feed).text == "# New\n\nIt glows.\n\nGreen.\n"
    assert "Main." in xml(b"<html xmlns='http://www.w3.org/1999/xhtml'><body><p>Main.</p></body></html>").text


def test_hostile_xml_reads_no_file_and_does_not_grow(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the-secret")
    outside = f'<!DOCTYPE a [<!ENTITY x SYSTEM "{secret.as_uri()}">]><a>hi &x; there</a>'
    assert "the-secret" not in CONVERTERS["xml"](outside.encode()).text
    assert (
        "the-secret"
        not in CONVERTERS["opendocument"](
            zipped(**{"content.xml": outside.replace("<a>", "<a><body><b>").replace("</a>", "</b></body></a>")})
        ).text
    )
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(12))
    try:
        text = CONVERTERS["xml"](f"<!DOCTYPE a [{laughs}]><a>&l11; much</a>".encode()).text
    except Unreadable as error:  # by newer parsers
        text = str(error)
    assert len(text) < 100
    with pytest.raises(Unreadable, match="depth"):
        CONVERTERS["xml"](b"<a>" * 5000)
    with pytest.raises(Unreadable, match="line 2"):
        CONVERTERS["xml"](b"<a>\n<b></a>")
    locked = opendocument("<office:text/>", **{"META-INF__manifest.xml": "<m><encryption-data/></m>"})
    with pytest.raises(Unreadable, match="password"):
        CONVERTERS["opendocument"](locked)
    for kind in ("opendocument", "epub"):
        with pytest.raises(Unreadable, match="broken"):
            CONVERTERS[kind](zipped(other="x"))
        with pytest.raises(Unreadable, match="broken"):
            CONVERTERS[kind](b"PK no archive")


def test_lines_that_are_headings_are_known() -> None:
    assert outline("= Kiln\n\n== Firing\ntext = 5\n", ".adoc") == [(0, 1, "Kiln"), (8, 2, "Firing")]
    assert outline("* Kiln\ntext\n** Firing\n", ".org") == [(0, 1, "Kiln"), (12, 2, "Firing")]
    assert outline("a = 1\n[server]\nb = [1]\n[[user]]\n", ".toml") == [(6, 1, "server"), (23, 1, "user")]
    assert outline(r"\section{Kiln} x \subsection*{no}" + "\n  \\subsection*{Firing}\n", ".tex") == [
        (0, 3, "Kiln"),
        (34, 4, "Firing"),
    ]
    assert outline("[server]", ".md") == []


def test_these_kinds_are_found(indexes: Indexes, tmp_path: Path) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    (root / "letter.odt").write_bytes(opendocument(LETTER))
    (root / "compose.yaml").write_text("services:\n  furnace:\n    image: borosilicate\n# a comment is no heading\n")
    (root / "app.toml").write_text('[limits]\nfurnaces = 3\n\n[owner]\nname = "Ann"\n')
    (root / "note.rtf").write_bytes(rb"{\rtf1 Litharge is lead oxide.\par}")
    (root / "pom.xml").write_text("<p><d><groupId>org.glass</groupId><version>4.1</version></d></p>")
    (root / "old.doc").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "docs.zip").write_bytes(zipped(a="b"))
    indexes.add("docs", root)
    report = indexes.sync("docs")
    assert {s.source: s.reason for s in report.skipped} == {
        "docs.zip": "no converter for .zip files, an archive: unpack it into the folder",
        "old.doc": "no converter for .doc files, of Word 97 to 2003: save it as .docx",
    }
    for question, source in (
        ("Where does it leak badly?", "letter.odt"),
        ("borosilicate image", "compose.yaml"),
        ("lead oxide", "note.rtf"),
        ("org.glass", "pom.xml"),
    ):
        assert indexes.search("docs", question, k=1)[0].source == source
    found = indexes.search("docs", "furnaces limits", k=1)[0]
    assert (found.source, found.heading) == ("app.toml", ("limits",))
    assert not [each for each in walk(root) if each.reason and each.source not in ("old.doc", "docs.zip")]
