"""Texts share sequences of a fixed length without seeing each other.

Each text keeps its own positions, from 0. Given positions and neither a mask nor a cache, transformers takes every restart for a
new text and attends within it only; a mask of ones, or a cache (on by default), would quietly join them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label of a token that is not learnt, as in PyTorch's cross-entropy."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text: its tokens, and which of them are learnt (the others have the label -100)."""

    ids: Sequence[int]
    labels: Sequence[int]

    @property
    def targets(self) -> int:
        """Tokens that are predicted and learnt: the first is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


Pack = tuple[Tokens, ...]


def pack(texts: Sequence[Tokens], length: int) -> list[Pack]:
    """Put texts, none longer than `length`, into as few sequences of that length as best-fit decreasing finds."""
    room: dict[int, list[int]] = {}  # room that is left -> sequences
    packs: list[list[Tokens]] = []
    for number in sorted(range(len(texts)), key=lambda i: (-len(texts[i].ids), i)):
        size = len(texts[number].ids)
        fitting = min((left for left in room if left >= size), default=None)
        if fitting is None:
            packs.append([texts[number]])
            at, left = len(packs) - 1, length - size
        else:
            at, left = room[fitting].pop(), fitting - size
            if not room[fitting]:
                del room[fitting]
            packs[at].append(texts[number])
        room.setdefault(left, []).append(at)
    return [tuple(each) for each in packs]


def tensors(packs: Sequence[Pack], pad: int, length: int | None = None) -> dict[str, torch.Tensor]:
    """`input_ids`, `position_ids` and `labels` of some packs, (packs, `length`, or the longest). What pads is a text of its own.

    Where no pack has a second text, positions are left out: causal attention alone then keeps apart what pads, which comes last,
    and is computed without a mask, by flash attention.
    """
    import torch

    longest = length or max(sum(len(text.ids) for text in each) for each in packs)
    shape = (len(packs), longest)
    ids, positions, labels = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    for row, each in enumerate(packs):
        at = 0
        for text in each:
            size = len(text.ids)
            ids[row, at : at + size] = torch.tensor(text.ids)
            positions[row, at : at + size] = torch.arange(size)
            labels[row, at + 1 : at + size] = torch.tensor(text.labels[1:])  # no text predicts the next one's first token
            at += size
        positions[row, at:] = torch.arange(longest - at)
    alone = all(len(each) == 1 for each in packs)
    return {"input_ids": ids, "labels": labels} | ({} if alone else {"position_ids": positions})
