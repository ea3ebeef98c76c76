"""What is attached to a mail is read as any file is, under the same limits; a citation says where it stands."""

from __future__ import annotations

import io
import struct
import time
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import docx
import pytest
from reportlab.pdfgen.canvas import Canvas

from retrieval import Indexes, attached
from retrieval.convert import Converted, Unreadable
from retrieval.convert_mail import CONVERTERS
from retrieval.load import Loaded, load, walk
from retrieval.worker import Workers


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(1)
    yield made
    made.close()


def mail(subject: str, text: str = "See below.") -> EmailMessage:
    made = EmailMessage()
    made["Subject"] = subject
    made.set_content(text)
    return made


def attach(to: EmailMessage, data: bytes, name: str, kind: str = "application/octet-stream") -> None:
    to.add_attachment(data, *kind.split("/"), filename=name)


def pdf(*pages: str) -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out)
    for text in pages:
        canvas.drawString(72, 700, text)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def word(text: str, heading: str) -> bytes:
    document = docx.Document()
    document.add_heading(heading, 1)
    document.add_paragraph(text)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def read(path: Path, data: bytes, workers: Workers) -> Loaded:
    path.write_bytes(data)
    (found,) = walk(path)
    made = load(found, workers)
    assert made is not None
    return made


def test_attachments_are_passages_that_say_where_they_stand(indexes: Indexes, tmp_path: Path) -> None:
    first = mail("The kiln", "It leaks.")
    attach(first, pdf("Nothing.", "Seal the crack with fireclay."), "seal.pdf")
    letter = mail("Fwd: The kiln")
    letter.add_attachment(first)
    attach(letter, word("Borosilicate resists thermal shock.", "Glass"), "Über Glas.docx")
    attach(letter, "# Not a heading of the mail\n\nuse = tongs\n".encode("utf-16"), "tools.toml")
    attach(letter, b"\x89PNG", "photo.png", "image/png")
    root = tmp_path / "docs"
    root.mkdir()
    (root / "letter.eml").write_bytes(letter.as_bytes())
    indexes.add("docs", root)
    assert indexes.sync("docs").skipped == ()
    for question, heading, page in (
        ("seal the crack", ("The kiln", "seal.pdf"), 2),
        ("It leaks", ("The kiln", "The kiln"), None),
        ("thermal shock", ("Über Glas.docx", "Glass"), None),
        ("tongs", ("tools.toml",), None),
    ):
        found = indexes.search("docs", question, k=1)[0]
        assert (found.heading, found.page, found.title) == (heading, page, "Fwd: The kiln")
        assert indexes.document("docs", found.document_id).text[found.start : found.end] == found.text
    assert "Attachments: The kiln, Über Glas.docx, tools.toml, photo.png" in indexes.search("docs", "see below", k=1)[0].text


def test_what_cannot_be_read_of_a_mail_is_named_and_the_rest_stays(tmp_path: Path, workers: Workers) -> None:
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w", force_zip64=True) as file,
    ):
        for _ in range(450):
            file.write(b" " * 1_000_000)
    letter = mail("Bombs")
    for name, data in (
        ("bomb.docx", bomb.getvalue()),
        ("broken.pdf", b"%PDF-1.7 nothing"),
        ("old.xls", b"\xd0\xcf\x11\xe0"),
        ("more.zip", b"PK"),
        ("empty.pdf", b""),
        ("sound.pdf", pdf("Litharge is lead oxide.")),
    ):
        attach(letter, data, name)
    made = read(tmp_path / "bombs.eml", letter.as_bytes(), workers)
    assert "Litharge is lead oxide." in made.text
    for told in (
        "bomb.docx: unpacks to more than",
        "broken.pdf: broken PDF",
        "old.xls: no converter for .xls files, of an older",
        "more.zip: no converter for .zip files, an archive",
        "empty.pdf: empty; the rest is indexed",
    ):
        assert told in made.note
    assert [part.path for part in made.parts] == [("sound.pdf",)]


