"""The engine of a Python function: rows of arguments in, results out; in a thread where it is not async.

A function that is served is an endpoint, so that its grants, limits and journal are those of any other.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from governance.call import Call, CallError, Engine, Event, bad_request
from serving.engines.rows import Refused, split

log = logging.getLogger("smalti")


def function_engine(
    function: Callable[..., Any], *, raises: tuple[type[Exception], ...] = (ValueError,), tells: bool = False
) -> Engine:
    """An engine that calls `function` with one row's columns as its arguments, once for each row.

    Parameters
    ----------
    function: what it gives must be JSON.
    raises: what it raises to tell the caller something; told as a bad request.
    tells: whether anything else that it raises is told too, by its name: the model that called it goes on from there.
    """
    signature = inspect.signature(function)

    async def run(call: Call) -> AsyncIterator[Event]:
        predictions = []
        for row in _rows(call.payload):
            try:
                signature.bind(**row)
            except TypeError as error:
                raise bad_request(f"{call.endpoint} takes {signature}: {error}.") from None
            try:
                if inspect.iscoroutinefunction(function):
                    predictions.append(await function(**row))
                else:
                    predictions.append(await asyncio.to_thread(function, **row))
            except CallError:
                raise
            except raises as error:
                raise bad_request(str(error) or type(error).__name__) from None
            except Exception as error:
                if not tells:
                    raise
                log.warning("%s raised", call.endpoint, exc_info=True)
                told = f"{call.endpoint} raised {type(error).__name__}: {str(error)[:500]}".rstrip(": ")
                raise CallError(told, status=500, code="INTERNAL_ERROR") from None
        yield Event("result", {"result": {"predictions": predictions}})

    return run


def arguments(function: Callable[..., Any]) -> list[dict[str, Any]]:
    """A function's arguments as the inputs of a signature: `name`, `type` and `required`."""
    kinds = {int: "long", "int": "long", float: "double", "float": "double", bool: "boolean", "bool": "boolean"}
    return [
        {"name": p.name, "type": kinds.get(p.annotation, "string"), "required": p.default is p.empty}
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def _rows(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        key, value = split(payload)
    except Refused as error:
        raise bad_request(error.message, error.param) from None
    if key == "inputs" and isinstance(value, Mapping):
        value = [value]
    elif key == "dataframe_split" and isinstance(value, Mapping):
        value = [dict(zip(value.get("columns") or (), row, strict=False)) for row in value.get("data") or ()]
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise bad_request(f"Field {key!r} must hold the arguments by name.", key)
    return [{str(name): given for name, given in row.items()} for row in value]
