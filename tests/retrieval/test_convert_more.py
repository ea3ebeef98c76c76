"""Slides, workbooks, tables, JSON, mail, notebooks and code become passages; what is broken is named."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path

import docx
import openpyxl
import pytest
from pptx import Presentation
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from retrieval import Indexes
from retrieval.convert import CONVERTERS, Unreadable
from retrieval.convert_more import CONVERTERS as MORE
from retrieval.watch import changes


def slides(path: Path) -> None:
    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Kiln schedule"
    slide.placeholders[1].text = "Anneal at 515 degrees\nCool for nine hours"
    slide.notes_slide.notes_text_frame.text = "Never open the lid."
    table = slide.shapes.add_table(2, 2, Inches(1), Inches(1), Inches(2), Inches(1)).table
    for (row, column), text in {(0, 0): "Stage", (0, 1): "Hours", (1, 0): "soak", (1, 1): "3"}.items():
        table.cell(row, column).text = text
    deck.save(str(path))


def test_every_kind_becomes_passages(indexes: Indexes, tmp_path: Path) -> None:
    root = tmp_path / "docs"
    root.mkdir()
    slides(root / "kiln.pptx")
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Prices"
    for row in (["Colour", "Euro"], ["cobalt", 12.5], ["gold", 80]):
        sheet.append(row)
    book.save(root / "prices.xlsx")
    (root / "staff.csv").write_text("name;room\nAda;12\nGrace;14\n")
    (root / "config.json").write_text(json.dumps({"furnace": {"fuel": "propane"}}))
    (root / "log.jsonl").write_text('{"event": "spill", "place": "hall B"}\n{"event": "fire drill"}\n')
    letter = EmailMessage()
    letter["Subject"], letter["From"], letter["To"] = "Missing crates", "ann@example.org", "bob@example.org"
    letter.set_content("Two crates of tesserae did not arrive.")
    letter.add_attachment(b"x", maintype="image", subtype="png", filename="photo.png")
    (root / "letter.eml").write_bytes(letter.as_bytes())
    cells = [{"cell_type": "markdown", "source": ["# Melt curve"]}, {"cell_type": "code", "source": "viscosity = 10 ** 7.6"}]
    (root / "melt.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}))
    (root / "grind.py").write_text("def polish_edges(tile):\n    return tile.smooth\n")
    (root / "bad.xlsx").write_bytes(b"PK\x03\x04 not really")
    (root / "bad.ipynb").write_text("{}")
    (root / "old.pptx").write_text("plain")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in range(5):
            archive.writestr(f"a{part}", b"0" * 100_000_000)
    (root / "bomb.xlsx").write_bytes(bomb.getvalue())
    indexes.add("docs", root)
    report = indexes.sync("docs")
    assert {s.source: s.reason for s in report.skipped} == {
        "bad.xlsx": "broken Office document",
        "bad.ipynb": "broken notebook",
        "old.pptx": "broken PowerPoint document (it does not begin as one)",
        "bomb.xlsx": "unpacks to more than 400 MB",
    }
    for query, source, words in (
        ("cool for nine hours", "kiln.pptx", "Never open the lid"),
        ("soak stage hours", "kiln.pptx", "Stage: soak; Hours: 3"),
        ("cobalt price", "prices.xlsx", "Colour: cobalt; Euro: 12.5"),
        ("Grace room", "staff.csv", "name: Grace; room: 14"),
        ("furnace fuel", "config.json", "propane"),
        ("spill", "log.jsonl", "event: spill; place: hall B"),
        ("tesserae did not arrive", "letter.eml", "photo.png"),
        ("viscosity", "melt.ipynb", "10 ** 7.6"),
        ("polish_edges", "grind.py", "def polish_edges"),
    ):
        best = indexes.search("docs", query)[0]
        assert (best.source, words in indexes.document("docs", best.document_id).text) == (source, True), query
        assert indexes.document("docs", best.document_id).text[best.start : best.end] == best.text


def test_a_saved_file_is_soon_searchable(indexes: Indexes, folder: Path) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    indexes.search("docs", "warm up")
    stop = threading.Event()

    def follow() -> None:
        for _ in changes(folder, stop=stop):
            indexes.sync("docs")

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        began = saved = time.monotonic() - 2
        while not any("Uranium" in p.text for p in indexes.search("docs", "uranium glow", k=1)):
            assert time.monotonic() - began < 60
            if time.monotonic() - saved > 1:  # once more where it was saved before it was followed
                (folder / "glass.md").write_text("# Glass\n\nUranium makes the glass glow green.\n")
                saved = time.monotonic()
            time.sleep(0.02)
        assert not any("Cobalt" in p.text for p in indexes.search("docs", "cobalt blue", k=10))
    finally:
        stop.set()
        thread.join()
    print(f"searchable after {time.monotonic() - saved:.2f} s")


def test_what_programs_write_in_odd_ways_is_read_too() -> None:
    document = docx.Document()
    table = document.add_table(1, 2)
    table.cell(0, 0).text = "cobalt\nblue"
    inner = table.cell(0, 1).add_table(1, 2)
    inner.cell(0, 0).text, inner.cell(0, 1).text = "tin", "oxide"
    out = io.BytesIO()
    document.save(out)
    text = CONVERTERS["docx"](out.getvalue()).text
    assert "| cobalt blue | tin oxide |" in text
    assert text.count("oxide") == 1
    assert MORE["table"](b"Month;Note\n;ok\n").text == "- Month\n- Note: ok\n"  # the name of a column without values
    assert MORE["table"](b"only a header\n").text == "- only a header\n"
    assert "1" + "0" * 5000 in MORE["json"](b'{"n": 1' + b"0" * 5000 + b"}").text
    assert MORE["json"]('{"a": "x\u2028y"}\n{"a": "z"}'.encode()).text == "- a: x y\n- a: z\n"
    with pytest.raises(Unreadable, match="line 2"):
        MORE["json"](b'{"a": 1}\nnot json\n')
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": "melt(1)"}, {"cell_type": "code"}]}], "nbformat": 3}
    assert MORE["notebook"](json.dumps(old).encode()).text == "```python\nmelt(1)\n```\n"


def test_csv_is_read_to_its_end() -> None:
    plain = "id,note\n" + "".join(f"{i},no quotes in the first rows\n" for i in range(1000))
    said = MORE["table"]((plain + '9,"Zed, the ""great"", king"\n').encode()).text
    assert said.endswith('- id: 9; note: Zed, the "great", king\n')
    assert len(MORE["table"](f'id,note\n1,"{"word " * 40_000}"\n'.encode()).text) > 190_000, "a cell may hold a document"
    assert MORE["table"](b"sep=;\r\nName;Ort\r\nAnn;Ulm\r\n").text == "- Name: Ann; Ort: Ulm\n"


def test_a_workbook_says_what_a_spreadsheet_shows() -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(["Day", "Sum", "At", "Count"])
    sheet.append([datetime(2024, 3, 5), 0.1 + 0.2, datetime(2024, 3, 5, 14, 30), 12.0])
    book.save(made := io.BytesIO())
    assert MORE["xlsx"](made.getvalue()).text.endswith("- Day: 2024-03-05; Sum: 0.3; At: 2024-03-05 14:30:00; Count: 12\n")


def test_a_notebook_that_names_no_kernel_is_read() -> None:
    cells = [{"cell_type": "code", "source": "x <- 1"}]
    made = {"cells": cells, "metadata": {"kernelspec": None, "language_info": {"name": "R"}}}
    assert MORE["notebook"](json.dumps(made).encode()).text == "```R\nx <- 1\n```\n"


def test_cells_stay_in_their_columns() -> None:
    document = docx.Document()
    table = document.add_table(3, 3)
    for at, text in enumerate(("Kind", "Colour", "Price", "tile", "blue", "2", "", "red", "3")):
        table.cell(at // 3, at % 3).text = text
    table.cell(1, 0).merge(table.cell(2, 0))
    out = io.BytesIO()
    document.save(out)
    assert "| tile | blue | 2 |\n| tile | red | 3 |" in CONVERTERS["docx"](out.getvalue()).text
    book = openpyxl.Workbook()
    for sheet in (book.worksheets[0], book.create_sheet("Far")):
        sheet.append(["Prices of May"])
        sheet.append([])
        sheet.append(["kind", "price"])
        sheet.append(["tile", 2])
    book["Far"]["XFD1048576"] = "lost"
    out = io.BytesIO()
    book.save(out)
    near, far = MORE["xlsx"](out.getvalue()).text.split("## Far\n\n")
    assert near == "## Sheet\n\n- Prices of May\n- kind: tile; price: 2\n\n"
    assert far == "- Prices of May\n- kind: tile; price: 2\n- lost\n"
    book["Sheet"]["C4"] = "=B4*2"
    out = io.BytesIO()
    book.save(out)
    assert "formulas without stored values" in MORE["xlsx"](out.getvalue()).note


def test_a_chart_is_the_table_it_draws() -> None:
    deck = Presentation()
    drawn = CategoryChartData()
    drawn.categories = ["May", "June"]
    drawn.add_series("Tiles sold", (12, 7))
    deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_chart(
        XL_CHART_TYPE.COLUMN_CLUSTERED, Inches(1), Inches(1), Inches(4), Inches(3), drawn
    )
    out = io.BytesIO()
    deck.save(out)
    assert "- Category: May; Tiles sold: 12.0\n- Category: June; Tiles sold: 7.0" in MORE["pptx"](out.getvalue()).text
