"""All that is wrong with a recipe's data, found without training and without the base model's weights.

What a run checks is checked here, with personal data besides. Tokens are counted only where a row's bytes do not already show
that it fits, and a chat template is tried once for each order of roles: that is why a million rows take no minute.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune import pairs, texts
from finetune.base_model import base_of
from finetune.data import Problem, Row, scan_labelled, scarce, split_problems
from finetune.findings import Findings, FindPii, Looks
from finetune.problems import DataError, spelled
from finetune.recipe import ClassifyRecipe, EncoderRecipe, Recipe, find
from finetune.schema import AutoRecipe, EmbedRecipe, ReaderRecipe, ReadingRecipe, RerankRecipe

BATCH = 4096
"""Texts whose tokens are counted at once."""
COUNTED = 10_000
"""Of the texts that may be too long the longest so many have their tokens counted."""


@dataclass(frozen=True)
class Report:
    """What was found in `rows` rows within `seconds`."""

    problems: tuple[Problem, ...]
    counts: Mapping[tuple[str, str], int]
    """By severity and code; `problems` holds at most `KEPT` of each."""
    rows: int
    seconds: float

    @property
    def errors(self) -> int:
        return sum(count for (severity, _), count in self.counts.items() if severity == "error")

    @property
    def warnings(self) -> int:
        return sum(self.counts.values()) - self.errors

    def as_dict(self) -> dict[str, Any]:
        """JSON values for machines."""
        told: dict[str, Any] = {"ok": not self.errors, "rows": self.rows, "seconds": round(self.seconds, 3)}
        told |= {"rows_per_minute": round(60 * self.rows / max(self.seconds, 1e-9))}
        told |= {"errors": self.errors, "warnings": self.warnings}
        told["counts"] = {code: count for (_, code), count in sorted(self.counts.items())}
        return told | {"problems": [asdict(problem) for problem in self.problems]}

    def summary(self) -> str:
        """Lines for people: errors before warnings, a few of each kind."""
        lines = [f"{severity}: {line}" for severity, line in spelled(self.problems, self.counts)]
        found = f"{self.errors:,} errors, {self.warnings:,} warnings" if self.counts else "nothing wrong"
        return "\n".join([*lines, f"{self.rows:,} rows in {self.seconds:.1f} s: {found}."])


def validate(recipe: Recipe, find_pii: FindPii | None = None) -> Report:
    """Check a recipe's data.

    Parameters
    ----------
    find_pii: kinds of personal data in a text; None does not look for it.

    Raises
    ------
    RecipeError: the base model's tokenizer is not there.
    """
    began, problems = time.perf_counter(), Findings()
    looks = Looks(problems, find_pii)
    if isinstance(recipe, (ClassifyRecipe, EncoderRecipe)):
        rows = _labelled(recipe, problems, looks)
    elif isinstance(recipe, AutoRecipe):
        rows = _tables(recipe, problems, looks)
    elif isinstance(recipe, EmbedRecipe | RerankRecipe | ReaderRecipe):
        rows = _pairs(recipe, problems, looks)
    else:
        from finetune.validate_texts import look_at_texts

        rows = look_at_texts(recipe, problems, find_pii)
    looks.done()
    files = {file: number for number, file in enumerate(dict.fromkeys(problem.file for problem in problems))}
    ordered = sorted(problems, key=lambda problem: (files[problem.file], problem.line or 0))
    return Report(tuple(ordered), dict(problems.counts), rows, time.perf_counter() - began)


def _labelled(recipe: ClassifyRecipe | EncoderRecipe, problems: Findings, looks: Looks) -> int:
    data = recipe.data
    columns: dict[str, Any] = {"text": data.text_column, "label": data.label_column}
    columns |= {"labels": recipe.labels, "ignore": data.ignore_columns}
    files = [find(path) for path in (data.train, data.eval) if path is not None]
    found: list[tuple[Row, ...]] = []
    for file in files:
        rows = scan_labelled(file, problems, **columns)
        found.append(rows)
        if isinstance(recipe, ClassifyRecipe) and file == files[0] and len({row.label for row in rows}) > 1:
            problems.extend(scarce(file, data.label_column, rows))
        for row in rows:
            looks.add(str(file), row.line, (row.text,), lambda _: data.text_column)
        for row in {row.label: row for row in reversed(rows)}.values():
            looks.add(str(file), row.line, (row.label,), lambda _: data.label_column)
        if isinstance(recipe, EncoderRecipe) and (long := _longer(recipe, rows)):
            problems.append(_cut(recipe, file, long, len(rows), data.text_column))
    if len(found) == 2 and all(found):
        problems.extend(split_problems(found[0], files[0], found[1], files[1], data.text_column))
    return sum(map(len, found))


def _tables(recipe: AutoRecipe, problems: Findings, looks: Looks) -> int:
    from finetune import tables

    files = [find(path) for path in (recipe.data.train, recipe.data.eval) if path is not None]
    found = [tables.scan(file, recipe.data, problems) for file in files]
    if len(files) == 1 and len(found[0]) and not any(severity == "error" for severity, _ in problems.counts):
        try:
            tables.held_out_of(found[0], recipe, files[0])
        except DataError as error:
            problems.extend(error.problems)
    for file, table in zip(files, found, strict=True):
        for column in tables.texts_of(table, recipe.data):
            for line, text in zip(table.index, table[column], strict=True):
                if isinstance(text, str):
                    looks.add(str(file), int(line), (text,), lambda _, column=column: column)
    if len(found) == 2 and all(len(table) for table in found):
        problems.extend(tables.split_problems(found[0], files[0], found[1], files[1], recipe.data))
    return sum(map(len, found))


def _pairs(recipe: EmbedRecipe | RerankRecipe | ReaderRecipe, problems: Findings, looks: Looks) -> int:
    files = [find(path) for path in (recipe.data.train, recipe.data.eval) if path is not None]
    found: list[list[Any]] = []
    first = ("question", "context") if isinstance(recipe, ReaderRecipe) else ("query", "positive")

    def column(number: int) -> str:
        return first[number] if number < 2 else "negative"

    for file in files:
        rows = pairs.scan(recipe.task, file, problems, recipe.data, loss="" if found else getattr(recipe, "loss", ""))
        found.append(rows)
        for row in rows:
            looks.add(str(file), row.line, row.texts, column)
        if isinstance(recipe, ReaderRecipe):  # it looks through windows, and asks a question of each
            _answers(recipe, file, rows, problems)
        elif long := _longer_pairs(recipe, rows):
            problems.append(_cut(recipe, file, long, len(rows)))
        if getattr(recipe, "loss", "") in ("cosent", "cosine") and len({row.score for row in rows} - {None}) == 1:
            told = (
                f"Every score is {rows[0].score}, so there is nothing to tell apart.",
                "Give pairs that answer less well too.",
            )
            problems.append(Problem("one_class", str(file), rows[0].line, "score", *told))
    if len(found) == 2:
        problems.extend(pairs.leaks(found[0], files[0], found[1], files[1]))
    return sum(map(len, found))


def _answers(recipe: ReaderRecipe, file: Path, rows: Sequence[Any], problems: Findings) -> None:
    """Answers that are never given, as no token is longer than a word, and questions of which only the beginning is read."""
    most = recipe.max_length - recipe.stride - 8
    for row in rows:
        if (words := len(row.answer.split())) > recipe.max_answer:
            told = f"The answer has {words} words, and none of more than {recipe.max_answer} tokens is given."
            problems.append(
                Problem("long_answer", str(file), row.line, "answer", told, "Shorten it, or raise max_answer.", "warning")
            )
        if len(row.question.encode()) > most:
            told = f"Of the question the first {most} bytes are read."
            problems.append(
                Problem("truncated", str(file), row.line, "question", told, "Shorten it, or raise max_length.", "warning")
            )


Long = tuple[int, int, bool] | None
"""The line of the longest row that is cut off, how many are, and whether there may be more."""


def _cut(recipe: ReadingRecipe, file: Path, long: tuple[int, int, bool], rows: int, column: str | None = None) -> Problem:
    line, cut, least = long
    return texts.truncated(file, line, cut, rows, recipe.max_length, "max_length", column, least=least)


def _longer_pairs(recipe: EmbedRecipe | RerankRecipe, rows: Sequence[Any]) -> Long:
    """Rows that have a text, or for rerankers a pair of texts, with more tokens than are read."""
    together = isinstance(recipe, RerankRecipe)
    given = [[row.query + " " + text for text in row.texts[1:]] if together else list(row.texts) for row in rows]
    long = [(max(texts, key=len), row.line) for texts, row in zip(given, rows, strict=True)]
    return _count_longer(recipe, [each for each in long if len(each[0].encode()) > recipe.max_length - 2])


def _count_longer(recipe: ReadingRecipe, candidates: Sequence[tuple[str, int]]) -> Long:
    """Of texts, each with its line, those with more tokens than are read; only the longest are looked at."""
    if not candidates:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base_of(recipe) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ready = heapq.nlargest(COUNTED, candidates, key=lambda each: len(each[0]))
    parts = (ready[at : at + BATCH] for at in range(0, len(ready), BATCH))
    sizes = [len(each.ids) for part in parts for each in tokenizer.encode_batch_fast([text for text, _ in part])]
    cut = sum(size > recipe.max_length for size in sizes)
    return (ready[sizes.index(max(sizes))][1], cut, cut == COUNTED) if cut else None


def _longer(recipe: EncoderRecipe, rows: Sequence[Row]) -> Long:
    """Rows that are cut off. No token is shorter than a byte, so most need not be counted."""
    from finetune.tasks.encoder import clean

    most = recipe.max_length
    bound = most - 2  # two tokens are put around a text; cleaning lengthens none but `@a`, to `@user`
    candidates = [row for row in rows if len((text := row.text).encode()) + 4 * text.count("@") > bound]
    longest = heapq.nlargest(COUNTED, candidates, key=lambda row: len(row.text))
    return _count_longer(recipe, [(clean(row.text, recipe.clean), row.line) for row in longest])
