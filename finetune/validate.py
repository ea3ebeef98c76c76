"""All that is wrong with a recipe's data, found without training and without the base model's weights.

What a run checks is checked here, with personal data besides. Tokens are counted only where a row's bytes do not already show
that it fits, and a chat template is tried once for each order of roles: that is why a million rows take no minute.
"""

from __future__ import annotations

import heapq
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import pairs, texts
from finetune.base_model import base_of
from finetune.data import Problem, Row, scan_labelled, split_problems
from finetune.recipe import ClassifyRecipe, EncoderRecipe, Recipe, find
from finetune.schema import AutoRecipe, EmbedRecipe, ReaderRecipe, ReadingRecipe, RerankRecipe

if TYPE_CHECKING:
    from finetune.schema import LanguageRecipe

KEPT = 1000
"""Findings of one kind that are spelled out; the others are counted."""
SHOWN = 5
"""Findings of one kind that people are shown."""
BATCH = 4096
"""Texts whose tokens are counted at once."""
COUNTED = 10_000
"""Of the texts that may be too long the longest so many have their tokens counted."""
FindPii = Callable[[str], Sequence[str]]
"""Kinds of personal data in a text."""


class Findings(list[Problem]):
    """Problems, of which each kind is kept up to `KEPT` times and counted beyond."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()

    def append(self, problem: Problem) -> None:
        self.counts[problem.severity, problem.code] += 1
        if self.counts[problem.severity, problem.code] <= KEPT:
            super().append(problem)

    def extend(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.append(problem)


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
        lines = []
        for severity, code in sorted(self.counts):
            same = [problem for problem in self.problems if (problem.severity, problem.code) == (severity, code)]
            lines += [f"{severity}: {problem}" for problem in same[:SHOWN]]
            if (more := self.counts[severity, code] - len(same[:SHOWN])) > 0:
                lines.append(f"{severity}: … and {more:,} more of [{code}]")
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
    if isinstance(recipe, (ClassifyRecipe, EncoderRecipe)):
        rows = _labelled(recipe, problems, find_pii)
    elif isinstance(recipe, AutoRecipe):
        rows = _tables(recipe, problems, find_pii)
    elif isinstance(recipe, EmbedRecipe | RerankRecipe | ReaderRecipe):
        rows = _pairs(recipe, problems, find_pii)
    else:
        rows = _texts(recipe, problems, find_pii)
    return Report(tuple(problems), dict(problems.counts), rows, time.perf_counter() - began)


def _labelled(recipe: ClassifyRecipe | EncoderRecipe, problems: Findings, find_pii: FindPii | None) -> int:
    data = recipe.data
    columns: dict[str, Any] = {"text": data.text_column, "label": data.label_column}
    columns |= {"labels": recipe.labels, "ignore": data.ignore_columns}
    files = [find(path) for path in (data.train, data.eval) if path is not None]
    found: list[tuple[Row, ...]] = []
    for file in files:
        rows = scan_labelled(file, problems, **columns)
        found.append(rows)
        for row in rows:
            _look(str(file), row.line, data.text_column, row.text, problems, find_pii)
        if isinstance(recipe, EncoderRecipe) and (cut := _longer(recipe, rows)):
            problems.append(texts.truncated(file, cut, len(rows), recipe.max_length, "max_length"))
    if len(found) == 2 and all(found):
        problems.extend(split_problems(found[0], files[0], found[1], files[1], data.text_column))
    return sum(map(len, found))


def _tables(recipe: AutoRecipe, problems: Findings, find_pii: FindPii | None) -> int:
    from finetune import tables

    files = [find(path) for path in (recipe.data.train, recipe.data.eval) if path is not None]
    found = [tables.scan(file, recipe.data, problems) for file in files]
    for file, table in zip(files, found, strict=True):
        for column in tables.texts_of(table, recipe.data):
            for line, text in zip(table.index, table[column], strict=True):
                if isinstance(text, str):
                    _look(str(file), int(line), column, text, problems, find_pii)
    if len(found) == 2 and all(len(table) for table in found):
        problems.extend(tables.split_problems(found[0], files[0], found[1], files[1], recipe.data))
    return sum(map(len, found))


def _pairs(recipe: EmbedRecipe | RerankRecipe | ReaderRecipe, problems: Findings, find_pii: FindPii | None) -> int:
    files = [find(path) for path in (recipe.data.train, recipe.data.eval) if path is not None]
    found: list[list[Any]] = []
    columns = ("question", "context") if isinstance(recipe, ReaderRecipe) else ("query", "positive")
    for file in files:
        rows = pairs.scan(recipe.task, file, problems, loss="" if found else getattr(recipe, "loss", ""))
        found.append(rows)
        for row in rows:
            for number, text in enumerate(row.texts):
                column = columns[number] if number < 2 else "negative"
                _look(str(file), row.line, column, text, problems, find_pii)
        if not isinstance(recipe, ReaderRecipe) and (cut := _longer_pairs(recipe, rows)):  # readers look through windows
            problems.append(texts.truncated(file, cut, len(rows), recipe.max_length, "max_length"))
    if len(found) == 2:
        problems.extend(pairs.leaks(found[0], files[0], found[1], files[1]))
    return sum(map(len, found))


def _longer_pairs(recipe: EmbedRecipe | RerankRecipe, rows: Sequence[Any]) -> int:
    """How many rows have a text, or for rerankers a pair of texts, with more tokens than are read."""
    together = isinstance(recipe, RerankRecipe)
    given = [[row.query + " " + text for text in row.texts[1:]] if together else list(row.texts) for row in rows]
    long = [max(texts, key=len) for texts in given]
    return _count_longer(recipe, [text for text in long if len(text.encode()) > recipe.max_length - 2])


def _count_longer(recipe: ReadingRecipe, candidates: Sequence[str]) -> int:
    """How many of the texts have more tokens than are read; only the longest are looked at."""
    if not candidates:
        return 0
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base_of(recipe) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ready = heapq.nlargest(COUNTED, candidates, key=len)
    parts = (ready[at : at + BATCH] for at in range(0, len(ready), BATCH))
    return sum(len(each.ids) > recipe.max_length for part in parts for each in tokenizer.encode_batch_fast(part))


def _longer(recipe: EncoderRecipe, rows: Sequence[Row]) -> int:
    """How many texts have more tokens than are read. No token is shorter than a byte, so most need not be counted."""
    from finetune.tasks.encoder import clean

    most = recipe.max_length
    bound = most - 2  # two tokens are put around a text; cleaning lengthens none but `@a`, to `@user`
    candidates = [text for row in rows if len((text := row.text).encode()) + 4 * text.count("@") > bound]
    return _count_longer(recipe, [clean(text, recipe.clean) for text in heapq.nlargest(COUNTED, candidates, key=len)])


def _texts(recipe: LanguageRecipe, problems: Findings, find_pii: FindPii | None) -> int:
    from finetune.tasks.language import load_tokenizer

    tokenizer = load_tokenizer(base_of(recipe), recipe.chat_template)
    _tokenizer(recipe, tokenizer, problems)
    train = find(recipe.data.train)
    rows, trained = _file(recipe, train, tokenizer, problems, find_pii, {})
    if recipe.data.eval is not None:
        rows += _file(recipe, find(recipe.data.eval), tokenizer, problems, find_pii, trained)[0]
    return rows


def _tokenizer(recipe: LanguageRecipe, tokenizer: Any, problems: Findings) -> None:
    folder = str(base_of(recipe))
    if tokenizer.eos_token_id is None:
        told = ("The tokenizer has no token that ends a text.", "Set eos_token in its tokenizer_config.json.")
        problems.append(Problem("no_eos", folder, None, None, *told))
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        told = "The token that pads also ends texts. Padding is told by its place here, so the end is still learnt;"
        told += " what masks it by its number elsewhere would teach the model never to stop."
        problems.append(Problem("pad_is_eos", folder, None, None, told, "Give the tokenizer a pad_token of its own.", "warning"))
    if recipe.task == "sft-chat" and not tokenizer.chat_template:
        told = ("The tokenizer has no chat template.", "Give one with chat_template: FILE.jinja.")
        problems.append(Problem("no_chat_template", folder, None, None, *told))


def _special(tokenizer: Any) -> re.Pattern[str] | None:
    """What finds the tokenizer's special tokens in a text."""
    tokens = sorted({token for token in tokenizer.all_special_tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None


def _file(
    recipe: LanguageRecipe,
    path: Path,
    tokenizer: Any,
    problems: Findings,
    find_pii: FindPii | None,
    trained: Mapping[int, tuple[str, int]],
) -> tuple[int, dict[int, tuple[str, int]]]:
    """Rows of a file or folder, and where each of its questions stands; `trained` has those of the training data."""
    if recipe.task == "dpo":
        return _preferences(recipe, path, tokenizer, problems, find_pii, trained)
    task, length = recipe.task, recipe.context_length
    encode, ready = texts.ENCODERS[task], tokenizer.eos_token_id is not None and (task != "sft-chat" or tokenizer.chat_template)
    overhead: dict[Any, int | None] = {}
    """Of each order of roles the tokens that the template adds; None where it has a fault."""
    seen: dict[int, int] = {}
    questions: dict[int, tuple[str, int]] = {}
    longest: list[tuple[int, int, Mapping[str, Any]]] = []
    rows = cut = 0
    special = _special(tokenizer)
    for file, line, row, parts in texts.scan(task, path, problems):
        rows += 1
        for number, text in enumerate(parts):
            column = ("prompt", "response")[number] if task == "sft-instruct" else f"messages[{number}].content"
            column = "text" if task == "cpt" else column
            _look(file, line, column, text, problems, find_pii)
            if special is not None and (mark := special.search(text)):
                told = f"It has {mark[0]!r}, which the tokenizer reads as a sign of its own and not as text."
                fix = "Remove it: the chat template, and the end of a row, write such signs."
                problems.append(Problem("special_token", file, line, column, told, fix, "warning"))
        key = hash(tuple(parts))
        if (first := seen.setdefault(key, line)) != line and task != "cpt":
            texts.repeated(problems, file, line, first)
            continue
        asked = hash(texts.question(parts))
        if where := trained.get(asked):
            problems.append(texts.leak(file, line, *where))
        questions[asked] = file, line
        if not ready or task == "cpt":
            continue
        shape = tuple(message["role"] for message in row["messages"]) if task == "sft-chat" else None
        size = sum(len(text.encode()) for text in parts)
        around = overhead.get(shape)
        if around is not None and size + around <= length:
            continue
        if around is not None and _read_first(row, parts) + around < length:  # cut off perhaps, but something is learnt
            heapq.heappush(longest, (size, rows, row))
            if len(longest) > COUNTED // 10:
                heapq.heappop(longest)
            continue
        found = encode(tokenizer, row, texts.teller(problems, file, line))
        if found is None:
            overhead[shape] = None  # all of this shape are tried: each has this fault
            continue
        overhead.setdefault(shape, _around(tokenizer, row, shape, size))
        cut += len(found.ids) > length
        if not any(label != texts.IGNORED for label in found.labels[1:length]):
            texts.nothing_left(texts.teller(problems, file, line), length)
    counted = (encode(tokenizer, row, lambda *_: None) for _, _, row in longest)
    cut += sum(each is not None and len(each.ids) > length for each in counted)
    if cut:
        problems.append(texts.truncated(path, cut, rows, length, "context_length"))
    if not rows and not problems.counts:
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    return rows, questions


def _preferences(
    recipe: LanguageRecipe,
    path: Path,
    tokenizer: Any,
    problems: Findings,
    find_pii: FindPii | None,
    trained: Mapping[int, tuple[str, int]],
) -> tuple[int, dict[int, tuple[str, int]]]:
    """As `_file`, of prompts with two answers each. Tokens are counted where the bytes do not already show that a row fits."""
    seen: dict[int, int] = {}
    questions: dict[int, tuple[str, int]] = {}
    rows = cut = 0
    for file, line, row, parts in texts.scan("dpo", path, problems):
        rows += 1
        for number, text in enumerate(parts):
            column = "prompt" if isinstance(row["prompt"], str) else f"prompt[{number}].content"
            column = ("chosen", "rejected")[number - len(parts) + 2] if number >= len(parts) - 2 else column
            _look(file, line, column, text, problems, find_pii)
        if (first := seen.setdefault(hash(parts), line)) != line:
            texts.repeated(problems, file, line, first)
            continue
        asked = hash(texts.question(parts, 2))
        if where := trained.get(asked):
            problems.append(texts.leak(file, line, *where))
        questions[asked] = file, line
        chat = not isinstance(row["prompt"], str)
        if tokenizer.eos_token_id is None or (chat and not tokenizer.chat_template):
            continue
        if not chat and sum(len(text.encode()) for text in parts) + 4 <= recipe.context_length:
            continue
        tell = texts.teller(problems, file, line)
        both = [texts.answered(tokenizer, row["prompt"], row[key], tell) for key in ("chosen", "rejected")]
        kept = [each for each in both if each is not None]
        cut += any(len(each.ids) > recipe.context_length for each in kept)
        if any(all(label == texts.IGNORED for label in each.labels[1 : recipe.context_length]) for each in kept):
            texts.nothing_left(tell, recipe.context_length)
    if cut:
        problems.append(texts.truncated(path, cut, rows, recipe.context_length, "context_length"))
    if not rows and not problems.counts:
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    return rows, questions


def _read_first(row: Mapping[str, Any], parts: Sequence[str]) -> int:
    """Bytes of what stands before the first answer: no token is shorter than one."""
    messages = row.get("messages")
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant") if messages else 1
    return sum(len(text.encode()) for text in parts[:first])


def _around(tokenizer: Any, row: Mapping[str, Any], shape: Any, size: int) -> int:
    """The most tokens that a template adds to messages of these roles."""
    if shape is None:
        return 4  # the beginning, the end, and what a tokenizer may put before each part
    return len(tokenizer.apply_chat_template(row["messages"], tokenize=False).encode()) - size + 4


def _look(file: str, line: int, column: str, text: str, problems: Findings, find_pii: FindPii | None) -> None:
    """Personal data, and characters that an earlier reading with a wrong encoding left."""
    if "\ufffd" in text:
        told = ("It has characters that were lost in an earlier conversion (U+FFFD).", "Take the text from its source again.")
        problems.append(Problem("encoding", file, _line(text, "\ufffd", line), column, *told, "warning"))
    if "\0" in text:
        told = ("It has NUL characters (U+0000), which no one writes.", "Take the text from its source again.")
        problems.append(Problem("encoding", file, _line(text, "\0", line), column, *told, "warning"))
    if find_pii is not None and (kinds := find_pii(text)):
        told = f"Personal data: {', '.join(sorted(set(kinds)))}."
        fix = "Remove or mask it: a model may repeat what it was trained on."
        problems.append(Problem("pii", file, line, column, told, fix, "warning"))


def _line(text: str, mark: str, line: int) -> int:
    return line + text[: text.index(mark)].count("\n")
