"""Labelled text, and everything that can be wrong with it, by file, line, column and fix."""

from __future__ import annotations

import difflib
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finetune.problems import DataError, Problem
from finetune.rows import blank, gone, normal, rows_of

T = TypeVar("T")
SKEW = 20
"""How many times larger than the smallest class the largest may be without a warning."""


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled text and the line (from 1) it came from."""

    text: str
    label: str
    line: int


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
    """Read and check a file of labelled texts.

    Parameters
    ----------
    path: as `rows_of` reads it; empty lines are passed over.
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
    for number, row in rows_of(path, problems):
        if not _columns(str(path), number, row, text, label, known, problems):
            continue
        found = Row(row[text], str(row[label]), number)
        if labels is not None and found.label not in labels:
            near = difflib.get_close_matches(found.label, list(labels), 1)
            fix = f"Did you mean {near[0]!r}?" if near else f"Use one of: {', '.join(sorted(labels))}."
            problems.append(Problem("unknown_label", str(path), number, label, f"{found.label!r} is not a label.", fix))
            continue
        spelled.look(row[label], number)
        for column in (text, label):
            if gone(str(row[column])) and not (column == label and labels):
                told = (f"{row[column]!r} is what programs write for a value that is missing.", "Fill it, or delete the row.")
                problems.append(Problem("missing_value", str(path), number, column, *told, "warning"))
        first = seen.setdefault(normal(found.text), found)
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
    first_line: dict[str, int] = {}
    for row in rows:
        first_line.setdefault(row.label, row.line)
    problems.extend(spread(str(path), label, Counter(row.label for row in rows), first_line, bad))
    for name in sorted(set(labels or ()) - first_line.keys()) if rows else ():
        told = (f"No row has the label {name!r}.", "Add such rows, or take it from labels.")
        problems.append(Problem("missing_label", str(path), None, label, *told, "warning"))
    return tuple(rows)


class Spellings:
    """Tells of labels that are nearly another one, by case or blanks, or that are numbers where others are texts."""

    def __init__(self, file: str, column: str, problems: list[Problem]) -> None:
        self._file, self._column, self._problems = file, column, problems
        self._first: dict[str, tuple[Any, int]] = {}
        self._kind: tuple[bool, int] | None = None

    def look(self, label: Any, line: int) -> None:
        """Look at a row's label."""
        known, where = self._first.setdefault(normal(str(label)), (label, line))
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
    trained = {normal(row.text): row.line for row in train}
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
        if (line := trained.get(normal(row.text))) is not None
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


def spread(
    path: str, column: str, counts: Mapping[str, int], first_line: Mapping[str, int], already_bad: bool
) -> Iterator[Problem]:
    """What is wrong with how often each label occurs. `already_bad`: errors were told, that may be the cause."""
    if not counts:
        if not already_bad:
            yield Problem("empty_file", path, None, None, "There are no rows.", 'Write lines of {"text": …, "label": …}.')
        return
    if len(counts) == 1:
        if not already_bad:
            message = f"Every row has the label {next(iter(counts))!r}."
            yield Problem("one_class", path, None, column, message, "Add rows of another label.")
        return
    (largest, most), (smallest, least) = max(counts.items(), key=_second), min(counts.items(), key=_second)
    if most > SKEW * least:
        message = f"There are {most} rows of {largest!r} and {least} of {smallest!r}."
        fix = (
            f"Add rows of {smallest!r}; class_weight: balanced (method: linear) or class_balance: 1 makes each label count alike."
        )
        yield Problem("label_skew", path, None, column, message, fix, "warning")
    for name, line in first_line.items():
        if counts[name] == 1:
            told = (f"No other row has the label {name!r}.", "Add rows of it, or correct it if it is a slip.")
            yield Problem("rare_label", path, line, column, *told, "warning")


def scarce(path: Path, column: str, rows: Sequence[Row]) -> list[Problem]:
    """Labels that only one row has: cross-validation takes two of each."""
    first = {row.label: row.line for row in reversed(rows)}
    counts = Counter(row.label for row in rows)
    fix = "Add rows of it, raise data.max_rows, or take method: full."
    return [
        Problem("few_rows", str(path), line, column, f"One row has the label {label!r}; cross-validation takes two.", fix)
        for label, line in first.items()
        if counts[label] < 2
    ]


def _second(item: tuple[str, int]) -> int:
    return item[1]
