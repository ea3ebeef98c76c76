"""What encoders learn from besides labels: questions with the texts that answer them, and answers within texts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data import DataError, Problem
from finetune.rows import blank, gone, normal, rows_of
from finetune.texts import MISSING, Tell, leak, repeated, teller

if TYPE_CHECKING:
    from finetune.schema import RowsRecipe


@dataclass(frozen=True, slots=True)
class Pair:
    """A question, what answers it, and perhaps what does not, or how well it does (0 to 1)."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    score: float | None
    line: int

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.query, self.positive, *self.negatives)


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a text, and the place of the answer in it; an empty answer says that the text has none."""

    question: str
    context: str
    answer: str
    start: int
    line: int

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.question, self.context)


Row = Pair | Question


def read(task: str, path: Path, data: RowsRecipe | None = None, *, loss: str = "") -> tuple[list[Any], list[Problem]]:
    """The rows of a file for `embed`, `rerank` (pairs) or `reader` (questions), with warnings.

    Raises
    ------
    DataError: with every problem found, by file and line.
    """
    problems: list[Problem] = []
    rows = scan(task, path, problems, data, loss=loss)
    if any(problem.severity == "error" for problem in problems):
        raise DataError(problems)
    return rows, problems


def scan(task: str, path: Path, problems: list[Problem], data: RowsRecipe | None = None, *, loss: str = "") -> list[Any]:
    """The rows that can be used; what is wrong with the others goes to `problems`."""
    make: Callable[[Mapping[str, Any], int, Tell], Row | None] = _question if task == "reader" else _pair
    rows: list[Any] = []
    seen: dict[Any, int] = {}
    before = len(problems)
    ignored = data.ignore_columns if data else ()
    optional = ("start",) if task == "reader" else ("negative", "score")
    for line, given in rows_of(path, problems, columns=data.columns if data else None, optional=optional):
        tell = teller(problems, str(path), line)
        row = {key: value for key, value in given.items() if key not in ignored} if ignored else given
        found = make(row, line, tell)
        if found is None or (isinstance(found, Pair) and not _suits(found, loss, tell)):
            continue
        key = (*map(normal, found.texts), found.answer if isinstance(found, Question) else "")
        if key in seen:
            repeated(problems, str(path), line, str(path), seen[key])
            continue
        seen[key] = line
        rows.append(found)
    if not rows and len(problems) == before:
        told = ("There are no rows.", 'Write lines of {"query": …, "positive": …}.' if make is _pair else "Write questions.")
        problems.append(Problem("empty_file", str(path), None, None, *told))
    _contradictions(rows, path, problems)
    return rows


def _contradictions(rows: Sequence[Any], path: Path, problems: list[Problem]) -> None:
    """Warn of a text that is right for a question in one row and wrong in another, and of a text that has an answer and none."""
    keep = "Keep the right one."
    if rows and isinstance(rows[0], Question):
        has: dict[Any, Question] = {}
        for row in rows:
            other = has.setdefault(_asked(row), row)
            if bool(other.answer) != bool(row.answer):
                here, there = ("an", "none") if row.answer else ("no", "one")
                told = f"It has {here} answer here, and {there} in line {other.line}."
                problems.append(Problem("conflicting_label", str(path), row.line, "answer", told, keep, "warning"))
        if not any(row.answer for row in rows):
            told = ("No row has an answer.", "Give questions that their texts answer.")
            problems.append(Problem("one_class", str(path), rows[0].line, "answer", *told, "warning"))
        return
    wrong = [row for row in rows if row.negatives]
    right = {(normal(row.query), normal(row.positive)): row.line for row in rows} if wrong else {}
    for row in wrong:
        where = next((at for text in row.negatives if (at := right.get((normal(row.query), normal(text))))), None)
        if where is not None:
            told = f"One of them is the positive of this query in line {where}."
            problems.append(Problem("conflicting_label", str(path), row.line, "negative", told, keep, "warning"))


def leaks(train: Sequence[Row], train_file: Path, evaluation: Sequence[Row], eval_file: Path) -> list[Problem]:
    """Rows of the evaluation whose question (of a text, for readers) is trained on."""
    trained = {_asked(row): row.line for row in train}
    return [
        leak(str(eval_file), row.line, str(train_file), line)
        for row in evaluation
        if (line := trained.get(_asked(row))) is not None
    ]


def _asked(row: Row) -> tuple[str, ...]:
    return (normal(row.query),) if isinstance(row, Pair) else (normal(row.question), normal(row.context))


def _pair(row: Mapping[str, Any], line: int, tell: Tell) -> Pair | None:
    if not _known(row, ("query", "positive"), ("negative", "score"), tell):
        return None
    given = row.get("negative")
    negatives = [given] if isinstance(given, str) else given or []
    if not isinstance(negatives, list) or not all(isinstance(each, str) and not blank(each) for each in negatives):
        return tell("wrong_type", "negative", "It is neither a text nor a list of texts.", 'Write "negative": ["…"].')
    if normal(row["positive"]) in map(normal, negatives):
        return tell("conflicting_label", "negative", "The positive is among the negatives.", "Keep it in one of the two.")
    if normal(row["query"]) == normal(row["positive"]):
        tell("same_text", "positive", "It is the query itself, which teaches nothing.", "Delete the row.", "warning")
    score = row.get("score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1):
        return tell("wrong_type", "score", f"{score!r} is no score.", "Write a number from 0 to 1.")
    return Pair(row["query"], row["positive"], tuple(negatives), None if score is None else float(score), line)


def _suits(pair: Pair, loss: str, tell: Tell) -> bool:
    if loss in ("cosent", "cosine") and pair.score is None:
        tell("missing_key", "score", "The column is missing.", f"Add it, or take another loss than {loss}.")
    elif loss == "triplet" and not pair.negatives:
        tell("missing_key", "negative", "The column is missing.", "Add it, or take the loss multiple_negatives.")
    else:
        return True
    return False


def _question(row: Mapping[str, Any], line: int, tell: Tell) -> Question | None:
    if not _known(row, ("question", "context"), ("answer", "start"), tell):
        return None
    answer = row.get("answer")
    if not isinstance(answer, str):
        fix = 'Write the words of the context, or "" where it has no answer.'
        return tell("missing_key" if answer is None else "wrong_type", "answer", "It is no text.", fix)
    start = row.get("start")
    if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
        return tell("wrong_type", "start", f"{start!r} is no place in the context.", "Write the place of its first character.")
    if answer and blank(answer):
        return tell("empty_answer", "answer", "It has nothing but spaces.", 'Write "" where the context has no answer.')
    if not answer:
        return Question(row["question"], row["context"], "", -1, line)
    at = row["context"].find(answer) if start is None else start
    if at < 0 or row["context"][at : at + len(answer)] != answer:
        where = "nowhere in the context" if start is None else f"not at character {start} of the context"
        return tell("no_such_answer", "answer", f"It stands {where}.", "Copy it from the context.")
    if start is None and (times := row["context"].count(answer)) > 1:
        told = f"It stands there {times} times; the first is taken."
        tell("ambiguous_answer", "answer", told, "Say which by `start`, the place of its first character.", "warning")
    return Question(row["question"], row["context"], answer, at, line)


def _known(row: Mapping[str, Any], needed: Sequence[str], more: Sequence[str], tell: Tell) -> bool:
    """Whether the needed texts are there, and nothing that is not known; what is wrong is told."""
    unknown = [key for key in row if key not in (*needed, *more)]
    good = True
    for key in needed:
        if key not in row:
            near = difflib.get_close_matches(key, unknown, 1, 0.7)
            fix = (
                f"Rename {near[0]!r} to {key!r}."
                if near
                else f"Add {key!r}, or say what the file calls it: data.columns.{key}=NAME."
            )
            tell("missing_key", key, "The column is missing.", fix)
            unknown = [each for each in unknown if each not in near]
        elif not isinstance(row[key], str):
            tell("wrong_type", key, f"{type(row[key]).__name__} is no text.", "Write a string.")
        elif blank(row[key]):
            tell(f"empty_{key}", key, "It is empty.", "Fill it, or delete the row.")
        else:
            if gone(row[key]):
                tell("missing_value", key, f"{row[key]!r} {MISSING}", "Fill it, or delete the row.", "warning")
            continue
        good = False
    for key in unknown:
        tell(
            "unknown_key",
            key,
            "The column is not known.",
            f"Delete it; known are {', '.join((*needed, *more))}. Or name it in data.ignore_columns.",
        )
    return good and not unknown
