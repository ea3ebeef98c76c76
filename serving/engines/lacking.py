"""Which key a request lacks, told from what a model without a signature failed with. Runs in the model's own process."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from serving.engines.rows import Refused

_KEY = re.compile(r"KeyError(?:\(|: )\\*['\"]([^'\"\\]{1,200})\\*['\"](?:\)|\s|$)")


def lacking(pyfunc: Any, data: Any, error: Exception) -> Refused | None:
    """What to tell of an error that a missing key has caused; None where it was none, or where that is not known.

    A key counts as missing where the error names it, a row lacks it, and the model is known to look for it: LangChain tells what
    a chain takes, and a `KeyError` what was looked up.
    """
    text = f"{type(error).__name__}: {error}"
    if "KeyError" not in text:
        return None
    takes = list(_inputs(pyfunc))
    sought = list(dict.fromkeys([*(name for name in takes if repr(name) in text.replace("\\'", "'")), *_KEY.findall(text)]))
    for position, row in enumerate(_rows(data)):
        for name in sought:
            if name not in row:
                there = ", ".join(map(str, list(row)[:20])) or "none"
                wanted = f" The model takes {', '.join(takes)}." if name in takes else ""
                return Refused(f"Row {position} lacks {name!r}, which the model needs.{wanted} Sent: {there}.", name)
    return None


def _inputs(pyfunc: Any) -> Iterator[str]:
    """The keys that a chain says it takes."""
    with suppress(Exception):  # a model may be anything, and its schema fail to be made
        schema = pyfunc._model_impl.lc_model.get_input_jsonschema()
        yield from (name for name in schema.get("required") or () if isinstance(name, str))


def _rows(data: Any) -> list[Mapping[str, Any]]:
    if hasattr(data, "to_dict"):
        data = data.to_dict(orient="records")
    elif isinstance(data, Mapping):
        data = [data]
    elif hasattr(data, "tolist"):
        data = data.tolist()
    return [row for row in data if isinstance(row, Mapping)] if isinstance(data, list) else []
