"""Further scorers of a run: any `mlflow.genai` scorer, code or judge, unchanged, or a function; their answers kept by content.

A scorer that raises or takes too long gives that row an error, which is told apart from a low score and fails every gate on it.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from evals.cache import Cache, digest
from evals.data import RowResult
from evals.judges import asks, given

WORKERS = 8


class RowScorer(Protocol):
    """What `mlflow.genai.scorers.Scorer` is: a name and `run`, which takes what it names of these."""

    name: str

    def run(self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None, trace: Any = None) -> Any: ...


def named(scorer: RowScorer) -> str:
    """What a scorer is, for the cache: its name, class, settings and code, so that a changed one answers anew."""
    dump = getattr(scorer, "model_dump", None)
    settings = _ordered(dump()) if dump else getattr(scorer, "fingerprint", "")
    try:
        code = inspect.getsource(type(scorer))
    except (OSError, TypeError):
        code = ""
    return digest([scorer.name, type(scorer).__qualname__, settings, code, *asks(scorer)])


def _ordered(settings: Any) -> Any:
    """MLflow lists what a scorer needs from a set, so in another order in each process."""
    if not isinstance(settings, Mapping):
        return settings
    return {key: sorted(each) if key == "required_columns" else _ordered(each) for key, each in settings.items()}


async def judge(
    results: Sequence[RowResult],
    scorers: Sequence[RowScorer],
    *,
    timeout: float = 120.0,
    cache: Cache | None = None,
    advance: Callable[[], None] = lambda: None,
    write: Callable[[dict[str, Any]], None] = lambda line: None,
) -> list[RowResult]:
    """The results with what the scorers said of each row that has an answer.

    `timeout` is in seconds for one scorer on one row; a scorer that hangs is left behind in its thread. `write` is told of each
    row as it is done.
    """
    gate = asyncio.Semaphore(WORKERS)
    names = [scorer.name for scorer in scorers]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two scorers are called {sorted(doubled)[0]!r}; give each its own name")
    identities = {scorer.name: named(scorer) for scorer in scorers}

    async def one(result: RowResult) -> RowResult:
        if result.prediction.error is not None:
            return result
        judged = dict(result.judged)
        for scorer in scorers:
            key = [identities[scorer.name], result.row.asked, result.row.expectations(), _content(result)]
            said = cache.get(key) if cache else None
            if said is None:
                async with gate:
                    said = await _run(scorer, result, timeout)
                if cache and not any(item.get("error") for item in said.values()):
                    cache.put(key, said)
            judged |= said
        write({"type": "judged", "id": result.row.id, "judged": judged})
        advance()
        return replace(result, judged=judged)

    return list(await asyncio.gather(*map(one, results)))


def _content(result: RowResult) -> dict[str, Any]:
    """The answer without what differs between two calls that answered the same."""
    return {key: value for key, value in asdict(result.prediction).items() if key not in ("latency_ms", "request_id", "trace_id")}


async def _run(scorer: RowScorer, result: RowResult, timeout: float) -> dict[str, dict[str, Any]]:
    """What a scorer says of a row, by assessment name. It runs in a daemon thread, which cannot keep the process alive."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(value)

    def work() -> None:
        value, error = None, None
        try:
            arguments = given(scorer, result)
            value = None if arguments is None else scorer.run(**arguments)
        except BaseException as problem:
            error = problem if isinstance(problem, Exception) else RuntimeError(f"{type(problem).__name__} was raised")
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name=f"scorer {scorer.name}", daemon=True).start()
    try:
        async with asyncio.timeout(timeout):
            value = await done
        return _said(scorer.name, value)
    except TimeoutError:
        return {scorer.name: {"error": f"timed out after {timeout:g} s"}}
    except Exception as error:
        return {scorer.name: {"error": f"{type(error).__name__}: {error}".removesuffix(": ")[:500]}}


def _said(name: str, value: Any) -> dict[str, dict[str, Any]]:
    """A scorer's answer as MLflow takes it: nothing, a plain value, a Feedback, or several of these."""
    if value is None:
        return {}
    if isinstance(value, bool | int | float | str):
        return {name: {"value": value}}
    found: dict[str, dict[str, Any]] = {}
    for item in value if isinstance(value, list | tuple) else [value]:
        if not hasattr(item, "feedback"):
            raise TypeError(f"it gave {type(item).__name__}; a scorer gives a number, a boolean, a string or a Feedback")
        error = getattr(item, "error", None)
        found[name if item.name in ("", "feedback", None) else item.name] = {
            "value": item.value,
            "rationale": item.rationale,
            "source": item.source.source_type if item.source else None,
            "source_id": item.source.source_id if item.source else None,
            "error": None if error is None else str(getattr(error, "error_message", error)),
        }
    return found


def numeric(said: Mapping[str, Any]) -> float | None:
    """A judgement as a number: yes and true are 1, no and false 0; None for what is no number."""
    value = said.get("value")
    if isinstance(value, str):
        return {"yes": 1.0, "true": 1.0, "pass": 1.0, "no": 0.0, "false": 0.0, "fail": 0.0}.get(value.strip().lower())
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None
