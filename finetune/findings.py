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
_PLAIN = bytes((0x09, 0x0A, 0x0D, *range(0x20, 0x7F)))
"""What texts in ASCII hold."""
_APART = "\n" * 40
"""Stands between texts that are looked at together: more than any pattern of personal data looks back."""
GROUP = 32
"""Rows that are looked at together."""
FindPii = Callable[[str], Sequence[str]]
"""Kinds of personal data in a text."""
Columns = Callable[[int], str]


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


class Looks:
    """What any text may have wrong: personal data, characters that an earlier reading with a wrong encoding left, and tokens of
    the tokenizer's own. Texts are looked at a group at a time, and one by one only where the group has something.

    Parameters
    ----------
    problems: get what is found, when a group is full and on `done`.
    find_pii: finds nothing in texts that stand apart (by lines without content) only if there is nothing in any of them.
    special: tokens that are no text.
    """

    def __init__(self, problems: Findings, find_pii: FindPii | None, special: Iterable[str] = ()) -> None:
        tokens = sorted({token for token in special if token}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, tokens))) if tokens else None
        self._begins = {token[:2] for token in tokens}
        self._problems, self._find_pii = problems, find_pii
        self._rows: dict[bool, list[tuple[str, int, Sequence[str], Columns]]] = {True: [], False: []}

    def add(self, file: str, line: int, texts: Sequence[str], columns: Columns) -> None:
        """Look at a row's texts, now or later. `columns` gives the name of each by its number."""
        ours = self._rows[all(map(str.isascii, texts))]  # what is beyond ASCII takes longer to look at
        ours.append((file, line, texts, columns))
        if len(ours) >= GROUP:
            self._look(ours)

    def done(self) -> None:
        """Look at what is left."""
        for rows in self._rows.values():
            self._look(rows)

    def _look(self, rows: list[tuple[str, int, Sequence[str], Columns]]) -> None:
        if self._marked(_APART.join([text for _, _, texts, _ in rows for text in texts])):
            for row in rows:
                if self._marked(_APART.join(row[2])):
                    self._one(*row)
        rows.clear()

    def _marked(self, text: str) -> bool:
        """Whether there may be something in it."""
        if text.isascii():
            odd = bool(text.encode().translate(None, _PLAIN))
        else:
            odd = "\ufffd" in text or "\0" in text or _ODD.search(text) is not None
        if odd or any(begin in text for begin in self._begins):
            return True
        return self._find_pii is not None and bool(self._find_pii(text))

    def _one(self, file: str, line: int, texts: Sequence[str], columns: Columns) -> None:
        def tell(code: str, number: int, line: int, *told: str) -> None:
            self._problems.append(Problem(code, file, line, columns(number), *told, severity="warning"))

        for number, text in enumerate(texts):
            if "\ufffd" in text:
                told = "It has characters that were lost in an earlier conversion (U+FFFD)."
                tell("encoding", number, _line(text, "\ufffd", line), told, "Take the text from its source again.")
            if "\0" in text:
                told = "It has NUL characters (U+0000), which no one writes."
                tell("encoding", number, _line(text, "\0", line), told, "Take the text from its source again.")
            if (mark := _ODD.search(text)) is not None:
                control = mark[0] < " " or "\x7f" <= mark[0] <= "\x9f"
                told = f"{'It has control characters' if control else 'It was read with a wrong encoding'} ({mark[0]!r})."
                fix = "Take the text from its source again, or remove them."
                tell("encoding", number, _line(text, mark[0], line), told, fix)
            if self._special is not None and (mark := self._special.search(text)):
                told = f"It has {mark[0]!r}, which the tokenizer reads as a sign of its own and not as text."
                tell("special_token", number, line, told, "Remove it: the chat template, and the end of a row, write such signs.")
            if self._find_pii is not None and (kinds := self._find_pii(text)):
                told = f"Personal data: {', '.join(sorted(set(kinds)))}."
                tell("pii", number, line, told, "Remove or mask it: a model may repeat what it was trained on.")


def _line(text: str, mark: str, line: int) -> int:
    return line + text[: text.index(mark)].count("\n")
