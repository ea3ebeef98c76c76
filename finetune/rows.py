"""Rows of a file, each with its line: JSON lines, a JSON array, CSV, TSV or Parquet; and what keeps them from being read."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from finetune.problems import Problem

SEPARATED = (".csv", ".tsv")
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"
_PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
"""Marks without a width."""
_NESTED = (dict, list)
GONE = frozenset(("nan", "null", "<na>", "#n/a"))
"""What programs write for a value that is missing."""
Found = Iterator[tuple[int, Mapping[str, Any]]]


def rows_of(
    path: Path, problems: list[Problem], *, columns: Mapping[str, str] | None = None, optional: Collection[str] = ()
) -> Found:
    """The rows of a file with the line (from 1) that each begins in, of Parquet the number of the row; what is wrong with the
    others goes to `problems`.

    Parameters
    ----------
    columns: the file's name of a column, where it is another one than the key.
    optional: columns that a row need not have; in a CSV nothing means none there, and digits are a number.
    """
    called = {name: key for key, name in (columns or {}).items()}
    try:
        with path.open("rb") as file:
            parquet = file.read(4) == _PARQUET
        found = _parquet(path, problems) if parquet else _text(path, path.read_bytes(), problems, optional)
    except OSError as error:
        fix = "Give the path of a file: JSON lines, CSV or Parquet."
        problems.append(Problem("unreadable", str(path), None, None, f"It cannot be read ({error.strerror}).", fix))
        return
    if not called:
        yield from found
        return
    for line, row in found:
        yield line, {called.get(key, key): value for key, value in row.items()}


def normal(text: str) -> str:
    """What two texts have in common that a reader takes for the same: without regard to case, spaces, forms of a character and
    marks that are not seen."""
    if not text.isascii():
        text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return " ".join(text.split()).casefold()


def blank(text: str) -> bool:
    """Whether a text has nothing to see: no characters, or spaces and marks without a width alone."""
    if text[:1].isalnum():
        return False
    return not any(character.isprintable() and not character.isspace() for character in text)


def alike(one: str, other: str) -> bool:
    """Whether a reader takes two texts for the same, as `normal` does; quickly, where they are not nearly as long."""
    return abs(len(one) - len(other)) < 9 and normal(one) == normal(other)


def gone(text: str) -> bool:
    """Whether a text is but what a program wrote for a value that is missing."""
    return len(text) < 9 and text.strip().casefold() in GONE


def _text(path: Path, content: bytes, problems: list[Problem], optional: Collection[str]) -> Found:
    if content.startswith(_BOM):
        content = content[3:]
    line, _, rest = content.partition(b"\n")
    if (told := _unreadable(line)) is not None:
        problems.append(Problem(told[0], str(path), 1, None, *told[1:]))
        return iter(())
    if line.lstrip().startswith(b"["):  # or one that begins further down: `[` alone in its line
        ahead = (line.lstrip()[1:] + rest[:1000]).lstrip()
        if ahead.startswith(b"{") or not ahead:
            return _array(path, content, problems)
    if path.suffix.lower() in SEPARATED and not line.lstrip().startswith(b"{"):
        return _separated(path, content, problems, optional)
    lines = content.split(b"\n")
    if not line.startswith(b"{") and not _objects(lines):
        fix = "Write one JSON object a line; where it is a table, let its name end in .csv or .tsv."
        problems.append(Problem("bad_json", str(path), 1, None, "Its lines are no JSON objects.", fix))
        return iter(())
    return _json_lines(path, lines, problems)


def _objects(lines: list[bytes]) -> bool:
    """Whether any of the first lines, if there are some, begins as JSON does: told once, and not for each line."""
    first = [each for each in lines[:20] if each.strip()]
    return len(first) < 2 or any(each.lstrip().startswith((b"{", b"[")) for each in first)


def no_text(line: bytes) -> tuple[str, str, str] | None:
    """Code, message and fix where a file's first line shows that it is no text in UTF-8."""
    if line.startswith(b"%PDF-"):
        return "bad_json", "The file is a PDF.", "Save its text as a file of text, in UTF-8."
    if line.startswith(_PACKED):
        told = "The file is compressed (or a document or workbook), not text, JSON lines, CSV or Parquet."
        return "bad_json", told, "Unpack it, or save it as text or CSV."
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:4]:
        return "encoding", "The file is UTF-16.", "Save it as UTF-8."
    return None


def _unreadable(line: bytes) -> tuple[str, str, str] | None:
    """The same where it shows that there are no rows for us: told once, and not for each line."""
    if (told := no_text(line)) is not None:
        return told
    if line.strip() == b"{":
        return "bad_json", "An object takes several lines, not one.", "Write each object on one line."
    if b"\r" in line.strip():
        return (
            "line_ends",
            "Its lines end in CR alone, which neither JSON lines nor CSV do.",
            "Save it with line ends of LF or CRLF.",
        )
    return None


def _json_lines(path: Path, lines: list[bytes], problems: list[Problem]) -> Found:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            problems.append(_undecodable(str(path), number, line, error))
            continue
        if isinstance(row, dict):
            if line.count(b'":') != _keys(row) and (twice := _twice(line)) is not None:
                problems.append(_duplicate_key(str(path), number, twice))
            else:
                yield number, row
        else:
            problems.append(_not_object(str(path), number, row))


