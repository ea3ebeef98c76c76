"""A finished evaluation, and the journal it is kept in.

The journal is JSON lines: first what was asked of whom, then each row with its prediction as it arrived, last the MLflow run.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from evals.data import Dataset, RowResult
from evals.judged import numeric
from evals.scorers import score, shared_lead
from evals.stats import Estimate, summarize


class EvaluationError(RuntimeError):
    """An evaluation that could not be completed. One line; `journal` is the file that keeps the predictions made so far."""

    def __init__(self, message: str, journal: Path | None = None) -> None:
        super().__init__(message)
        self.journal = journal


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Parameters
    ----------
    endpoint, dataset, sha256: what was asked, with which file (its path and the hash of its bytes).
    expected_rows: rows in the dataset; `rows` says how many were recorded.
    results: every row with prediction and scores, in the dataset's order.
    estimates: every metric with interval and n, by name; see `evals.scorers.METRICS`.
    journal: the JSONL file with all rows.
    link: address of the run in the MLflow UI where the UI's address was given.
    """

    endpoint: str
    dataset: str
    sha256: str
    expected_rows: int
    results: tuple[RowResult, ...]
    estimates: Mapping[str, Estimate]
    journal: Path
    run_id: str = ""
    experiment_id: str = ""
    link: str = ""
    params: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.results)

    @property
    def errors(self) -> tuple[RowResult, ...]:
        """Rows without an answer: infrastructure errors, which no metric counts."""
        return tuple(result for result in self.results if result.prediction.error is not None)

    @property
    def scorer_errors(self) -> dict[str, int]:
        """Rows that a further scorer could not judge, by its name."""
        names = [name for result in self.results for name, said in result.judged.items() if said.get("error")]
        return dict(Counter(names))

    @property
    def metrics(self) -> dict[str, float | None]:
        return {name: estimate.value for name, estimate in self.estimates.items()}


def open_journal(folder: Path, name: str, dataset: Dataset) -> tuple[Path, Callable[[dict[str, Any] | None], None]]:
    """A new journal's path and the writer of its lines (None closes it).

    A line is one write, so that a crash loses at most the line being written.
    """
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "endpoint"
    path = Path(folder) / f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{uuid4().hex[:6]}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    except OSError as error:
        problem = f"{path}: the run's journal cannot be written ({error.strerror})"
        raise EvaluationError(f"{problem}; give a writable folder") from error
    closed = False

    def write(line: dict[str, Any] | None) -> None:
        nonlocal closed
        if closed:
            return
        if line is None:
            closed = True
            os.close(handle)
            return
        data = (json.dumps(line, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
        try:
            while data:
                data = data[os.write(handle, data) :]
        except OSError as error:
            raise EvaluationError(f"{path}: the run's journal cannot be written ({error.strerror}); free some space") from error

    write({
        "type": "evaluation",
        "endpoint": name,
        "dataset": str(dataset.path),
        "sha256": dataset.sha256,
        "rows": len(dataset),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    })  # fmt: skip
    return path, write


def read_journal(path: str | Path) -> Evaluation:
    """An evaluation back from its journal, scored anew; a run that was cut off has fewer `rows` than `expected_rows`.

    Raises `EvaluationError` for a file that is no journal. A torn last line (the process was killed) is passed over.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror}); give the path of an evaluation's journal") from error
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entries.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise EvaluationError(f"{path}, line {number}: is not a line of an evaluation's journal; give another file") from None
    if not entries or entries[0].get("type") != "evaluation":
        raise EvaluationError(f"{path}: is not an evaluation's journal; give a file that an evaluation wrote")
    head = entries[0]
    results = [RowResult.from_dict(entry) for entry in entries if entry["type"] == "row"]
    results.sort(key=lambda result: result.row.line)
    judged = {entry["id"]: entry["judged"] for entry in entries if entry["type"] == "judged"}
    results = [replace(result, judged=judged.get(result.row.id, {})) for result in results]
    results, _ = score_all(results)
    run = next((entry for entry in entries if entry["type"] == "run"), {})
    return Evaluation(
        endpoint=head["endpoint"],
        dataset=head["dataset"],
        sha256=head["sha256"],
        expected_rows=head["rows"],
        results=tuple(results),
        estimates=estimate(results),
        journal=path,
        run_id=run.get("run_id", ""),
        experiment_id=run.get("experiment_id", ""),
    )


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a finished journal, in one write."""
    data = json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def estimate(results: Sequence[RowResult]) -> dict[str, Estimate]:
    """Every metric of scored rows, those of all rows at once too."""
    found = summarize(result.scores for result in results)
    if any(result.row.target is not None for result in results):
        from evals.classical import overall

        found |= overall(results)
    return found


def newest_first(folder: Path) -> list[Path]:
    """A folder's journals by when their evaluations began; a gate adds a line to an old one, which does not make it new."""
    return sorted(folder.glob("*.jsonl"), key=lambda path: (path.name[:15], path.stat().st_mtime_ns), reverse=True)


def find_journal(folder: Path, name: str) -> Path:
    """The journal that `name` means: a path, an MLflow run's id, or `latest` in the folder. Raises `EvaluationError`."""
    if (path := Path(name)).is_file():
        return path
    journals = newest_first(folder)
    if name == "latest" and journals:
        return journals[0]
    wanted = f'"run_id": "{name}"'.encode()
    for path in journals:
        if name in (path.stem, path.name) or wanted in path.read_bytes():
            return path
    raise EvaluationError(f"{name}: no such evaluation in {folder}; give a journal's path, an MLflow run id or latest")


def score_all(results: Iterable[RowResult]) -> tuple[list[RowResult], int]:
    """The results with their scores, and the `lead` they were scored with (see `evals.scorers.shared_lead`)."""
    results = list(results)
    lead = shared_lead(
        (path for result in results for path in result.row.expected_sources),
        (path for result in results for path in result.prediction.sources),
    )
    names = {name: None for result in results for name in result.judged}

    def scored(result: RowResult) -> RowResult:
        judged = {name: numeric(result.judged[name]) if name in result.judged else None for name in names}
        return replace(result, scores={**score(result.row, result.prediction, lead), **judged})

    return [scored(result) for result in results], lead
