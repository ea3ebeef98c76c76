"""Labelled text as JSON lines, and everything that can be wrong with it, by file, line, column and fix."""

from __future__ import annotations

import difflib
import json
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson

T = TypeVar("T")
SHOWN = 20
"""Problems a `DataError` spells out; it holds all."""
SKEW = 20
"""How many times larger than the smallest class the largest may be without a warning."""

_BOM = b"\xef\xbb\xbf"
_FORMATS = (
    (b"PAR1", "Parquet", "Write its rows as JSON lines (pandas: to_json(orient='records', lines=True))."),
    (b"\x1f\x8b", "compressed", "Unpack it first."),
    (b"PK\x03\x04", "compressed", "Unpack it first."),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled text and the line (from 1) it came from."""

    text: str
    label: str
    line: int


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, where, and what to do. A warning does not keep a recipe from running."""

    code: str
    file: str
    line: int | None
    column: str | None
    message: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = self.file + (f":{self.line}" if self.line else "") + (f" column {self.column!r}" if self.column else "")
        return f"{place}: {self.message} [{self.code}] {self.fix}"


class DataError(Exception):
    """Data that cannot be trained on. `problems` holds every finding, warnings too."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        errors = [str(problem) for problem in problems if problem.severity == "error"]
        more = f"\n… and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        super().__init__("\n".join(errors[:SHOWN]) + more)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows that passed, what was found on the way, and how the labels are spread."""

    rows: tuple[Row, ...]
    warnings: tuple[Problem, ...]

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(row.label for row in self.rows).most_common())


def read_labelled(
    path: Path, *, text: str = "text", label: str = "label", labels: Collection[str] | None = None, ignore: Collection[str] = ()
) -> Labelled:
    """Read and check a file of `{"text": …, "label": …}` lines.

    Parameters
    ----------
    path: UTF-8 JSON lines; empty lines are passed over.
    text, label: names of the two columns.
    labels: the labels there may be; None takes what is there.
    ignore: further columns that may be there.

    Raises
    ------
    DataError: with every problem found, in the order of the file.
    """
    problems: list[Problem] = []
    rows = scan_labelled(path, problems, text=text, label=label, labels=labels, ignore=ignore)
    if any(problem.severity == "error" for problem in problems):
        raise DataError(problems)
    return Labelled(rows, tuple(problems))


def scan_labelled(
    path: Path,
    problems: list[Problem],
    *,
    text: str = "text",
    label: str = "label",
    labels: Collection[str] | None = None,
    ignore: Collection[str] = (),
) -> tuple[Row, ...]:
    """The rows that can be used; what is wrong with the others goes to `problems`."""
    rows: list[Row] = []
    seen: dict[str, Row] = {}
    spelled = Spellings(str(path), label, problems)
    known = {text, label, *ignore}
    for number, row in json_lines(path, problems):
        if not _columns(str(path), number, row, text, label, known, problems):
            continue
        found = Row(row[text], str(row[label]), number)
        if labels is not None and found.label not in labels:
            near = difflib.get_close_matches(found.label, list(labels), 1)
            fix = f"Did you mean {near[0]!r}?" if near else f"Use one of: {', '.join(sorted(labels))}."
            problems.append(Problem("unknown_label", str(path), number, label, f"{found.label!r} is not a label.", fix))
            continue
        spelled.look(row[label], number)
        first = seen.setdefault(_normal(found.text), found)
        if first is found:
            rows.append(found)
        elif first.label == found.label:
            message = f"The row repeats line {first.line}; it is left out."
            problems.append(Problem("duplicate_row", str(path), number, text, message, "Delete one of the two.", "warning"))
        else:
            message = (
                f"The text of line {first.line} has label {first.label!r} there and {found.label!r} here; this one is left out."
            )
            problems.append(Problem("conflicting_label", str(path), number, label, message, "Keep the right one.", "warning"))
    bad = any(problem.severity == "error" and problem.file == str(path) for problem in problems)
    problems.extend(_spread(str(path), label, Counter(row.label for row in rows), bad))
    return tuple(rows)