def _array(path: Path, content: bytes, problems: list[Problem]) -> Found:
    """The objects of a JSON array."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.append(_not_utf8(path, error))
        return
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return row

    decode, line, seen = json.JSONDecoder(object_pairs_hook=once).raw_decode, 1, 0
    gap = re.compile(r"[\s,]*")
    at = text.index("[") + 1
    while True:
        at = gap.match(text, at).end()  # type: ignore[union-attr]
        line, seen = line + text.count("\n", seen, at), at
        if text[at : at + 1] in ("]", ""):
            if not text[at:]:
                problems.append(Problem("bad_json", str(path), line, None, "The array has no end.", "Is the file whole?"))
            return
        twice.clear()
        try:
            row, at = decode(text, at)
        except (ValueError, RecursionError) as error:
            line += text.count("\n", seen, getattr(error, "pos", seen))
            told = f"Not JSON ({getattr(error, 'msg', 'too deep')}); what follows is not read."
            problems.append(Problem("bad_json", str(path), line, None, told, "Write an array of objects, or one object a line."))
            return
        if twice:
            problems.append(_duplicate_key(str(path), line, twice[0]))
        elif isinstance(row, dict):
            yield line, row
        else:
            problems.append(_not_object(str(path), line, row))


def _parquet(path: Path, problems: list[Problem]) -> Found:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:150]
        fix = "Write it again; is the file whole?"
        problems.append(Problem("unreadable", str(path), number + 1, None, f"The Parquet file cannot be read ({said}).", fix))


def _separated(path: Path, content: bytes, problems: list[Problem], optional: Collection[str]) -> Found:
    table = CsvTable(path, content, problems)
    for line, values in table.rows():
        row: dict[str, Any] = dict(zip(table.header, values, strict=True))
        for key in optional:
            if row.get(key) == "":
                del row[key]
            elif key in row and (number := _number(row[key])) is not None:
                row[key] = number
        yield line, row


class CsvTable:
    """A CSV: the names of its columns, and its rows. What is wrong goes to `problems`.

    Parameters
    ----------
    wanted: a column that it has; by it the separator is found. Default: what makes most columns.
    """

    def __init__(self, path: Path, content: bytes, problems: list[Problem], wanted: str = "") -> None:
        csv.field_size_limit(sys.maxsize)
        self._path, self._problems, self.header = path, problems, []
        self._reader: Any = None
        self.separator = ","
        try:
            text = content.removeprefix(_BOM).decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append(_not_utf8(path, error))
            return
        if "\0" in text:
            line = text[: text.index("\0")].count("\n") + 1
            problems.append(Problem("encoding", str(path), line, None, "The file has NUL bytes.", "Save it as text, in UTF-8."))
            return
        first = text.partition("\n")[0].rstrip("\r")

        def fits(separator: str) -> tuple[bool, int]:
            names = next(csv.reader([first], delimiter=separator), [])
            return wanted in names, len(names)

        self.separator = max(",;\t|", key=fits)
        self._reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.separator, strict=True)
        self.header = next(self._reader, [])
        for name in sorted({name for name in self.header if self.header.count(name) > 1}):
            told = ("Two columns have this name.", "Give each a name of its own.")
            problems.append(Problem("duplicate_key", str(path), 1, name, *told))

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The line that each row begins in, and its values: as many as there are columns."""
        while self._reader is not None:
            line = self._reader.line_num + 1
            try:
                values = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                told = f"A quotation mark is out of place ({error})."
                fix = "Double quotation marks within a value, and end each value that begins with one."
                self._problems.append(Problem("bad_csv", str(self._path), line, None, told, fix))
                continue
            if len(values) == len(self.header):
                yield line, values
            elif values:
                told = f"The row has {len(values)} values, and there are {len(self.header)} columns."
                fix = "Put values that hold a separator in quotation marks, and leave no separator out."
                self._problems.append(Problem("ragged_row", str(self._path), line, None, told, fix))


def _number(text: str) -> float | int | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


def _keys(row: Mapping[str, Any]) -> int:
    """How many keys there are in it and in all objects within."""
    found, left = 0, [row]
    for each in left:  # which grows meanwhile
        if isinstance(each, dict):
            found += len(each)
            left += [value for value in each.values() if isinstance(value, _NESTED)]
        else:
            left += [value for value in each if isinstance(value, _NESTED)]
    return found


def _twice(line: bytes) -> str | None:
    """A key that an object of the line has more than once."""
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        counts = Counter(key for key, _ in pairs)
        found.extend(key for key, count in counts.items() if count > 1)

    try:
        json.loads(line, object_pairs_hook=look)
    except RecursionError:
        return None
    return found[0] if found else None


def _duplicate_key(path: str, line: int, key: str) -> Problem:
    message = f"The key {key!r} stands in it twice, and only the last would be read."
    return Problem("duplicate_key", path, line, key, message, "Keep the right one.")


def _not_object(path: str, line: int, row: Any) -> Problem:
    message = f"The line is a JSON {type(row).__name__}, not an object."
    return Problem("not_object", path, line, None, message, 'Write an object, such as {"text": …, "label": …}.')


def _not_utf8(path: Path, error: UnicodeDecodeError) -> Problem:
    line = error.object[: error.start].count(b"\n") + 1
    return Problem("encoding", str(path), line, None, f"Byte {error.start + 1} is not UTF-8.", "Save the file as UTF-8.")


def _undecodable(path: str, number: int, line: bytes, error: orjson.JSONDecodeError) -> Problem:
    if line.startswith(_BOM):
        fix = "Delete it: files that were put together each began with one."
        return Problem("encoding", path, number, None, "A byte-order mark stands in the midst of the file.", fix)
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as bad:
        return Problem(
            "encoding", path, number, None, f"Byte {bad.start + 1} of the line is not UTF-8.", "Save the file as UTF-8."
        )
    return Problem(
        "bad_json", path, number, None, f"Not JSON at character {error.colno}: {error.msg}.", "One JSON object a line."
    )
