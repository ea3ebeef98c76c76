"""More document files to text: slides, workbooks, tables, JSON, mail, notebooks. Run where `retrieval.convert` runs."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from retrieval.convert import MAX_TEXT, MAX_UNPACKED, Converted, Unreadable, decoded, html

MAX_CELLS = 2_000_000
NESTED = 5
"""Mails within mails that are read."""


def _unpacks(data: bytes) -> None:
    """Raises Unreadable for an archive that is broken, or a bomb."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except zipfile.BadZipFile as error:
        raise Unreadable("broken Office document") from error
    if size > MAX_UNPACKED:
        raise Unreadable(f"unpacks to more than {MAX_UNPACKED // 1_000_000} MB")


def _rows(rows: Iterable[Sequence[Any]]) -> list[str]:
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

    _unpacks(data)
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
                body.append("\n".join(_rows([cell.text for cell in row.cells] for row in shape.table.rows)))
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
        lines += _rows([["Category", *(one.name for one in series)], *zip(names, *(one.values for one in series), strict=False)])
    return lines


def xlsx(data: bytes) -> Converted:
    import openpyxl

    _unpacks(data)
    try:
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        parts = []
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # rows as long as they are: one stray cell far out made each of a million as wide
            lines = _rows(sheet.iter_rows(values_only=True))
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


def table(data: bytes) -> Converted:
    text = decoded(data)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:20_000], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    try:
        lines = _rows(csv.reader(io.StringIO(text), dialect))
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


def mail(data: bytes) -> Converted:
    import email
    from email import policy

    return _mail(email.message_from_bytes(data, policy=policy.default))


def _mail(message: Any, depth: int = 0) -> Converted:
    if not message.keys():
        raise Unreadable("broken mail (it has no headers)")
    subject = " ".join(str(message.get("subject") or "").split())
    head = [
        f"{name.capitalize()}: {' '.join(str(message[name]).split())}" for name in ("from", "to", "cc", "date") if message[name]
    ]
    part = message.get_body(preferencelist=("plain", "html"))
    body = "" if part is None else _written(part)
    attached = list(message.iter_attachments()) if message.is_multipart() else []
    names = [name for each in attached if (name := each.get_filename())]
    if names:
        body += "\n\nAttachments: " + ", ".join(names)
    for each in attached:
        kind = each.get_content_type()
        if kind in ("text/plain", "text/html"):
            body += f"\n\n## {each.get_filename() or 'Attachment'}\n\n{_written(each)}"
        elif kind == "message/rfc822" and depth < NESTED and isinstance(each.get_payload(), list):
            body += "\n\n#" + _mail(each.get_payload(0), depth + 1).text
    if not body.strip() and not subject:
        raise Unreadable("mail has no text")
    return Converted(f"# {subject or 'Mail'}\n\n" + "\n".join(head) + "\n\n" + body.replace("\r\n", "\n").strip() + "\n", subject)


def _written(part: Any) -> str:
    """The text of a part that is text."""
    try:
        body = part.get_content()
    except (LookupError, ValueError):
        body = decoded(part.get_payload(decode=True) or b"")
    if part.get_content_type() != "text/html":
        return body
    try:
        return html(body.encode("utf-8", "replace")).text
    except Unreadable:  # as of a mail that is a picture
        return ""


def archived(data: bytes) -> Converted:
    """A page saved with all it shows (MHTML, RFC 2557): its root document; frames and pictures are left out."""
    import email
    from email import policy

    message: Any = email.message_from_bytes(data, policy=policy.default)
    parts = [part for part in message.walk() if part.get_content_type() in ("text/html", "application/xhtml+xml")]
    if not parts:
        raise Unreadable("saved page holds no HTML")
    start = message.get_param("start")
    root = next((part for part in parts if start and part.get("content-id") == start), parts[0])
    body = root.get_payload(decode=True) or b""
    try:
        charset = root.get_content_charset()
        body = body.decode(charset, "replace").encode() if charset else body
    except (LookupError, ValueError):
        pass  # an encoding nobody knows: the page itself may tell
    return html(body)


def notebook(data: bytes) -> Converted:
    try:
        value = json.loads(decoded(data))
        # Until version 4 there were worksheets, and what was run was called input.
        cells = value["cells"] if "cells" in value else [cell for sheet in value["worksheets"] for cell in sheet["cells"]]
        language = value.get("metadata", {}).get("kernelspec", {}).get("language", "python")
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
    "mail": mail,
    "archived": archived,
    "notebook": notebook,
}