class Spellings:
    """Tells of labels that are nearly another one, by case or blanks, or that are numbers where others are texts."""

    def __init__(self, file: str, column: str, problems: list[Problem]) -> None:
        self._file, self._column, self._problems = file, column, problems
        self._first: dict[str, tuple[Any, int]] = {}
        self._kind: tuple[bool, int] | None = None

    def look(self, label: Any, line: int) -> None:
        """Look at a row's label."""
        known, where = self._first.setdefault(_normal(str(label)), (label, line))
        if str(known) != str(label):
            told = f"{str(label)!r} is nearly {str(known)!r} of line {where}, and would be a label of its own."
            self._tell("similar_label", line, told, "Write both alike.")
        number = not isinstance(label, str)
        self._kind = self._kind or (number, line)
        if number != self._kind[0]:
            one, other = ("a number", "a text") if number else ("a text", "a number")
            told = f"The label is {one} here, and {other} in line {self._kind[1]}."
            self._tell("mixed_labels", line, told, "Write all as texts, or all as numbers.")

    def _tell(self, code: str, line: int, message: str, fix: str) -> None:
        self._problems.append(Problem(code, self._file, line, self._column, message, fix, "warning"))


def check_split(train: Labelled, train_file: Path, evaluation: Labelled, eval_file: Path, column: str = "text") -> None:
    """Whether the evaluation can judge what is trained.

    Raises
    ------
    DataError: with every problem found.
    """
    if problems := split_problems(train.rows, train_file, evaluation.rows, eval_file, column):
        raise DataError(problems)


def split_problems(
    train: Sequence[Row], train_file: Path, evaluation: Sequence[Row], eval_file: Path, column: str = "text"
) -> list[Problem]:
    """Texts of the evaluation that are trained on, and labels it has that training lacks."""
    trained = {_normal(row.text): row.line for row in train}
    problems = [
        Problem(
            "leakage",
            str(eval_file),
            row.line,
            column,
            f"The text is also in {train_file}:{line}.",
            f"Delete it from {train_file}.",
        )
        for row in evaluation
        if (line := trained.get(_normal(row.text))) is not None
    ]
    first: dict[str, int] = {}
    for row in evaluation:
        first.setdefault(row.label, row.line)
    for name in first.keys() - {row.label for row in train}:
        told = (f"No row of {train_file} has the label {name!r}.", "Add such rows to the training data, or delete it here.")
        problems.append(Problem("unknown_label", str(eval_file), first[name], None, *told))
    return problems


