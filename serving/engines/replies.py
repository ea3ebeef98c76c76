"""What a model gives, and what it fails with, as JSON for the server. Runs in the model's own process."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from typing import Any

from serving.engines.rows import Refused

_TASKS = re.compile(r"\d+ tasks? failed\. Errors: \{\d+: ['\"](?:error: )?(.*)", re.DOTALL)
_CALL = re.compile(r"(\w+)\((['\"]?)(.*)\2,?\)", re.DOTALL)


def plain(value: Any) -> Any:
    """What JSON does not know: numbers of numpy, times and tables of pandas, objects of MLflow's. Tables are rows, as MLflow's
    own server gives them."""
    kind = type(value).__name__
    if kind in ("NaTType", "NAType"):
        return None
    if kind == "Series":
        value = value.to_frame()
    if isinstance(value, set | frozenset | Iterator):
        return list(value)
    if (dense := getattr(value, "toarray", None)) is not None:  # a sparse matrix
        return dense()
    for method in ("to_dict", "model_dump", "tolist", "isoformat"):
        if (give := getattr(value, method, None)) is not None:
            return value.to_dict(orient="records") if hasattr(value, "iloc") and hasattr(value, "columns") else give()
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    return str(value)


def told(error: Exception) -> dict[str, Any]:
    """An error as the server is told of it: what the client did wrong, or that the model failed.

    What a model raises is answered with 400, as MLflow's and Databricks' servers do: it would be raised again, so nobody should
    ask again (mlflow/pyfunc/scoring_server). MLflow's own errors keep their status.
    """
    if isinstance(error, Refused):
        return {"message": error.message, "status": 400, "param": error.param}
    traceback.print_exception(error)
    text = " ".join(str(error).split())[:500]
    code = getattr(error, "error_code", "") if type(error).__name__ == "MlflowException" else None
    if text.startswith("Failed to enforce schema"):  # what follows is all of the data and of the signature
        text = f"The request does not fit the model's signature: {str(error).rpartition('Error: ')[2]}"
    if code is not None and (failed := _TASKS.match(text)):  # of a chain, whose errors MLflow gathers
        code, text = None, _said(failed[1])
    wrong = code in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")
    message = text if wrong or (code is None and type(error).__name__ == "MlflowException") else f"{type(error).__name__}: {text}"
    return {"message": message, "status": 400 if wrong or code is None else 500, "param": None, "failed": not wrong}


def _said(text: str) -> str:
    """The first of several errors that stand in one message as Python writes them."""
    first = text.partition(" Traceback (most recent call last)")[0].partition("Traceback (most recent call last)")[0]
    plain = re.sub(r"\\+n", " ", first).replace("\\'", "'").replace('\\"', '"')
    called = _CALL.fullmatch(plain.strip())
    return " ".join((f"{called[1]}: {called[3]}" if called else plain).split())
