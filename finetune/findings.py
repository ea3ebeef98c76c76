"""What is found in data that is only looked at: many problems, of which some are kept, and what any text may have wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from finetune.problems import Problem

KEPT = 1000
"""Findings of one kind that are spelled out; the others are counted."""
_ODD = re.compile("[\x01-\x08\x0b\x0e-\x1f\x7f-\x9f]|[ÃÂ][\x80-\xbf]|â€[\u0153\u2018-\u201d\u02dc\u2122\u00a6]|ï»¿")
"""Control characters, and UTF-8 that was read as if a byte were a character."""
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


def look(file: str, line: int, column: str, text: str, problems: Findings, find_pii: FindPii | None) -> None:
    """Personal data, and characters that an earlier reading with a wrong encoding left."""
    if "\ufffd" in text:
        told = ("It has characters that were lost in an earlier conversion (U+FFFD).", "Take the text from its source again.")
        problems.append(Problem("encoding", file, _line(text, "\ufffd", line), column, *told, "warning"))
    if "\0" in text:
        told = ("It has NUL characters (U+0000), which no one writes.", "Take the text from its source again.")
        problems.append(Problem("encoding", file, _line(text, "\0", line), column, *told, "warning"))
    if (mark := _ODD.search(text)) is not None:
        told = (
            "It has control characters" if mark[0] < " " or "\x7f" <= mark[0] <= "\x9f" else "It was read with a wrong encoding"
        )
        told = (f"{told} ({mark[0]!r}).", "Take the text from its source again, or remove them.")
        problems.append(Problem("encoding", file, _line(text, mark[0], line), column, *told, "warning"))
    if find_pii is not None and (kinds := find_pii(text)):
        told = f"Personal data: {', '.join(sorted(set(kinds)))}."
        fix = "Remove or mask it: a model may repeat what it was trained on."
        problems.append(Problem("pii", file, line, column, told, fix, "warning"))


def _line(text: str, mark: str, line: int) -> int:
    return line + text[: text.index(mark)].count("\n")