def test_text_in_a_mail_is_read_in_its_encoding(tmp_path: Path, workers: Workers) -> None:
    letter = mail("The kiln")
    letter.add_attachment("Seal it with clay, für immer.", filename="nöte.txt", charset="iso-8859-1")
    letter.add_attachment("<p>Or with <b>putty</b>.</p>", subtype="html", filename="more.html")
    letter.add_attachment("<img src=x>", subtype="html")  # as programs put it between pictures
    made = read(tmp_path / "text.eml", letter.as_bytes(), workers)
    assert made.note == ""
    assert [(part.path, part.media_type) for part in made.parts] == [(("nöte.txt",), "text/plain"), (("more.html",), "text/html")]
    assert "für immer." in made.text
    assert "Or with **putty**." in made.text


def test_mails_in_mails_end_and_many_attachments_too(tmp_path: Path, workers: Workers) -> None:
    deep = mail("innermost")
    for number in range(12):
        outer = mail(f"outer {number}")
        outer.add_attachment(deep)
        deep = outer
    made = read(tmp_path / "deep.eml", deep.as_bytes(), workers)
    assert [len(part.path) for part in made.parts] == [1, 2, 3, 4, 5]
    assert "the limit is mails in mails 5 deep" in made.note
    many = mail("many")
    for number in range(attached.MOST + 20):
        attach(many, f"tile {number}".encode(), f"{number}.md")
    made = read(tmp_path / "many.eml", many.as_bytes(), workers)
    assert len(made.parts) == attached.MOST
    assert "and 15 more" in made.note


def test_all_attachments_share_the_time_of_one_file() -> None:
    def slow(media: str, data: bytes, seconds: float) -> Converted:
        given.append(seconds)
        time.sleep(min(seconds, 0.06))
        raise Unreadable("took too long")

    given: list[float] = []
    letter = Converted("mail", attached=[(f"{n}.pdf", "", "") for n in range(50)])
    made = attached.joined(letter, lambda name, kind: kind, slow, 0.1)
    assert 1 <= len(given) <= 3
    assert all(0 < each <= 0.1 for each in given)
    assert made.text == "mail"
    assert "49.pdf" not in made.note
    assert "and 45 more" in made.note


def test_an_attachment_that_ends_its_converter_leaves_the_mail(tmp_path: Path) -> None:
    workers = Workers(1, memory=400_000_000)
    try:
        letter = mail("Kept")
        attach(letter, b"[" + b"[[]]," * 2_000_000 + b"1]", "large.json")
        attach(letter, b"after it", "after.md")
        made = read(tmp_path / "kept.eml", letter.as_bytes(), workers)
    finally:
        workers.close()
    assert "See below." in made.text
    assert "after it" in made.text
    assert "large.json: needs more than 400 MB" in made.note or "large.json: its converter" in made.note


