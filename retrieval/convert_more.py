"""More document files to text: slides, workbooks, tables, JSON, notebooks. Run where `retrieval.convert` runs."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, time
from typing import Any

from retrieval.convert import MAX_TEXT, MAX_UNPACKED, Converted, Unreadable, decoded

MAX_CELLS = 2_000_000


def unpacks(data: bytes, what: str = "Office document") -> None:
    """Raises Unreadable for an archive that is broken, or a bomb."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except zipfile.BadZipFile as error:
        raise Unreadable(f"broken {what}") from error
    if size > MAX_UNPACKED:
        raise Unreadable(f"unpacks to more than {MAX_UNPACKED // 1_000_000} MB")


def table_rows(rows: Iterable[Sequence[Any]]) -> list[str]:
    """Each row as an item that names its columns, so that a passage cut from a table needs no header."""
    header: list[str] = []
    titles: list[str] = []
    used: set[str] = set()
    lines: list[str] = []
    cells = size = 0
    for row in rows:
        values = [" ".join(str(value).split()) if value is not None else "" for value in row]
        cells += len(values)
        if not any(values):
            if sum(map(bool, header)) == 1 and not lines:  # what stands alone above a gap is no name of a column
                titles.append("- " + next(filter(None, header)))
                header = []
            continue
        if not header:
            header = values
            continue
        named = [(name, value) for name, value in zip([*header, *[""] * len(values)], values, strict=False) if value]
        used.update(name for name, _ in named)
        lines.append("- " + "; ".join(f"{name}: {value}" if name else value for name, value in named))
        size += len(lines[-1])
        if cells > MAX_CELLS or size > MAX_TEXT:
            raise Unreadable(f"is a data set (more than {MAX_CELLS:,} cells): declare it as a table instead")
    unused = [name for name in header if name and name not in used]
    return [*titles, *(["- " + "; ".join(unused)] if unused else []), *lines]


def pptx(data: bytes) -> Converted:
    from pptx import Presentation

    unpacks(data)
    try:
        deck: Any = Presentation(io.BytesIO(data))
    except Exception as error:
        raise Unreadable("broken PowerPoint document") from error
    parts: list[str] = []
    for number, slide in enumerate(deck.slides, 1):
        title = slide.shapes.title.text_frame.text.strip() if slide.shapes.title is not None else ""
        body: list[str] = []
        stack = list(reversed(slide.shapes))
        while stack:
            shape = stack.pop()
            if shape.shape_type == 6:  # a group
                stack.extend(reversed(shape.shapes))
            elif getattr(shape, "has_table", False) and shape.has_table:
                body.append("\n".join(table_rows([cell.text for cell in row.cells] for row in shape.table.rows)))
            elif getattr(shape, "has_chart", False) and shape.has_chart:
                body.extend(_chart(shape.chart))
            elif shape.has_text_frame and shape != slide.shapes.title:
                body.extend("- " + " ".join(p.text.split()) for p in shape.text_frame.paragraphs if p.text.strip())
        if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None and notes.text.strip():
            body.append("\n" + notes.text.strip())
        if title or body:
            parts.append(f"## {' '.join(title.split()) or f'Slide {number}'}\n\n" + "\n".join(body))
    if not parts:
        raise Unreadable("PowerPoint document has no text")
    return Converted("\n\n".join(parts) + "\n", (deck.core_properties.title or "").strip())


def _chart(chart: Any) -> list[str]:
    """A chart as the table that it draws."""
    lines = []
    for plot in chart.plots:
        series = list(plot.series)
        names = [" ".join(str(each).split()) for each in plot.categories]
        lines += table_rows(
            [["Category", *(one.name for one in series)], *zip(names, *(one.values for one in series), strict=False)]
        )
    return lines


def xlsx(data: bytes) -> Converted:
    import openpyxl

    unpacks(data)
    try:
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        parts = []
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # rows as long as they are: one stray cell far out made each of a million as wide
            lines = table_rows([_as_seen(value) for value in row] for row in sheet.iter_rows(values_only=True))
            if lines:
                parts.append(f"## {sheet.title}\n\n" + "\n".join(lines))
        book.close()
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        raise Unreadable("broken Excel workbook") from error
    if not parts:
        raise Unreadable("Excel workbook has no values")
    note = "formulas without stored values are left out: save it in a spreadsheet program" if _uncomputed(data) else ""
    return Converted("\n\n".join(parts) + "\n", note=note)