def sample(rows: Sequence[T], size: int | None, seed: int) -> list[T]:
    """At most `size` rows, drawn without regard to their label, in the order of the file; the same for the same seed."""
    if size is None or size >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), size))]


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def json_lines(path: Path, problems: list[Problem]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Lines (from 1) that hold a JSON object; what is wrong with the others goes to `problems`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        fix = "Give the path of a JSON-lines file."
        problems.append(Problem("unreadable", str(path), None, None, f"It cannot be read ({error.strerror}).", fix))
        return
    lines = content.split(b"\n")
    if lines[0].startswith(_BOM):
        lines[0] = lines[0][3:]
    if len(lines) == 1 and b"\r" in lines[0].strip():
        told = ("Its lines end in CR alone, which JSON lines do not.", "Save it with line ends of LF or CRLF.")
        problems.append(Problem("line_ends", str(path), 1, None, *told))
        return
    if (told := _another_format(lines[0], path.suffix.lower())) is not None:
        problems.append(Problem(told[0], str(path), 1, None, *told[1:]))
        return
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
                message = f"The key {twice!r} stands in it twice, and only the last would be read."
                problems.append(Problem("duplicate_key", str(path), number, twice, message, "Keep the right one."))
            else:
                yield number, row
        else:
            message = f"The line is a JSON {type(row).__name__}, not an object."
            problems.append(Problem("not_object", str(path), number, None, message, 'Write {"text": …, "label": …}.'))


def _keys(row: Mapping[str, Any]) -> int:
    """How many keys there are in it and in all objects within."""
    found, left = 0, [row]
    while left:
        inner: Any = left.pop()
        if isinstance(inner, dict):
            found += len(inner)
            inner = inner.values()
        left += [each for each in inner if isinstance(each, (dict, list))]
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


def blank(text: str) -> bool:
    """Whether a text has nothing to see: no characters, or spaces and marks without a width alone."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def _another_format(line: bytes, suffix: str) -> tuple[str, str, str] | None:
    """What a file is whose first line is none of JSON lines: code, message and fix, once and not for each line."""
    for mark, name, fix in _FORMATS:
        if line.startswith(mark):
            return "bad_json", f"The file is {name}, not JSON lines.", fix
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:4]:
        return "encoding", "The file is UTF-16.", "Save it as UTF-8."
    if line.strip() == b"[" or line.startswith(b"[{"):
        return "bad_json", "The file is one JSON array, not JSON lines.", "Write its objects one a line."
    if line.strip() == b"{":
        return "bad_json", "An object takes several lines, not one.", "Write each object on one line."
    if suffix in (".csv", ".tsv") and not line.lstrip().startswith(b"{"):
        fix = "Write its rows as JSON lines (pandas: to_json(orient='records', lines=True)); CSV is read where model: auto."
        return "bad_json", "The file is CSV, not JSON lines.", fix
    return None


def _undecodable(path: str, number: int, line: bytes, error: orjson.JSONDecodeError) -> Problem:
    if line.startswith(_BOM):
        fix = "Delete it: files that were put together each began with one."
        return Problem("encoding", path, number, None, "A byte-order mark stands in the midst of the file.", fix)
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as bad:
        return Problem("encoding", path, number, None, f"Byte {bad.start + 1} is not UTF-8.", "Save the file as UTF-8.")
    return Problem(
        "bad_json", path, number, None, f"Not JSON at character {error.colno}: {error.msg}.", "One JSON object a line."
    )


def _columns(
    path: str, number: int, row: Mapping[str, Any], text: str, label: str, known: Collection[str], problems: list[Problem]
) -> bool:
    """Whether both columns are there and hold something; what is not goes to `problems`."""
    before = len(problems)
    unknown = [key for key in row if key not in known]
    for column in (text, label):
        if column not in row:
            near = difflib.get_close_matches(column, unknown, 1, 0.7)
            fix = (
                f"Rename {near[0]!r} to {column!r}."
                if near
                else f"Add {column!r}, or name the column it is in (data.{'text' if column == text else 'label'}_column)."
            )
            problems.append(Problem("missing_key", path, number, column, "The column is missing.", fix))
            unknown = [key for key in unknown if key not in near]
        elif column == text and not isinstance(row[column], str):
            problems.append(
                Problem("wrong_type", path, number, column, f"{type(row[column]).__name__} is no text.", "Write a string.")
            )
        elif column == label and (isinstance(row[column], bool) or not isinstance(row[column], (str, int))):
            problems.append(
                Problem("wrong_type", path, number, column, f"{type(row[column]).__name__} is no label.", "Write a string.")
            )
        elif blank(str(row[column])):
            problems.append(
                Problem(
                    f"empty_{'text' if column == text else 'label'}",
                    path,
                    number,
                    column,
                    "It is empty.",
                    "Fill it, or delete the row.",
                )
            )
    for key in unknown:
        fix = "Delete it, or name it in data.ignore_columns."
        problems.append(Problem("unknown_key", path, number, key, "The column is not known.", fix))
    return len(problems) == before


def _spread(path: str, column: str, counts: Counter[str], already_bad: bool) -> Iterator[Problem]:
    if not counts:
        if not already_bad:
            yield Problem("empty_file", path, None, None, "There are no rows.", 'Write lines of {"text": …, "label": …}.')
    elif len(counts) == 1:
        if not already_bad:
            message = f"Every row has the label {next(iter(counts))!r}."
            yield Problem("one_class", path, None, column, message, "Add rows of another label.")
    else:
        (largest, most), (smallest, least) = counts.most_common()[0], counts.most_common()[-1]
        if most > SKEW * least:
            message = f"There are {most} rows of {largest!r} and {least} of {smallest!r}."
            yield Problem(
                "label_skew", path, None, column, message, f"Add rows of {smallest!r}, or set class_weight: balanced.", "warning"
            )
