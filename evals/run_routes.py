"""Evaluations over HTTP: `/api/2.0/smalti/evaluations`; for administrators, whose command line made them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from fastapi import APIRouter, Depends
from starlette.responses import HTMLResponse, Response

LISTED = 200
"""Evaluations that are listed, the newest."""
FAILURES = 200
"""Rows that went wrong that are given."""
_ID = re.compile(r"[\w.-]{1,200}")
_ROW = b'{"type": "row"'
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox allow-popups; frame-ancestors 'self'"


class Who(Protocol):
    """What is known of a caller."""

    @property
    def admin(self) -> bool: ...


def router(folder: Path, *, caller: Callable[..., Any], refuse: Callable[[int, str], Exception]) -> APIRouter:
    """Routes of the evaluations whose journals a folder holds.

    Parameters
    ----------
    folder: where `evals.run.evaluate` writes journals; need not exist yet.
    caller: FastAPI dependency that gives the authenticated caller.
    refuse: an error of a status and a message, as the application answers with.
    """
    routes = APIRouter(prefix="/api/2.0/smalti/evaluations", tags=["evaluations"])
    known: dict[Path, tuple[tuple[int, int], dict[str, Any] | None]] = {}

    def owner(who: Any = Depends(caller)) -> Any:
        if not who.admin:
            raise refuse(403, "Evaluations are for administrators.")
        return who

    def journal(identifier: str) -> Path:
        path = folder / f"{identifier}.jsonl"
        if not _ID.fullmatch(identifier) or not path.is_file():
            raise refuse(404, f"There is no evaluation {identifier[:80]!r}; GET /api/2.0/smalti/evaluations lists them.")
        return path

    def read(identifier: str) -> Any:
        from evals.journal import EvaluationError, read_journal

        try:
            return read_journal(journal(identifier))
        except EvaluationError as error:
            raise refuse(400, str(error)) from None

    def summary(path: Path) -> dict[str, Any] | None:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if path not in known or known[path][0] != stamp:
            known[path] = (stamp, _summary(path))
        return known[path][1]

    @routes.get("", dependencies=[Depends(owner)])
    def listing() -> dict[str, Any]:
        from evals.journal import newest_first

        paths = newest_first(folder)[:LISTED]
        return {"evaluations": [found for path in paths if (found := summary(path))]}

    @routes.get("/compare", dependencies=[Depends(owner)])
    def compare(before: str, after: str) -> dict[str, Any]:
        from evals.compare import compare_runs
        from evals.journal import EvaluationError

        try:
            found = compare_runs(journal(before), journal(after))
        except EvaluationError as error:
            raise refuse(400, str(error)) from None
        differences = [asdict(item) for item in found.differences if item.n]
        return {"sentence": found.sentence(), "rows": found.rows, "left_out": found.left_out, "differences": differences}

    @routes.get("/{identifier}", dependencies=[Depends(owner)])
    def one(identifier: str) -> dict[str, Any]:
        from evals.report import failures, to_json
        from evals.scorers import described

        found = read(identifier)
        told, wrong = to_json(found), failures(found, None)
        metrics = [
            {
                "name": name, "value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n,
                "words": described(name).words, "bounded": described(name).bounded,
            }
            for name, estimate in found.estimates.items()
            if estimate.n
        ]  # fmt: skip
        kept = ("endpoint", "dataset", "sha256", "rows", "expected_rows", "errors", "scorer_errors", "run_id", "experiment_id")
        return {
            **(summary(found.journal) or {}), **{key: told[key] for key in kept}, "metrics": metrics,
            "wrong": len(wrong), "failures": [asdict(failure) for failure in wrong[:FAILURES]],
        }  # fmt: skip

    @routes.get("/{identifier}/report", dependencies=[Depends(owner)])
    def report(identifier: str) -> Response:
        from evals.html import page

        found = read(identifier)
        traces = f"/mlflow/#/experiments/{found.experiment_id}/traces?selectedEvaluationId={{trace_id}}"
        shown = page(found, traces if found.experiment_id else None)
        return HTMLResponse(shown, headers={"content-security-policy": _REPORT_POLICY, "x-content-type-options": "nosniff"})

    return routes


def _summary(path: Path) -> dict[str, Any] | None:
    """What a journal says of itself, without scoring its rows; None for another file."""
    lines = path.read_bytes().split(b"\n")
    head = _object(lines[0])
    if head.get("type") != "evaluation":
        return None
    rest = [_object(line) for line in lines[1:] if line and not line.startswith(_ROW)]
    run: Mapping[str, Any] = next((each for each in rest if each.get("type") == "run"), {})
    gate: Mapping[str, Any] = next((each for each in reversed(rest) if each.get("type") == "gate"), {})
    rows = len({str((_object(line).get("row") or {}).get("id")) for line in lines[1:-1] if line.startswith(_ROW)})
    return {
        "id": path.stem,
        "endpoint": head.get("endpoint", ""),
        "dataset": head.get("dataset", ""),
        "sha256": head.get("sha256", ""),
        "started": head.get("started", ""),
        "rows": rows,
        "expected_rows": head.get("rows", 0),
        "run_id": run.get("run_id", ""),
        "experiment_id": run.get("experiment_id", ""),
        "metrics": run.get("metrics") or {},
        "gate": gate.get("outcome", ""),
        "conditions": gate.get("conditions", []),
    }


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # torn when its process was killed
        return {}
    return found if isinstance(found, dict) else {}