def ole(tree: dict[str, Any]) -> bytes:
    """A compound file ([MS-CFB]) of streams and folders, all of whose streams fill whole sectors of their own."""
    entries: list[tuple[str, int, int, int, bytes]] = []  # name, type, first child, next sibling, stream

    def add(level: dict[str, Any]) -> int:
        after = -1
        for name in sorted(level, key=lambda each: (len(each), each.upper()), reverse=True):
            inside = level[name]
            child = add(inside) if isinstance(inside, dict) else -1
            entries.append(
                (name, 1 if isinstance(inside, dict) else 2, child, after, b"" if isinstance(inside, dict) else inside)
            )
            after = len(entries) - 1 + 1  # after the root
        return after

    top = add(tree)
    sectors: list[bytes] = []
    fat: list[int] = []
    where: list[tuple[int, int]] = []

    def put(data: bytes) -> int:
        count = -(-len(data) // 512)
        first = len(sectors)
        sectors.extend(data[at : at + 512].ljust(512, b"\0") for at in range(0, len(data), 512))
        fat.extend([*range(first + 1, first + count), 0xFFFFFFFE] if count else [])
        return first if count else 0xFFFFFFFE

    small, minis = b"", list[int]()
    for _, kind, _, _, data in entries:
        if kind == 2 and 0 < len(data) < 4096:
            count = -(-len(data) // 64)
            where.append((len(minis), len(data)))
            minis += [*range(len(minis) + 1, len(minis) + count), 0xFFFFFFFE]
            small += data.ljust(count * 64, b"\0")
        else:
            where.append((put(data), len(data)))
    mini_at = put(small)
    table = struct.pack(f"<{len(minis)}I", *minis)
    table_at = put(table.ljust(-(-len(table) // 512) * 512, b"\xff"))

    def entry(name: str, kind: int, child: int, after: int, at: int, size: int) -> bytes:
        written = (name + "\0").encode("utf-16-le")
        none = lambda number: 0xFFFFFFFF if number < 0 else number  # noqa: E731
        head = written.ljust(64, b"\0") + struct.pack("<HBBIII", len(written), kind, 1, 0xFFFFFFFF, none(after), none(child))
        return head + bytes(16 + 4 + 16) + struct.pack("<IQ", at, size)

    listed = entry("Root Entry", 5, top, -1, mini_at, len(small))
    for (name, kind, child, after, _), (at, size) in zip(entries, where, strict=True):
        listed += entry(name, kind, child, after, at, size)
    directory = put(listed.ljust(-(-len(listed) // 512) * 512, b"\0"))
    fat_at = len(sectors)
    tables = -(-(len(fat) + 1) // 128)
    while -(-(len(fat) + tables) // 128) > tables:
        tables += 1
    fat += [0xFFFFFFFD] * tables
    sectors.append(struct.pack(f"<{len(fat)}I", *fat).ljust(tables * 512, b"\xff"))
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + struct.pack("<HHHHH", 0x3E, 3, 0xFFFE, 9, 6) + bytes(6)
    counts = struct.pack("<IIIIIIIII", 0, tables, directory, 0, 4096, table_at, -(-len(table) // 512), 0xFFFFFFFE, 0)
    difat = struct.pack("<109I", *range(fat_at, fat_at + tables), *[0xFFFFFFFF] * (109 - tables))
    return head + counts + difat + b"".join(sectors)


def outlook(subject: str, body: str, **files: Any) -> dict[str, Any]:
    text = lambda said: said.encode("utf-16-le")  # noqa: E731
    tree: dict[str, Any] = {
        "__properties_version1.0": bytes(32) + struct.pack("<IIQ", 0x00390040, 6, 133_785_000_000_000_000),
        "__substg1.0_0037001F": text(subject),
        "__substg1.0_1000001F": text(body),
        "__substg1.0_0C1A001F": text("Grüne, Ann"),
        "__substg1.0_5D01001E": b"ann@example.org",
    }
    for number, (name, held) in enumerate(files.items()):
        inner = {"__substg1.0_3701000D": held} if isinstance(held, dict) else {"__substg1.0_37010102": held}
        tree[f"__attach_version1.0_#{number:08X}"] = {"__substg1.0_3707001F": text(name.replace("__", ".")), **inner}
    return tree


def test_outlook_mail_is_read_as_mail_is(tmp_path: Path, workers: Workers) -> None:
    inner = outlook("The kiln", "It leaks.", seal__pdf=pdf("Seal it with fireclay."))
    letter = outlook("Fwd: The kiln", "See below.", kiln__msg=inner, notes__md=b"# Notes\n\nUse tongs.\n")
    made = read(tmp_path / "letter.msg", ole(letter), workers)
    assert made.note == ""
    assert made.text.startswith("# Fwd: The kiln\n\nFrom: Grüne, Ann <ann@example.org>\nDate: Thu, 12 Dec 2024 18:00:00 +0000")
    assert [part.path for part in made.parts] == [("kiln.msg",), ("kiln.msg > seal.pdf",), ("notes.md",)]
    for wanted in ("See below.", "It leaks.", "Seal it with fireclay.", "Use tongs."):
        assert wanted in made.text
    for broken in (b"", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"x" * 2000, ole({"other": b"x"}), ole(letter)[:3000]):
        with pytest.raises(Unreadable, match="broken Outlook mail"):
            CONVERTERS["outlook"](broken)
