"""Whether rows fit into what a language model reads: by their bytes, then by the tokens of many prompts at a time, then exactly.

No token is shorter than a byte, so most rows need no tokenizer. Where a prompt may fill all that is read, so that nothing would
be learnt, the prompts are split into tokens together; what is near the bound is encoded as a run would. Rows of which only the
end may be cut off are counted, the longest of them alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import texts
from finetune.findings import Findings
from finetune.packing import Tokens

COUNTED = 1000
"""Of the rows that may be too long the longest so many have their tokens counted."""
BATCH = 1024
"""Prompts whose tokens are counted at once."""
SLACK = 16
"""Tokens by which two texts may differ from the same texts as one."""
Encode = Callable[[Mapping[str, Any], texts.Tell], Sequence[Tokens] | None]
"""A row's sequences as a run would learn them, all with the same prompt; None where it has a fault, which is told."""


@dataclass(frozen=True)
class _Row:
    file: str
    line: int
    row: Mapping[str, Any]
    size: int
    """Bytes of its prompt and its longest answer."""
    before: Sequence[str]
    """The texts before the first answer."""
    around: int
    """The most tokens that a template adds."""


class Fits:
    """What of a file's rows is too long.

    Parameters
    ----------
    length: tokens that are read.
    count: tokens of a row's longest sequence, more quickly than `encode` where there is a way.
    around: the most tokens that a template adds to a row that has such a shape, asked once for each shape.
    """

    def __init__(
        self,
        tokenizer: Any,
        length: int,
        problems: Findings,
        encode: Encode,
        count: Callable[[Mapping[str, Any]], int],
        around: Callable[[Mapping[str, Any], int], int],
    ) -> None:
        self._length, self._problems, self._around = length, problems, around
        self._encode, self._tokens = encode, count
        self._fast = getattr(tokenizer, "backend_tokenizer", None)  # those in Python have none
        self._known: dict[Any, int | None] = {}
        """Of each shape the tokens that the template adds; None where it has a fault."""
        self._waiting: list[_Row] = []
        self._longest: list[tuple[int, int, _Row]] = []
        self._passed = False
        """Whether rows that may be too long were not counted."""
        self._cut, self._most = 0, (0, 0)

    def add(self, file: str, line: int, row: Mapping[str, Any], size: int, before: Sequence[str], shape: Any) -> None:
        """Look at a row. `size`: bytes of its prompt and its longest answer; `before`: the texts before the first answer;
        `shape`: what decides what a template adds, or None where each row is a case of its own."""
        around = None if shape is None else self._known.get(shape)
        if around is None:
            if self._exact(file, line, row):
                if shape is not None and shape not in self._known:
                    self._known[shape] = self._around(row, size)
            elif shape is not None:
                self._known[shape] = None  # all of this shape are tried: each has this fault
            return
        if size + around <= self._length:
            return
        found = _Row(file, line, row, size, before, around)
        if sum(len(text.encode()) for text in before) + around < self._length:
            self._later(found)
            return
        self._waiting.append(found)
        if len(self._waiting) >= BATCH:
            self._count()

    def done(self, path: Path, rows: int) -> None:
        """Look at what is left, and tell how many rows are cut off."""
        self._count()
        for _, _, each in self._longest:
            self._look(each.line, self._tokens(each.row))
        if self._cut:
            least = self._passed and self._cut >= len(self._longest)
            self._problems.append(
                texts.truncated(path, self._most[1], self._cut, rows, self._length, "context_length", least=least)
            )

    def _later(self, row: _Row) -> None:
        """It is cut off perhaps, but something is learnt."""
        heapq.heappush(self._longest, (row.size, row.line, row))
        if len(self._longest) > COUNTED:
            heapq.heappop(self._longest)
            self._passed = True

    def _count(self) -> None:
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        if self._fast is None:
            sizes = [self._length] * len(rows)
        else:
            found = self._fast.encode_batch_fast(["\n".join(row.before) for row in rows], add_special_tokens=False)
            sizes = [len(each.ids) for each in found]
        for row, size in zip(rows, sizes, strict=True):
            if size + row.around + SLACK < self._length:
                self._later(row)
            else:
                self._exact(row.file, row.line, row.row)

    def _exact(self, file: str, line: int, row: Mapping[str, Any]) -> bool:
        """Encode a row; whether it has no fault."""
        tell = texts.teller(self._problems, file, line)
        found = self._encode(row, tell)
        if found is None:
            return False
        self._look(line, max(len(each.ids) for each in found))
        if not all(any(label != texts.IGNORED for label in each.labels[1 : self._length]) for each in found):
            texts.nothing_left(tell, self._length)
        return True

    def _look(self, line: int, tokens: int) -> None:
        if tokens > self._length:
            self._cut, self._most = self._cut + 1, max(self._most, (tokens, line))
