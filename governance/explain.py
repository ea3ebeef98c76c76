"""What is wrong with a body or a file, said in one line: where, what, and what is accepted there."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

_PLAINER = {"model_type": "must be an object", "dict_type": "must be an object", "tuple_type": "must be a list"}


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """The first thing wrong, in one line: where, what, and which keys are accepted."""
    first = error.errors(include_url=False)[0]
    path = ".".join([*([where] if where else []), *map(_part, first["loc"])])
    if first["type"] == "extra_forbidden":
        return f"{path}: unknown key; accepted: {', '.join(_accepted(model, first['loc'][:-1]))}"
    message = _PLAINER.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return f"{path or 'the body'}: {message[:1].lower()}{message[1:]}"


def _part(part: int | str) -> str:
    """A key as one reads it in one line, whatever was sent as one."""
    told = str(part)
    return told if told.replace("-", "_").isidentifier() or told.isdecimal() else ascii(told)[:60]


def _accepted(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Keys of the model that a path of keys and positions leads to."""
    for part in path:
        if isinstance(part, int):
            continue
        inner = _models(model.model_fields[part].annotation) if part in model.model_fields else []
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]
