"""Where the texts are: in requests, in answers, and in JSON that is itself a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from governance.guardrails.said import lead

STRUCTURE = frozenset(
    {"type", "role", "id", "call_id", "model", "status", "object", "previous_response_id", "conversation", "url"}
)
"""Keys whose values are names and addresses of the protocol's own; what has no form of a name is looked at all the same."""
FREE = frozenset(["metadata", "custom_inputs", "custom_outputs", "context", "variables", "attributes"])
"""Keys whose values are objects of a client's own, in which no key is the protocol's."""
_NAME = re.compile(r"[\w.:/-]{1,200}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_NUMBER = re.compile(r"\d(?:[-.:/]?\d){8}")  # no name, more likely
LARGE = 10**10
"""Integers from which on one may be a number of a person's."""
PROTOCOL = STRUCTURE | set(
    re.findall(
        r"\w+",
        "input instructions messages content text output arguments name tools tool_choice function parameters properties "
        "required description additionalProperties enum items strict stream store metadata custom_inputs context user "
        "max_output_tokens temperature top_p include reasoning format schema summary image_url detail annotations "
        "parallel_tool_calls truncation",
    )
)
"""Names that requests and answers have by their protocol."""
ROWS = frozenset({"predict", "classify", "embeddings", "http"})
"""Tasks whose requests and answers are data, of which no key is the protocol's own."""
_ENCODED = ("image_url", "arguments", "output")
"""Keys whose texts may be an image's bytes, or JSON."""
_IMAGE = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=]*\Z", re.ASCII)
_OPENS = ("{", "[", '"')
_PLAIN = (int, float)
_NONE = frozenset[str]()
OBJECT = (dict, Mapping)
"""For `isinstance`, which knows a dict at once and asks an abstract class many times as long."""


def texts_of(payload: Mapping[str, Any]) -> list[str]:
    """What people and tools say in a request, oldest first."""
    given = payload.get("input", payload.get("query", ()))
    if isinstance(given, str):
        return [given]
    found: list[str] = []
    for item in given if isinstance(given, list) else ():
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, OBJECT):
            if item.get("role", "user") != "user":
                continue
            for said in (item.get("content"), item.get("output")):
                if isinstance(said, str):
                    found.append(said)
                elif isinstance(said, list):
                    parts = [part.get("text") for part in said if isinstance(part, Mapping)]
                    found.append("".join(part for part in parts if isinstance(part, str)))
    return [text for text in found if text]


def strings_of(value: Any) -> list[str]:
    """Every text in a JSON value but names and addresses, in order."""
    found: list[str] = []

    def noted(text: str) -> str:
        found.append(text)
        return text

    walk(value, noted, STRUCTURE)
    return found


def walk(
    value: Any,
    each: Callable[[str], str],
    skipped: frozenset[str],
    depth: int = 0,
    key: str = "",
    *,
    numbers: bool = False,
    names: list[str] | None = None,
) -> Any:
    """A JSON value with `each(text)` in place of every text in it; `arguments` and `output` that are JSON are looked into, and
    large integers within an object, and names of its values that are no plain words, are looked at as they read.

    `numbers`: integers of seven digits and more, and all names. `names` gets those that are not the protocol's own.
    """
    if isinstance(value, str):
        if key == "image_url" and _IMAGE.match(value):
            return value
        return json_text(value, each) if key in ("arguments", "output") else each(value)
    if isinstance(value, (list, tuple)):  # before what asks an abstract class
        if vector(value):
            return value
        return [walk(item, each, skipped, depth + 1, key, numbers=numbers, names=names) for item in value]
    if isinstance(value, OBJECT):
        if depth > 60:
            raise ValueError("nested too deeply to be looked at")
        made: dict[Any, Any] = {}
        if numbers and (table := _table(value, each)) is not None:
            value = {**value, "data": table}
        for name, item in value.items():  # every call comes by here: what is plain is not asked a second time
            if name not in PROTOCOL and telling(name, item):
                item = told(lead(name), item, each)
            elif isinstance(item, str):
                if not (name in skipped and named(item)):
                    item = walk(item, each, skipped, depth + 1, name) if name in _ENCODED else each(item)
            elif numbers or not (item is None or isinstance(item, _PLAIN)):
                item = walk(item, each, _NONE if name in FREE else skipped, depth + 1, name, numbers=numbers, names=names)
            elif depth and type(item) is int and item >= LARGE:  # at the top are the protocol's own, such as a seed
                item = number(item, each)
            if numbers or name not in PROTOCOL:
                if names is not None:
                    names.append(str(name))
                name = each(name) if numbers or not word(name) else name
            made[name] = item
        return made
    return number(value, each) if type(value) is int and (numbers or value >= LARGE) else value


