"""Texts that come in pieces at the same place of one JSON value after the other, as in a model's own chunks of an answer.

Nothing says which of them belong together: those at one place are looked at as one text, and what is forbidden in it is replaced
in the piece where it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from governance.guardrails.pii import Finding

Place = tuple[Any, ...]
_DEEPEST = 60


def joined(values: Sequence[Any]) -> list[str]:
    """The texts of several values, those at one place as one. Raises `ValueError` for values nested too deeply."""
    return ["".join(text for _, text in pieces) for pieces in _places(values).values()]


def masked(values: Sequence[Any], find: Callable[[str], Sequence[Finding]]) -> list[Any]:
    """The values with a typed placeholder for each thing that `find` finds in a text, over all its pieces.

    Raises what `find` raises, and `ValueError` for values nested too deeply.
    """
    changed: dict[tuple[int, Place], str] = {}
    for place, pieces in _places(values).items():
        found = find("".join(text for _, text in pieces))
        begin = 0
        for position, text in pieces if found else ():
            changed[position, place] = _cut(text, begin, found)
            begin += len(text)
    return [_with(value, position, (), changed) for position, value in enumerate(values)] if changed else list(values)


def across(output: Sequence[Any], find: Callable[[str], Sequence[Finding]]) -> dict[int, list[Finding]]:
    """What lies across the texts of a response's items, which are read one after the other: by each part's id, what is in it."""
    items = [item["content"] for item in output if isinstance(item, Mapping) and isinstance(item.get("content"), list)]
    parts = [part for item in items for part in item if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    found = find("".join(part["text"] for part in parts)) if len(parts) > 1 else ()
    made: dict[int, list[Finding]] = {}
    begin = 0
    for part in parts if found else ():
        end = begin + len(part["text"])
        within = [each for each in found if each.start < end and begin < each.end and (each.start < begin or end < each.end)]
        made[id(part)] = [Finding(max(each.start, begin) - begin, min(each.end, end) - begin, each.kind) for each in within]
        begin = end
    return made


def _cut(text: str, begin: int, found: Sequence[Finding]) -> str:
    """A piece, which begins at `begin` of its text, without what was found there."""
    end, parts, last = begin + len(text), [], 0
    for each in found:
        if each.end <= begin or each.start >= end:
            continue
        parts.append(text[last : max(each.start - begin, 0)])
        if each.start >= begin:
            parts.append(f"[{each.kind}]")
        last = min(each.end - begin, len(text))
    return "".join([*parts, text[last:]])


def _places(values: Sequence[Any]) -> dict[Place, list[tuple[int, str]]]:
    places: dict[Place, list[tuple[int, str]]] = {}

    def note(value: Any, position: int, place: Place) -> None:
        if len(place) > _DEEPEST:
            raise ValueError("nested too deeply to be looked at")
        if isinstance(value, str):
            places.setdefault(place, []).append((position, value))
        elif isinstance(value, dict):
            for name, item in value.items():
                note(item, position, (*place, name))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                note(item, position, (*place, index))

    for position, value in enumerate(values):
        note(value, position, ())
    return places


def _with(value: Any, position: int, place: Place, changed: dict[tuple[int, Place], str]) -> Any:
    if isinstance(value, str):
        return changed.get((position, place), value)
    if isinstance(value, dict):
        return {name: _with(item, position, (*place, name), changed) for name, item in value.items()}
    if isinstance(value, list):
        return [_with(item, position, (*place, index), changed) for index, item in enumerate(value)]
    return value
