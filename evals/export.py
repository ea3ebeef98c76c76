"""Records one evaluation in MLflow; run by `evals/run.py` as a process of its own (`python -m evals.export`).

Standard input is one JSON request; standard output is JSON lines: `{"recorded": n}` as rows are recorded, at last
`{"run_id", "experiment_id", "rows"}` or `{"error"}`. What MLflow prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ATTEMPTS = 3
Report = Callable[[dict[str, Any]], None]


def export(request: Mapping[str, Any], report: Report = lambda line: None) -> dict[str, Any]:
    """Record the request's rows as one MLflow run and check in the store that every row and every assessment is there.

    Rows that MLflow lost are recorded again, one at a time, `ATTEMPTS` times in all. Raises RuntimeError if that is in vain.
    """
    if request["artifact_root"]:  # for the database's default experiment, should it be made here
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = Path(request["artifact_root"]).as_uri()
    import mlflow
    from mlflow import genai
    from mlflow.genai.evaluation import harness

    from evals.scorers import mlflow_name, mlflow_scorers

    harness.tqdm = lambda *args, **kwargs: _Progress(report)  # pyright: ignore[reportPrivateImportUsage]
    _use_wal(request["tracking_uri"])
    mlflow.set_tracking_uri(request["tracking_uri"])
    client = mlflow.MlflowClient()
    experiment_id = _experiment(client, request["experiment"], request["artifact_root"])
    mlflow.set_experiment(experiment_id=experiment_id)

    rows: list[dict[str, Any]] = request["rows"]
    wanted = {row["row"]["id"]: {mlflow_name(key) for key, value in row["scores"].items() if value is not None} for row in rows}
    scorers, missing, reason = mlflow_scorers(request["lead"]), set(wanted), ""
    with mlflow.start_run(experiment_id=experiment_id, run_name=request["run_name"]) as run:
        run_id = run.info.run_id
        mlflow.log_params(request["params"])
        for attempt in range(ATTEMPTS):
            if attempt:
                os.environ["MLFLOW_GENAI_EVAL_MAX_WORKERS"] = "1"
            data = [_record(row) for row in rows if row["row"]["id"] in missing]
            try:
                genai.evaluate(data=data, scorers=scorers)
            except Exception as error:  # whatever it was, the check below tells what is missing
                reason = f" ({type(error).__name__}: {error})".replace("\n", " ")[:500]
                _settle()
            missing = _missing(client, experiment_id, run_id, wanted)
            if not missing:
                break
        if missing:
            lost = f"{len(missing)} of {len(rows)} rows are missing from run {run_id}"
            raise RuntimeError(f"{lost} after {ATTEMPTS} attempts{reason}")
        # Evaluating again replaces the means with those of the rows that were missing, so all are set here.
        mlflow.log_metrics({**_means(rows), **request["metrics"]})
        _keep_journal(client, run, request)
    return {"run_id": run_id, "experiment_id": experiment_id, "rows": len(wanted)}


def _use_wal(tracking_uri: str) -> None:
    """Let a SQLite database be read while it is written (the setting stays with the file); it also halves the time to record."""
    if tracking_uri.startswith("sqlite:///"):
        path = Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        # Where another process holds the database just now, or it is none at all, MLflow is the one to say so.
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=5)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")


def _settle() -> None:
    """Wait for the threads of an evaluation that gave up: they are left to finish their rows and would write behind our back."""
    for thread in threading.enumerate():
        if thread.name.startswith(("MlflowGenAIEvalPredict", "MlflowGenAIEvalScore")):
            thread.join(60)


def _experiment(client: Any, name: str, artifact_root: str | None) -> str:
    """The experiment's id. A new one gets a folder under `artifact_root`, which a server on the same database can show."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "experiment"
        location = (Path(artifact_root) / slug).as_uri() if artifact_root else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise RuntimeError(f"experiment {name!r} is deleted; restore it or name another")
    return found.experiment_id


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in the shape of `mlflow.genai.evaluate`. Its id becomes a tag of its trace, `mlflow.eval.requestId`."""
    expected = row["row"]
    expectations = {key: expected[key] for key in ("expected_facts", "expected_sources", "unanswerable") if expected[key]}
    return {
        "request_id": expected["id"],
        "inputs": {"question": expected["question"]},
        "outputs": row["prediction"],
        "expectations": expectations,
    }


def _missing(client: Any, experiment_id: str, run_id: str, wanted: Mapping[str, set[str]]) -> set[str]:
    """Ids of rows that are not whole in the store. Their remains, and second copies, are deleted."""
    import mlflow
    from mlflow.tracing.constant import TraceTagKey

    traces = mlflow.search_traces(locations=[experiment_id], run_id=run_id, include_spans=False, return_type="list")
    whole: set[str] = set()
    broken: list[str] = []
    for trace in traces:
        row_id = trace.info.tags.get(TraceTagKey.EVAL_REQUEST_ID, "")
        scored = {assessment.name for assessment in trace.info.assessments or () if assessment.feedback is not None}
        if row_id in wanted and row_id not in whole and wanted[row_id] <= scored:
            whole.add(row_id)
        else:
            broken.append(trace.info.trace_id)
    for start in range(0, len(broken), 100):
        client.delete_traces(experiment_id=experiment_id, trace_ids=broken[start : start + 100])
    return wanted.keys() - whole


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    from evals.scorers import mlflow_name

    means: dict[str, float] = {}
    for key in rows[0]["scores"]:
        values = [row["scores"][key] for row in rows if row["scores"][key] is not None]
        if values:
            means[f"{mlflow_name(key)}/mean"] = sum(values) / len(values)
    return means


def _keep_journal(client: Any, run: Any, request: Mapping[str, Any]) -> None:
    """Put the journal among the run's artifacts, as `rows.jsonl`."""
    location = urlsplit(run.info.artifact_uri)
    proxied = location.scheme == "mlflow-artifacts" and not request["tracking_uri"].startswith("http")
    if proxied and request["artifact_root"]:
        # The server keeps what it calls mlflow-artifacts:/… under its artifact folder; without the server we go there directly.
        target = Path(request["artifact_root"]) / unquote(location.path).lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(request["journal"], target / "rows.jsonl")
    elif not proxied:
        with open(request["journal"], encoding="utf-8") as file:
            client.log_text(run.info.run_id, file.read(), "rows.jsonl")


class _Progress:
    """Stands in for the evaluator's tqdm bar."""

    def __init__(self, report: Report) -> None:
        self.report, self.bar_format = report, ""

    def update(self, n: int = 1) -> None:
        self.report({"recorded": n})

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


def main() -> int:
    # The real standard output is for the parent alone: whatever else is printed, in C code too, goes to standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as channel:
        os.dup2(2, 1)

        def report(line: Mapping[str, Any]) -> None:
            channel.write(json.dumps(line) + "\n")

        try:
            result = export(json.load(sys.stdin), report)
        except Exception as error:
            import traceback

            traceback.print_exc()
            text = str(error).strip() or type(error).__name__
            report({"error": text.splitlines()[0]})
            return 1
        report(result)
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