def word(name: Any) -> bool:
    """Whether the name of a value is too plain to be anything of a person's, or a key."""
    if not isinstance(name, str) or name.isalpha():
        return True
    return len(name) < 20 and name.isidentifier() and name.replace("_", "").isalpha()


def named(value: str) -> bool:
    """Whether a text has the form of a name or an address, and not that of a number."""
    if len(value) <= 200 and value.isascii() and value.isidentifier():
        return True
    return _NAME.fullmatch(value) is not None and (not _NUMBER.search(value) or _UUID.fullmatch(value) is not None)


def telling(name: Any, value: Any) -> bool:
    """Whether the name of a value says what it is, and the value is plain."""
    return type(name) is str and lead(name) != "" and _says(value)


def _says(value: Any) -> bool:
    """Whether a value, or one of a column of them, is plain."""
    if type(value) is list:
        return any(map(_says, value))
    return isinstance(value, (str, int)) and str(value)[:1] not in _OPENS


def told(said: str, value: Any, each: Callable[[str], str]) -> Any:
    """A value whose name says what it is, or a column of them, looked at with that said before it."""
    if isinstance(value, list):
        return [told(said, item, each) if _says(item) else walk(item, each, _NONE, 1, numbers=True) for item in value]
    if isinstance(value, bool):
        return value
    text = str(value)
    looked = each(f"{said}{text}")
    if looked == f"{said}{text}":
        return value
    return looked[len(said) :] if looked.startswith(said) else each(text)


def _table(value: Mapping[str, Any], each: Callable[[str], str]) -> list[Any] | None:
    """The rows of a table whose columns stand beside them (`dataframe_split`), the cells of those that say what they hold looked
    at with that said before them; None where no column says anything."""
    columns, data = value.get("columns"), value.get("data")
    if not isinstance(columns, list) or not isinstance(data, list):
        return None
    leads = {place: said for place, name in enumerate(columns) if isinstance(name, str) and (said := lead(name))}
    return [_row(row, leads, each) for row in data] if leads else None


def _row(row: Any, leads: Mapping[int, str], each: Callable[[str], str]) -> Any:
    if not isinstance(row, list):
        return row
    saying = [(place, said) for place, said in leads.items() if place < len(row) and _says(row[place])]
    made = row.copy() if saying else row
    for place, said in saying:
        made[place] = told(said, row[place], each)
    return made


def vector(value: Sequence[Any]) -> bool:
    """Whether these are a text's coordinates, and no texts."""
    return len(value) > 16 and {float} <= set(map(type, value)) <= {float, int}


def json_text(text: str, each: Callable[[str], str]) -> str:
    """JSON as text, with `each` applied to its texts, keys and numbers as they read, not as they are escaped."""
    if text.lstrip()[:1] in _OPENS:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return each(text)
        changed = _inside(value, each, 0)
        hidden = "\\u" in text or text.count('":') != _names(value)  # escapes, or a name that is there twice
        return text if changed == value and not hidden else orjson.dumps(changed).decode()
    return each(text)


def _inside(value: Any, each: Callable[[str], str], depth: int) -> Any:
    if isinstance(value, str):
        return json_text(value, each) if value[:1] in _OPENS and depth < 8 else each(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return number(value, each)
    if isinstance(value, dict):
        return {
            each(name): told(lead(name), item, each) if telling(name, item) else _inside(item, each, depth + 1)
            for name, item in value.items()
        }
    return [_inside(item, each, depth + 1) for item in value]


def number(value: float, each: Callable[[str], str]) -> Any:
    """A number, or what takes its place."""
    told = str(value)
    masked = each(told) if len(told) > 6 else told
    return value if masked == told else masked


def _names(value: Any) -> int:
    """How many names of values an object has, and those within it."""
    if isinstance(value, dict):
        return len(value) + sum(map(_names, value.values()))
    return sum(map(_names, value)) if isinstance(value, list) else 0
