from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from evals.data import Prediction
from evals.journal import Evaluation, EvaluationError, read_journal
from evals.run import _child_environment, evaluate
from tests.live import mlflow_store


def dataset(folder: Path, rows: int) -> Path:
    path = folder / f"rows{rows}.jsonl"
    with path.open("w") as file:
        for number in range(rows):
            row: dict[str, object] = {"id": f"row-{number}", "question": f"Question {number}?"}
            if number % 5:
                row |= {"expected_facts": [f"fact {number}"], "expected_sources": [f"docs/{number}.md"]}
            else:
                row["unanswerable"] = True
            file.write(json.dumps(row) + "\n")
    return path


async def answer(question: str) -> Prediction:
    number = int(question.split()[1].rstrip("?"))
    await asyncio.sleep(0.001 * (number % 7))  # so that answers arrive out of order
    sources = [f"{number - number % 2}.md", f"{number}.md", f"{number}.md"]
    return Prediction(f"The fact {number}.", sources, number % 10 == 0, request_id=f"request-{number}", trace_id=f"tr-{number}")


def sql(home: Path, query: str) -> list[tuple]:
    connection = sqlite3.connect(home / "mlflow.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@dataclass
class Done:
    home: Path
    evaluation: Evaluation
    printed: tuple[str, str]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A hundred rows, recorded from another process so that whatever is printed can be seen."""
    home = tmp_path_factory.mktemp("home")
    mlflow_store(home)
    path = dataset(home, 100)
    code = f"""
import asyncio
from tests.evals.test_run import answer
from evals import evaluate
from pathlib import Path
asyncio.run(evaluate("assistant", {str(path)!r}, answer, tracking_uri="sqlite:///mlflow.db", folder=Path("evals"),
    params={{"chat_model": "none"}}))
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONWARNINGS": "error",
        "MLFLOW_TRACE_SAMPLING_RATIO": "0.1",
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    [journal] = (home / "evals").glob("*.jsonl")
    return Done(home, read_journal(journal), (done.stdout, done.stderr))


def test_no_row_is_lost_and_nothing_is_printed(hundred: Done) -> None:
    assert hundred.printed == ("", "")
    assert (hundred.evaluation.rows, hundred.evaluation.expected_rows, len(hundred.evaluation.errors)) == (100, 100, 0)
    run_id = hundred.evaluation.run_id
    ids = sql(
        hundred.home,
        "select t.value from trace_tags t join entity_associations e on e.source_id = t.request_id "
        f"where t.key = 'mlflow.eval.requestId' and e.destination_id = '{run_id}'",
    )
    assert sorted(ids) == sorted((f"row-{number}",) for number in range(100))
    scores = sum(value is not None for result in hundred.evaluation.results for value in result.scores.values())
    assert sql(hundred.home, "select count(*) from assessments where assessment_type = 'feedback'") == [(scores,)]


def test_mlflow_holds_the_same_numbers_and_what_was_asked(hundred: Done) -> None:
    metrics = dict(sql(hundred.home, "select key, value from latest_metrics"))
    ours = hundred.evaluation.metrics
    for name in ("hit@1", "hit@5", "mrr", "contains", "f1", "abstention_accuracy", "abstention_precision", "abstention_recall"):
        assert metrics[name.replace("@", "_at_") + "/mean"] == pytest.approx(ours[name]), name
    assert metrics["latency_p95_ms"] == pytest.approx(ours["latency_p95_ms"])
    assert (metrics["rows"], metrics["errors"]) == (100, 0)
    # Even rows find their source first, odd ones second; each fifth row is unanswerable, each tenth abstains.
    assert (ours["hit@1"], ours["hit@3"], ours["mrr"]) == (0.5, 1.0, 0.75)
    assert (ours["abstention_precision"], ours["abstention_recall"], ours["abstention_accuracy"]) == (1.0, 0.5, 0.9)
    params = dict(sql(hundred.home, "select key, value from params"))
    assert (params["endpoint"], params["rows"], params["chat_model"]) == ("assistant", "100", "none")
    assert params["dataset_sha256"] == hundred.evaluation.sha256
    assert sql(hundred.home, "select status from runs") == [("FINISHED",)]


def test_the_experiment_is_one_a_server_on_the_same_database_can_show(hundred: Done) -> None:
    [(location,)] = sql(hundred.home, "select artifact_location from experiments where name = 'smalti'")
    assert location == (hundred.home / "mlartifacts" / "smalti").as_uri()
    [artifact] = (hundred.home / "mlartifacts").rglob("rows.jsonl")
    assert artifact.parent.parent.name == hundred.evaluation.run_id
    assert len(artifact.read_text().splitlines()) == 101
    assert not (hundred.home / "mlruns").exists()
    assert not (hundred.home / "evals" / "mlruns").exists()


def test_the_journal_keeps_order_sources_and_request_ids(hundred: Done) -> None:
    results = hundred.evaluation.results
    assert [result.row.id for result in results] == [f"row-{number}" for number in range(100)]
    assert results[3].prediction.sources == ("2.md", "3.md")
    assert (results[3].prediction.request_id, results[3].prediction.trace_id) == ("request-3", "tr-3")
    assert results[3].prediction.latency_ms > 0  # pyright: ignore[reportOptionalOperand]
    assert hundred.evaluation.journal.stat().st_mode & 0o077 == 0


@pytest.mark.anyio
async def test_errors_are_kept_apart_from_misses(hundred: Done, capfd: pytest.CaptureFixture[str]) -> None:
    released = asyncio.Event()

    async def stubborn() -> Prediction:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue  # a client that will not be cancelled
        return Prediction()

    async def predict(question: str) -> Prediction:
        number = int(question.split()[1].rstrip("?"))
        if number == 1:
            await asyncio.sleep(60)
        if number == 2:
            return await stubborn()
        if number == 4:
            return "text"  # pyright: ignore[reportReturnType]
        if number == 5:
            return Prediction(error="503 the model is loading")
        if number == 7:
            raise asyncio.CancelledError
        if number % 3 == 0:
            raise ConnectionError("refused")
        return await answer(question)

    found = await evaluate(
        "a/b c",
        dataset(hundred.home, 12),
        predict,
        tracking_uri=f"sqlite:///{hundred.home}/mlflow.db",
        folder=hundred.home / "second",
        timeout=2,
        ui="http://127.0.0.1:8000/mlflow",
    )
    released.set()
    await asyncio.sleep(0)
    errors = {result.row.id: result.prediction.error for result in found.results}
    assert errors == {
        "row-0": "ConnectionError: refused", "row-1": "timed out after 2 s", "row-2": "timed out after 2 s",
        "row-3": "ConnectionError: refused", "row-4": "predict returned str, not a Prediction",
        "row-5": "503 the model is loading", "row-6": "ConnectionError: refused", "row-7": "the call was cancelled",
        "row-8": None, "row-9": "ConnectionError: refused", "row-10": None, "row-11": None,
    }  # fmt: skip
    assert (found.rows, len(found.errors)) == (12, 9)
    assert (found.estimates["hit@5"].n, found.estimates["hit@5"].value) == (2, 1.0)
    assert sql(hundred.home, f"select value from latest_metrics where key = 'errors' and run_uuid = '{found.run_id}'") == [(9.0,)]
    assert sql(hundred.home, f"select count(*) from entity_associations where destination_id = '{found.run_id}'") == [(12,)]
    assert found.link == (
        f"http://127.0.0.1:8000/mlflow/#/experiments/{found.experiment_id}/evaluation-runs?selectedRunUuid={found.run_id}"
    )
    assert capfd.readouterr() == ("", "")
    assert "MLFLOW_GENAI_EVAL_MAX_WORKERS" not in os.environ


FAULTY = """
import sys, json
import mlflow
from mlflow.tracing.client import TracingClient
from evals import export
request = json.load(open(sys.argv[1]))
mlflow.set_tracking_uri(request["tracking_uri"])
if not mlflow.MlflowClient().get_experiment_by_name("faulty"):
    mlflow.MlflowClient().create_experiment("faulty", artifact_location="mlflow-artifacts:/77")
start, calls, always = TracingClient.start_trace, [], False
def lossy(self, info):
    calls.append(1)
    if len(calls) in (2, 5):
        raise OSError("database is locked")
    if always and info.tags["mlflow.eval.requestId"] == "row-1":
        raise OSError("no connection")
    return start(self, info)
TracingClient.start_trace = lossy
print(json.dumps(export.export(request)))
calls, always = [], True
export.export(request)
"""


def test_rows_that_mlflow_loses_are_recorded_again_or_reported(hundred: Done, tmp_path: Path) -> None:
    rows = [{**result.to_dict(), "scores": dict(result.scores)} for result in hundred.evaluation.results[:8]]
    request = {
        "tracking_uri": f"sqlite:///{hundred.home}/mlflow.db?timeout=60", "experiment": "faulty", "run_name": "faulty",
        "artifact_root": str(hundred.home / "mlartifacts"), "journal": str(hundred.evaluation.journal),
        "params": {"endpoint": "assistant"}, "metrics": {"rows": 8}, "rows": rows,
    }  # fmt: skip
    (tmp_path / "request.json").write_text(json.dumps(request, default=str))
    command = [sys.executable, "-c", FAULTY, str(tmp_path / "request.json")]
    done = subprocess.run(command, env=_child_environment(), capture_output=True, text=True, timeout=100)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    run_id = found["run_id"]
    assert found["rows"] == 8
    in_run = "from trace_info t join entity_associations e on e.source_id = t.request_id"
    assert sql(hundred.home, f"select count(*) {in_run} where e.destination_id = '{run_id}'") == [(8,)]
    wanted = sum(value is not None for row in rows for value in row["scores"].values())
    of_run = f"from assessments a join entity_associations e on e.source_id = a.trace_id where e.destination_id = '{run_id}'"
    assert sql(hundred.home, f"select count(*) {of_run} and a.assessment_type = 'feedback'") == [(wanted,)]
    # The means are those of all rows, not of the last attempt's.
    [(mean,)] = sql(hundred.home, f"select value from latest_metrics where key = 'hit_at_1/mean' and run_uuid = '{run_id}'")
    hits = [row["scores"]["hit@1"] for row in rows if row["scores"]["hit@1"] is not None]
    assert mean == pytest.approx(sum(hits) / len(hits))
    assert (hundred.home / "mlartifacts" / "77" / run_id / "artifacts" / "rows.jsonl").is_file()

    assert done.returncode != 0, "the second time one row is never kept"
    assert re.search(
        r"RuntimeError: \d of 8 rows are missing from run \w+ after 3 attempts \(OSError: no connection\)", done.stderr
    )
    assert sql(hundred.home, "select status from runs where name = 'faulty' order by start_time") == [("FINISHED",), ("FAILED",)]


@pytest.mark.anyio
async def test_an_unreachable_store_is_an_error_that_names_the_journal(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(EvaluationError) as caught:
        await evaluate(
            "a", dataset(tmp_path, 3), answer, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", folder=tmp_path / "evals"
        )
    assert caught.value.journal is not None
    assert str(caught.value.journal) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_journal(caught.value.journal).rows == 3


def test_a_torn_journal_is_read_and_other_files_are_refused(hundred: Done, tmp_path: Path) -> None:
    lines = hundred.evaluation.journal.read_bytes().split(b"\n")
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(b"\n".join(lines[:40]) + b'\n{"type": "ro')
    cut = read_journal(torn)
    assert (cut.rows, cut.expected_rows, cut.run_id) == (39, 100, "")
    for name, content in {"a": b"", "b": b"nope\n", "c": b"[1]\n", "d": b'{"type": "row"}\n'}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EvaluationError, match="journal"):
            read_journal(tmp_path / name)
    whole = read_journal(hundred.evaluation.journal)
    assert replace(whole, results=()) == replace(hundred.evaluation, results=())


@pytest.mark.anyio
async def test_bad_settings_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for settings, said in (
        ({"concurrency": 0}, "positive"),
        ({"timeout": 0.0}, "positive"),
        ({"folder": tmp_path / "file"}, "writable"),
    ):
        arguments = {"tracking_uri": "sqlite:///x.db", "folder": tmp_path, **settings}
        with pytest.raises(EvaluationError, match=said):
            await evaluate("a", dataset(tmp_path, 1), answer, **arguments)  # pyright: ignore[reportArgumentType]