def _as_seen(value: Any) -> Any:
    """A cell's value as a spreadsheet program shows it: numbers of 15 digits, and days without their midnight."""
    if isinstance(value, float):
        return f"{value:.15g}"
    return value.date() if isinstance(value, datetime) and value.time() == time() else value


_UNCOMPUTED = re.compile(rb"</f>\s*(?:<v\s*/>|<v>\s*</v>|</c>)")


def _uncomputed(data: bytes) -> bool:
    """Whether a workbook holds formulas that no program has worked out yet, as libraries write them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            if name.startswith("xl/worksheets/") and name.endswith(".xml"):
                with archive.open(name) as sheet:
                    tail = b""
                    while part := sheet.read(1 << 20):
                        if _UNCOMPUTED.search(tail + part):
                            return True
                        tail = part[-64:]
    return False


def csv_rows(text: str) -> Iterator[list[str]]:
    """Rows of comma-separated values, whatever separates them. Raises csv.Error while reading."""
    csv.field_size_limit(MAX_TEXT)  # Python's is 131,072: a cell may hold a document
    if named := re.match(r"sep=(.)\n", text):  # Excel's own way to say it
        return csv.reader(io.StringIO(text[named.end() :], newline=""), delimiter=named[1])
    try:
        dialect: Any = csv.Sniffer().sniff(text[:20_000], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    dialect.doublequote = True  # a sample without quotes would deny them to the rest
    return csv.reader(io.StringIO(text, newline=""), dialect)


def table(data: bytes) -> Converted:
    text = decoded(data)
    try:
        lines = table_rows(csv_rows(text))
    except csv.Error as error:
        raise Unreadable(f"broken CSV ({error})") from error
    if not lines:
        raise Unreadable("has no rows")
    return Converted("\n".join(lines) + "\n")


def json_text(data: bytes) -> Converted:
    text = decoded(data)
    try:
        value = json.loads(text, parse_int=_whole)
    except ValueError:
        value = _json_lines(text)
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        lines = ["; ".join(f"{key}: {_flat(item)}" for key, item in row.items() if item is not None) for row in value]
        return Converted("\n".join(f"- {line}" for line in lines if line) + "\n")
    return Converted("```json\n" + json.dumps(value, ensure_ascii=False, indent=1) + "\n```\n")


def _json_lines(text: str) -> list[Any]:
    found: list[Any] = []
    for at, line in enumerate(text.split("\n"), 1):
        try:
            found.extend([json.loads(line, parse_int=_whole)] if line.strip() else [])
        except ValueError as error:
            raise Unreadable(f"broken JSON in line {at}" if found else "broken JSON") from error
    return found


def _whole(digits: str) -> int | str:
    return int(digits) if len(digits) < 4000 else digits  # longer ones Python does not read


def _flat(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def notebook(data: bytes) -> Converted:
    try:
        value = json.loads(decoded(data))
        # Until version 4 there were worksheets, and what was run was called input.
        cells = value["cells"] if "cells" in value else [cell for sheet in value["worksheets"] for cell in sheet["cells"]]
        told = value.get("metadata") or {}
        language = (told.get("kernelspec") or {}).get("language") or (told.get("language_info") or {}).get("name") or "python"
        parts = []
        for cell in cells:
            source = cell.get("source", cell.get("input", ""))
            source = ("".join(source) if isinstance(source, list) else str(source)).strip()
            if source:
                parts.append(f"```{language}\n{source}\n```" if cell.get("cell_type") == "code" else source)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable("broken notebook") from error
    if not parts:
        raise Unreadable("notebook has no cells with text")
    return Converted("\n\n".join(parts) + "\n")


CONVERTERS: dict[str, Callable[[bytes], Converted]] = {
    "pptx": pptx,
    "xlsx": xlsx,
    "table": table,
    "json": json_text,
    "notebook": notebook,
}
