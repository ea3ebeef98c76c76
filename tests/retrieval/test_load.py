"""Real files of each kind become text; bad ones are named with the reason."""

from __future__ import annotations

import io
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import docx
import pytest
from reportlab.pdfgen.canvas import Canvas

from retrieval import SourceError, convert, worker
from retrieval.convert import Unreadable
from retrieval.load import MAX_BYTES, Found, Loaded, Skip, load, walk
from retrieval.worker import Workers


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(1)
    yield made
    made.close()


def read(path: Path, workers: Workers) -> Loaded:
    (found,) = walk(path)
    assert found.reason is None, found.reason
    loaded = load(found, workers)
    assert loaded is not None
    return loaded


def refusal(path: Path, workers: Workers) -> str:
    (found,) = walk(path)
    if found.reason is not None:
        return found.reason
    with pytest.raises(Skip) as caught:
        load(found, workers)
    return caught.value.reason


def test_pdf_has_pages_and_title(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "handbook.pdf"
    canvas = Canvas(str(path))
    canvas.setTitle("The Handbook")
    for line in ("Tiles are cut by hand.", "The kiln must be cold."):
        canvas.drawString(72, 700, line)
        canvas.showPage()
    canvas.save()
    loaded = read(path, workers)
    assert loaded.title == "The Handbook"
    assert [loaded.text[start : start + 5] for start in loaded.pages] == ["Tiles", "The k"]


def test_pdf_without_text_is_called_scanned(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "scan.pdf"
    canvas = Canvas(str(path))
    canvas.rect(10, 10, 100, 100, fill=1)
    canvas.save()
    assert "scanned" in refusal(path, workers)
    canvas = Canvas(str(path))
    canvas.drawString(72, 700, "A page of text.")
    canvas.showPage()
    canvas.rect(10, 10, 100, 100, fill=1)
    canvas.save()
    mixed = read(path, workers)
    assert "page 2" in mixed.note
    assert "A page of text." in mixed.text


@pytest.mark.parametrize("data", [b"not a pdf at all", b"%PDF-1.7\n" + b"garbage " * 200])
def test_broken_pdf(tmp_path: Path, workers: Workers, data: bytes) -> None:
    path = tmp_path / "broken.pdf"
    path.write_bytes(data)
    assert "broken PDF" in refusal(path, workers)


def test_docx_keeps_headings_lists_and_tables(tmp_path: Path, workers: Workers) -> None:
    document = docx.Document()
    document.add_heading("Travel policy", 1)
    document.add_paragraph("Book by train where it takes less than six hours.")
    document.add_heading("Hotels", 2)
    document.add_paragraph("Breakfast is included", style="List Bullet")
    document.add_paragraph("Keep the bill", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip((c for row in table.rows for c in row.cells), ("City", "Limit", "Paris", "180 | night"), strict=True):
        cell.text = text
    path = tmp_path / "policy.docx"
    document.save(str(path))
    loaded = read(path, workers)
    assert loaded.title == "Travel policy"
    assert "# Travel policy" in loaded.text
    assert "## Hotels\n\n- Breakfast is included\n- Keep the bill" in loaded.text
    assert "| City | Limit |\n| --- | --- |\n| Paris | 180 \\| night |" in loaded.text


def test_a_word_document_is_called_by_its_title(tmp_path: Path, workers: Workers) -> None:
    document = docx.Document()
    document.add_heading("The Laying of Tiles", 0)
    document.add_heading("Scope", 1)
    document.add_paragraph("Floors and walls.")
    document.save(str(tmp_path / "v3 final.docx"))
    loaded = read(tmp_path / "v3 final.docx", workers)
    assert loaded.title == "The Laying of Tiles"
    assert "# Scope" in loaded.text


def test_broken_docx_and_a_bomb(tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.docx"
    path.write_bytes(b"PK\x03\x04 no zip")
    assert "broken Word document" in refusal(path, workers)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\x00" * 2_000_000)
    monkeypatch.setattr(convert, "MAX_UNPACKED", 1_000_000)
    with pytest.raises(Unreadable, match="unpacks to more"):
        convert.docx(bomb.getvalue())


def test_html_is_its_root_document(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "page.html"
    body = "".join(f"<p>Paragraph {i} explains how the furnace is heated and for how long it holds.</p>" for i in range(6))
    path.write_text(
        "<html><head><title>Furnace</title><script>alert(1)</script></head>"
        "<body><nav><a href='/'>Home</a><a href='/x'>Shop</a></nav>"
        f"<article><h1>Furnace</h1>{body}<h2>Cooling</h2><p>Let it cool slowly overnight, never in a draught.</p></article>"
        f"<footer>Cookies and imprint</footer></body></html>"
    )
    loaded = read(path, workers)
    assert loaded.title == "Furnace"
    assert "## Cooling" in loaded.text
    assert "Paragraph 3 explains" in loaded.text
    assert "alert" not in loaded.text
    assert "Shop" not in loaded.text


def test_a_tiny_or_deeply_nested_page_is_read_or_refused(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "tiny.htm"
    path.write_text("<h1>Note</h1><p>Kiln 4 is broken.</p>")
    assert "Kiln 4 is broken." in read(path, workers).text
    path.write_text("<div>" * 20_000 + "deep" + "</div>" * 20_000)
    with pytest.raises(Skip, match="nested too deeply"):
        read(path, workers)
    path.write_text("<h1>Note</h1><p>Still alive.</p>")
    assert "Still alive." in read(path, workers).text


def test_html_is_quoted_as_it_is_written() -> None:
    """Escaped as Markdown, `max_retries` is neither what the page says nor a word that a search finds."""
    told = "<p>" + "How often a call is tried again, and when it is given up, is set here. " * 6 + "</p>"
    page = f"""<body><h1>The config_file<a class="headerlink" href="#c">¶</a></h1>{told}
      <p>Set max_retries, **kwargs or 2*3 in C:\\_x; <code>a\\_b</code> is code.</p><pre>x_y = 1\n  z_y = [2]</pre>
      <p># no heading</p><p>```</p><p>[x]: y</p>{told}</body>"""
    text = convert.html(page.encode()).text
    assert "# The config_file\n" in text
    assert "Set max_retries, **kwargs or 2*3 in C:\\_x; `a\\_b` is code." in text
    assert "```\nx_y = 1\n  z_y = [2]\n```" in text
    for block in ("# no heading", "```\n\nx", "[x]: y"):
        assert f"\n{block}" not in text, "what would begin a block stays escaped"


def test_a_damaged_page_of_a_pdf_is_named_and_the_rest_is_read(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "three.pdf"
    canvas = Canvas(str(path), pageCompression=0)
    for line in ("Tiles are cut by hand.", "The kiln is cold.", "Grout dries in a day."):
        canvas.drawString(72, 700, line)
        canvas.showPage()
    canvas.save()
    data = path.read_bytes()
    second = [m.start() for m in re.finditer(rb"/Type /Page\b(?!s)", data)][1]
    path.write_bytes(data[:second] + b"/Type /Pale" + data[second + 11 :])
    loaded = read(path, workers)
    assert "Tiles" in loaded.text
    assert "Grout" in loaded.text
    assert loaded.note == "page 2 is damaged; the rest is indexed"


def test_rst_sections_come_from_docutils(tmp_path: Path, workers: Workers) -> None:
    text = (
        "=====\nGuide\n=====\n\nIntro.\n\nInstall\n=======\n\nRun it with :doc:`x`.\n\n"
        ".. note::\n\n   Mind *this*.\n\nLinux\n-----\n\nUse apt.\n"
    )
    path = tmp_path / "guide.rst"
    path.write_text(text)
    loaded = read(path, workers)
    assert loaded.text == text
    assert loaded.headings[0][0] == 0, "the line above a title is its own"
    assert [(level, title) for _, level, title in loaded.headings] == [(1, "Guide"), (2, "Install"), (3, "Linux")]
    assert loaded.title == "Guide"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Größe 東京".encode(), "Größe 東京"),
        (b"\xef\xbb\xbfmarked", "marked"),
        ("Größe".encode("utf-16"), "Größe"),
        ("Über die Größe der Öfen schweigt er natürlich.".encode("latin-1"), "Über die Größe der Öfen schweigt er natürlich."),
        ("Größe ".encode() + "Öfen".encode("cp1252"), "Größe Öfen"),
        (b"one\r\ntwo\rthree", "one\ntwo\nthree"),
        (b"a" * 9000 + b"\x00b", "a" * 9000 + "\ufffdb"),
    ],
)
def test_encodings(tmp_path: Path, workers: Workers, data: bytes, text: str) -> None:
    path = tmp_path / "note.txt"
    path.write_bytes(data)
    assert read(path, workers).text == text


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.md", b"", "empty"),
        ("blank.md", b" \n\t\n", "has no text"),
        ("binary.txt", bytes(range(256)), "binary"),
        ("locked.docx", b"\xd0\xcf\x11\xe0" + b"\0" * 99, "protected by a password"),
        ("archive.rar", b"Rar!", "no converter for .rar files"),
    ],
)
def test_refused_with_a_reason(tmp_path: Path, workers: Workers, name: str, data: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert reason in refusal(path, workers)


def test_a_huge_file_is_not_opened(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "huge.md"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    assert "too large (200 MB" in refusal(path, workers)
    with pytest.raises(Skip, match="too large"):  # it grew after the folder was listed
        load(Found("huge.md", path, MAX_BYTES, 0), workers)


def test_an_unreadable_file_is_named(workers: Workers) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "secret.md"
        path.write_text("# Secret")
        path.chmod(0)
        root = os.geteuid() == 0  # root may read everything, so for a moment somebody else asks
        if root:
            os.seteuid(65534)
        try:
            assert "permission denied" in refusal(path, workers)
        finally:
            if root:
                os.seteuid(0)


def test_a_file_that_vanished_or_failed_to_open(tmp_path: Path, workers: Workers) -> None:
    with pytest.raises(Skip, match="deleted while"):
        load(Found("gone.md", tmp_path / "gone.md", 10, 0), workers)


def test_folder_walk(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub" / ".git").mkdir(parents=True)
    (root / "b.md").write_text("b")
    (root / "sub" / "a.md").write_text("a")
    (root / "sub" / ".git" / "hidden.md").write_text("x")
    (root / "logo.png").write_bytes(b"png")
    (tmp_path / "outside.md").write_text("outside")
    (root / "leaves.md").symlink_to(tmp_path / "outside.md")
    (root / "up").symlink_to(tmp_path)
    (root / "sub" / "loop").symlink_to(root)
    (root / "twice.md").symlink_to(root / "b.md")
    (root / "dangling.md").symlink_to(root / "nowhere.md")
    os.mkfifo(root / "pipe.md")
    found = {f.source: f.reason for f in walk(root)}
    assert found == {
        "b.md": None,
        "sub/a.md": None,
        "leaves.md": "symbolic link that leaves the folder",
        "up": "symbolic link that leaves the folder",
        "dangling.md": "symbolic link that leads nowhere",
        "pipe.md": "not a regular file",
    }
    with pytest.raises(SourceError, match="does not exist"):
        list(walk(root / "missing"))


def test_a_saved_page_is_one_document_without_its_assets(tmp_path: Path) -> None:
    (tmp_path / "page_files").mkdir()
    (tmp_path / "notes_files").mkdir()
    (tmp_path / "page.html").write_text("<p>A page.</p>")
    (tmp_path / "page_files" / "frame.html").write_text("<p>An advertisement.</p>")
    (tmp_path / "notes_files" / "kept.md").write_text("no page is called notes")
    assert [found.source for found in walk(tmp_path)] == ["notes_files/kept.md", "page.html"]


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_a_page_saved_in_one_file_is_its_root_document(tmp_path: Path, workers: Workers, charset: str) -> None:
    whole = MIMEMultipart("related", type="text/html")
    said = "Fugenmörtel füllt die Lücken zwischen den Kacheln und härtet zwei Tage."
    meta = f'<meta http-equiv="Content-Type" content="text/html; charset={charset}"><title>Mörtel</title>'
    page = f"<html><head>{meta}</head><body><p>{said}</p></body></html>"
    for text, kind in ((page, "html"), ("body {color: red}", "css"), ("<p>An advertisement.</p>", "html")):
        whole.attach(MIMEText(text, kind, charset))
    path = tmp_path / "page.mhtml"
    path.write_bytes(whole.as_bytes())
    found = load(next(walk(path)), workers)
    assert found is not None
    assert (said in found.text, found.title, "advertisement" in found.text) == (True, "Mörtel", False)
    path.write_bytes(b"no page at all")
    assert "holds no HTML" in refusal(path, workers)


def test_names_that_are_not_utf8_are_reported(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("x")
    (found,) = walk(tmp_path)
    assert found.reason == "its name is not valid UTF-8"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "took more than"),
        ("x = bytearray(3_000_000_000)", "needs more than"),
        ("import os; os._exit(7)", "crashed"),
        ("raise ValueError('boom')", "converter failed (ValueError)"),
        ("print('noise on stdout'); f(None)", "is nested too deeply"),
    ],
)
def test_a_converter_that_misbehaves_is_ended(monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    """The worker runs a converter that hangs, eats memory or dies; the next file gets a sound one."""
    original = worker.subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        hostile = f"def f(data):\n    if data == b'ok': return convert.Converted('fine')\n    {code}\n    return f(data)\n"
        head, _, call = command[2].rpartition("; ")
        start = head.rpartition("; ")[0]
        known = f"{hostile}converting.CONVERTERS['x'] = f"
        command = [*command[:2], f"{start}\nfrom retrieval import convert, converting\n{known}\nconverting.{call}"]
        return original(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(worker.subprocess, "Popen", popen)
    workers = Workers(1, seconds=1.5 if "while" in code else 60)
    try:
        with pytest.raises(Unreadable, match=reason.replace("(", r"\(").replace(")", r"\)")):
            workers.convert("x", b"bad")
        workers.seconds = 60
        assert workers.convert("x", b"ok").text == "fine"
    finally:
        workers.close()
