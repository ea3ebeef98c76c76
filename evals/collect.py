"""Rows of datasets from what was asked and answered: the journal's rows, and MLflow traces that people have reviewed.

What an endpoint answered is no expectation. Rows of the journal carry it as `answer`, beside what people said of it; expectations
come from people: their expectations and labels on traces, and review queues (`evals.review`).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.ask import prediction

Redact = Callable[[str], str]
"""A text without personal data."""
EXPECTED = {
    "expected_response": "expected_answer",
    "expected_answer": "expected_answer",
    "expected_facts": "expected_facts",
    "expected_sources": "expected_sources",
    "unanswerable": "unanswerable",
    "target": "target",
}
"""What MLflow calls an expectation, and what a dataset does."""


def from_journal(
    rows: Iterable[Mapping[str, Any]],
    *,
    statuses: Sequence[int] = (200,),
    until: str | None = None,
    caller: str | None = None,
    match: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    redact: Redact | None = None,
) -> list[dict[str, Any]]:
    """Dataset rows of the calls that were asked from outside, each question once, in the order of the journal.

    Parameters
    ----------
    rows: of the inference table, their `request` and `response` as JSON text or parsed.
    statuses: only calls with one of these.
    until: only calls before this time, ISO 8601 as the journal writes it.
    caller: only this caller's. Who asked is never written to a dataset.
    match: only questions in which this regular expression is found.
    sample: so many at most. Which ones depends on `seed` and on the calls' ids alone, so that the same calls stay chosen when
        others are added.
    redact: takes personal data out of everything that is kept.

    Raises
    ------
    ValueError: `match` is no regular expression.
    """
    try:
        wanted = re.compile(match) if match else None
    except re.error as error:
        raise ValueError(f"{match!r} is no regular expression ({error}); mend it") from None
    clean = redact or (lambda text: text)
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for row in rows:
        if row.get("parent_request_id") or row.get("status_code") not in statuses:
            continue
        if (caller and row.get("requester") != caller) or (until and row["request_time"] >= until):
            continue
        asked = asked_of(_parsed(row.get("request")))
        if not asked or (wanted and not wanted.search(_plain(asked))):
            continue
        made = _row(asked, clean)
        answer = answer_of(_parsed(row.get("response")))
        if answer is not None and answer.text:
            made |= {"answer": clean(answer.text), **({"answer_sources": list(answer.sources)} if answer.sources else {})}
        identity = str(row["databricks_request_id"])
        made |= {"id": identity, "endpoint": row["endpoint_name"], "request_time": row["request_time"]}
        found.setdefault(normal(_plain(asked)), (identity, made))
    kept = list(found.values())
    if sample is not None and len(kept) > sample:
        drawn = set(sorted((identity for identity, _ in kept), key=lambda each: _rank(seed, each))[:sample])
        kept = [(identity, made) for identity, made in kept if identity in drawn]
    return [made for _, made in kept]


def from_traces(traces: Iterable[Any], *, redact: Redact | None = None) -> list[dict[str, Any]]:
    """Dataset rows of the MLflow traces on which a person gave an assessment.

    Expectations become the row's; what people said of the answer is kept as `feedback`, by its name. Of several people who said
    something by one name the last counts.
    """
    clean = redact or (lambda text: text)
    found: dict[str, dict[str, Any]] = {}
    for trace in traces:
        human = [each for each in trace.info.assessments or () if each.source and each.source.source_type == "HUMAN"]
        human = [each for each in human if getattr(each, "valid", True) is not False]
        if all("mlflow.assessment.sourceRunId" in (each.metadata or {}) for each in human):
            continue  # an evaluation's trace carries the expectations that its dataset had: nobody has looked at that answer
        root = next((span for span in trace.data.spans if span.parent_id is None), None)
        asked = asked_of(root.inputs) if human and root else None
        if not asked or root is None:
            continue
        row = {**_row(asked, clean), "id": trace.info.trace_id}
        answer = answer_of(root.outputs)
        if answer is not None and answer.text:
            row["answer"] = clean(answer.text)
        for each in sorted(human, key=lambda each: each.last_update_time_ms or 0):
            if each.expectation is not None:
                key = EXPECTED.get(each.name)
                row |= {key: _expected(key, each.value)} if key else {each.name: each.value}
            else:
                row.setdefault("feedback", {})[each.name] = each.value
        if row.get("unanswerable") and row.get("expected_facts"):
            row.pop("unanswerable")  # whoever wrote down facts has seen an answer
        found[normal(_plain(asked))] = row
    return list(found.values())


def write(path: Path, rows: Iterable[Mapping[str, Any]], *, append: bool = False) -> int:
    """Write rows as a dataset, all or none; gives how many. With `append`, rows whose question is there already are left out.

    Raises
    ------
    DatasetError: there would be no rows, or `path` holds something that is no dataset. FileExistsError: it is there already.
    """
    from evals.data import DatasetError, load_dataset

    before = b""
    known: set[str] = set()
    if path.exists():
        if not append:
            raise FileExistsError(f"{path} is there already; give another --out, or --append")
        known = {normal(row.question) for row in load_dataset(path)}
        before = path.read_bytes().rstrip(b"\n") + b"\n"
    new = [row for row in rows if normal(_plain(row.get("question") or row["inputs"])) not in known]
    if not new and not before:
        raise DatasetError(path, "would hold no rows", "ask for other ones: nothing was found that fits")
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(before + "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
    try:
        load_dataset(partial, sealed=False)
        partial.replace(path)
    except DatasetError as error:
        raise DatasetError(path, error.problem, error.fix, line=error.line, key=error.key) from None
    finally:
        partial.unlink(missing_ok=True)
    return len(new)


def asked_of(request: Any) -> str | dict[str, Any] | None:
    """What a request asks: the last thing that a person said in it, or the one record of a classical call; None for others."""
    if isinstance(request, str):
        return request.strip() or None
    if not isinstance(request, Mapping):
        return None
    records = request.get("dataframe_records")
    if isinstance(records, list):
        return dict(records[0]) if len(records) == 1 and isinstance(records[0], Mapping) and records[0] else None
    for key in ("question", "input", "messages", "query", "prompt"):
        if (value := request.get(key)) is not None:
            return _said(value)
    return None


def answer_of(response: Any) -> Any:
    """The `Prediction` that an answer's body holds; None for one that cannot be read."""
    if isinstance(response, str):
        from evals.data import Prediction

        return Prediction(text=response)
    try:
        return prediction(response, None, "")
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        return None


def normal(text: str) -> str:
    """A question without what does not make it another: case, space, punctuation at its ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" ?!.")


def _said(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if not isinstance(value, list):
        return None
    for item in reversed(value):
        if isinstance(item, Mapping) and item.get("role") == "user":
            content = item.get("content")
            if isinstance(content, list):
                content = "\n".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
            return str(content or "").strip() or None
    return None


def _row(asked: str | dict[str, Any], clean: Redact) -> dict[str, Any]:
    if isinstance(asked, str):
        return {"question": clean(asked)}
    return {"inputs": {key: clean(value) if isinstance(value, str) else value for key, value in asked.items()}}


def _plain(asked: Any) -> str:
    return asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False, sort_keys=True)


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _expected(key: str, value: Any) -> Any:
    if key in ("expected_facts", "expected_sources"):
        return [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
    if key == "unanswerable":
        return value is True or str(value).lower() in ("true", "yes")
    return value if key == "target" else str(value)


def _rank(seed: int, identity: str) -> bytes:
    return hashlib.sha256(f"{seed}:{identity}".encode()).digest()
