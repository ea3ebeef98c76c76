"""An evaluation run: ask every question, keep every answer, score, record in MLflow, and make sure that no row is lost.

Predictions are made here, with bounded concurrency and a time limit a row; each is appended to the run's journal and to the
cache (`evals/cache.py`) as it arrives. MLflow is told in a process of its own (`evals/export.py`): its settings, its output and
its tracking URI are process-wide, and the process that serves must keep its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.cache import Cache
from evals.classical import drawings
from evals.data import Dataset, Prediction, Row, RowResult, load_dataset
from evals.journal import Evaluation, EvaluationError, estimate, open_journal, read_journal, score_all
from evals.judged import RowScorer, judge
from evals.scorers import described

__all__ = ["Evaluation", "EvaluationError", "Predict", "Prediction", "evaluate", "read_journal"]

Predict = Callable[[Any], Awaitable[Prediction]]
"""`async def predict(question) -> Prediction`; a row with `inputs` is asked with these in place of the question. Raising, or
`Prediction.error`, records an infrastructure error for the row."""


async def evaluate(
    name: str,
    dataset: Dataset | str | Path,
    predict: Predict,
    *,
    tracking_uri: str | None,
    folder: Path,
    experiment: str = "smalti",
    artifact_root: Path | None = None,
    concurrency: int = 4,
    timeout: float = 120.0,
    scorers: Sequence[RowScorer] = (),
    identity: Mapping[str, object] | None = None,
    reuse: bool = True,
    progress: bool = True,
    verbose: bool = False,
    params: Mapping[str, object] | None = None,
    ui: str | None = None,
) -> Evaluation:
    """Evaluate `predict` on a dataset and record the run in MLflow.

    Parameters
    ----------
    name: the endpoint's name, for the run.
    dataset: a loaded dataset or its path.
    tracking_uri: MLflow's, such as `sqlite:////home/me/.smalti/mlflow.db` or `http://…`; None records nothing there.
    folder: where the run's journal is written; made if need be.
    experiment: MLflow experiment; made if need be.
    artifact_root: folder of MLflow's artifacts; default for a SQLite URI: `mlartifacts` beside the database.
    concurrency: questions asked at once.
    timeout: seconds a row may take; after that it is an error.
    scorers: further scorers, such as those of `mlflow.genai.scorers`; `timeout` holds for them too.
    identity: what makes the predictions (code, model, prompt, index …). With it, rows that were answered before under the same
        identity are not asked again. Without it, only an evaluation that was cut off goes on where it was.
    reuse: take predictions from earlier evaluations; else all rows are asked, and what is kept is replaced.
    progress: draw a progress bar on standard error if that is a terminal.
    verbose: let MLflow's own output through to standard error.
    params: further parameters of the MLflow run, such as the model.
    ui: address of the MLflow UI (`http://127.0.0.1:8000/mlflow`), for `Evaluation.link`.

    Raises
    ------
    DatasetError: the dataset is wrong. EvaluationError: MLflow did not record every row; the journal keeps them.
    """
    if concurrency < 1 or timeout <= 0:
        raise EvaluationError(f"concurrency {concurrency} or timeout {timeout} is out of range: give positive numbers")
    if not isinstance(dataset, Dataset):
        dataset = load_dataset(dataset)
    journal, write = open_journal(folder, name, dataset)
    cache = Cache(folder / "cache", {"endpoint": name, **(identity or {"dataset": dataset.sha256})})
    try:
        with _bar(progress, f"Asking {name}", len(dataset)) as advance:
            results = await _predict_all(dataset.rows, _kept(cache, reuse), predict, concurrency, timeout, write, advance)
        if scorers:
            with _bar(progress, "Scoring", len(results)) as advance:
                judged = Cache(folder / "cache", {"scorers": "judged"})
                try:
                    results = await judge(results, scorers, timeout=timeout, cache=judged, advance=advance, write=write)
                finally:
                    judged.close()
        results, _ = await asyncio.to_thread(score_all, results)
        estimates = await asyncio.to_thread(estimate, results)
        evaluation = Evaluation(
            endpoint=name,
            dataset=str(dataset.path),
            sha256=dataset.sha256,
            expected_rows=len(dataset),
            results=tuple(results),
            estimates=estimates,
            journal=journal,
            params={key: str(value) for key, value in (params or {}).items()},
        )
        if identity is None:
            cache.forget()
        if tracking_uri is None:
            write({"type": "run", "metrics": evaluation.metrics})
            return evaluation
        with _bar(progress, "Recording in MLflow", len(results)) as advance:
            request = _request(evaluation, tracking_uri, experiment, artifact_root, concurrency, timeout)
            recorded = await _export(request, journal, advance, verbose)
        run_id, experiment_id = recorded["run_id"], recorded["experiment_id"]
        link = f"{ui.rstrip('/')}/#/experiments/{experiment_id}/evaluation-runs?selectedRunUuid={run_id}" if ui else ""
        write({"type": "run", "run_id": run_id, "experiment_id": experiment_id, "metrics": evaluation.metrics})
        return replace(evaluation, run_id=run_id, experiment_id=experiment_id, link=link)
    finally:
        write(None)
        cache.close()


def _kept(cache: Cache, reuse: bool) -> Callable[[Row, Prediction | None], Prediction | None]:
    """Looks a row up in the cache, or keeps its prediction there."""

    def kept(row: Row, made: Prediction | None) -> Prediction | None:
        if made is None:
            return cache.prediction(row) if reuse else None
        cache.keep(row, made)
        return made

    return kept


async def _predict_all(
    rows: tuple[Row, ...],
    kept: Callable[[Row, Prediction | None], Prediction | None],
    predict: Predict,
    concurrency: int,
    timeout: float,
    write: Callable[[dict[str, Any]], None],
    advance: Callable[[], None],
) -> list[RowResult]:
    results: dict[int, RowResult] = {}
    waiting = iter(enumerate(rows))

    async def work() -> None:
        for index, row in waiting:
            if (prediction := kept(row, None)) is None:
                prediction = await _predict_one(row, predict, timeout)
                kept(row, prediction)
            results[index] = result = RowResult(row, prediction)
            write({"type": "row", **result.to_dict()})
            advance()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(rows))):
                group.create_task(work())
    except BaseExceptionGroup as errors:  # only the journal's own trouble gets here, and once says it all
        raise errors.exceptions[0] from None
    return [results[index] for index in range(len(rows))]


async def _predict_one(row: Row, predict: Predict, timeout: float) -> Prediction:
    async def ask() -> Prediction:  # also turns a predict that raises before its first await into a failed task
        return await predict(row.asked)

    task, start = asyncio.ensure_future(ask()), time.perf_counter()
    try:
        # Not wait_for: it would wait for ever for a predict that ignores its cancellation.
        await asyncio.wait({task}, timeout=timeout)
    finally:
        task.cancel()
    elapsed = 1000 * (time.perf_counter() - start)
    if not task.done():
        task.add_done_callback(lambda late: late.cancelled() or late.exception())  # nobody else will look at it
        return Prediction(error=f"timed out after {timeout:g} s", latency_ms=elapsed)
    if task.cancelled():
        return Prediction(error="the call was cancelled", latency_ms=elapsed)
    if (error := task.exception()) is not None:
        if not isinstance(error, Exception):
            raise error
        return Prediction(error=f"{type(error).__name__}: {error}".removesuffix(": "), latency_ms=elapsed)
    prediction = task.result()
    if not isinstance(prediction, Prediction):
        return Prediction(error=f"predict returned {type(prediction).__name__}, not a Prediction", latency_ms=elapsed)
    latency = elapsed if prediction.latency_ms is None else prediction.latency_ms
    return replace(prediction, sources=tuple(dict.fromkeys(prediction.sources)), latency_ms=latency)


def _request(
    evaluation: Evaluation,
    tracking_uri: str,
    experiment: str,
    artifact_root: Path | None,
    concurrency: int,
    timeout: float,
) -> dict[str, Any]:
    """What the exporting process is told, as JSON."""
    if tracking_uri.startswith("sqlite:///"):
        path, _, query = tracking_uri.removeprefix("sqlite:///").partition("?")
        database = Path(path).absolute()  # the exporter works in another folder
        artifact_root = artifact_root or database.parent / "mlartifacts"
        # Seconds to wait for a server that writes to the same file; the driver's own are 5.
        tracking_uri = f"sqlite:///{database}?{query or 'timeout=60'}"
    return {
        "tracking_uri": tracking_uri,
        "experiment": experiment,
        "artifact_root": str(artifact_root.absolute()) if artifact_root else None,
        "run_name": f"{evaluation.endpoint} {Path(evaluation.dataset).name}",
        "journal": str(evaluation.journal.absolute()),
        "drawings": drawings(evaluation.results),
        "params": {
            "endpoint": evaluation.endpoint,
            "dataset": evaluation.dataset,
            "dataset_sha256": evaluation.sha256,
            "rows": str(evaluation.rows),
            "concurrency": str(concurrency),
            "timeout_s": f"{timeout:g}",
            **evaluation.params,
        },
        "metrics": {
            "rows": evaluation.rows,
            "errors": len(evaluation.errors),
            **{name: value for name, value in evaluation.metrics.items() if _of_all(name) and value is not None},
        },
        "rows": [
            {
                **result.to_dict(),
                "scores": dict(result.scores),
                "judged": dict(result.judged),
                "expectations": result.row.expectations(),
            }
            for result in evaluation.results
        ],
    }


def _of_all(name: str) -> bool:
    """Whether a metric is no mean of the rows' scores."""
    return described(name).whole or described(name).kind == "latency"


def _child_environment() -> dict[str, str]:
    """The exporter's environment: no telemetry, nothing inherited that redirects, samples or drops traces."""
    # Of MLflow's own settings only those that reach a server stay: all others could change what is recorded.
    unwanted = re.compile(r"OTEL_|RAG_EVAL_|MLFLOW_(?!TRACKING_(USERNAME|PASSWORD|TOKEN|AUTH|INSECURE_TLS|\w+_CERT_PATH)$)")
    kept = {key: value for key, value in os.environ.items() if not unwanted.match(key)}
    packages = str(Path(__file__).resolve().parent.parent)
    return {
        **kept,
        "PYTHONSAFEPATH": "1",  # do not import from the working folder
        "PYTHONPATH": os.pathsep.join(filter(None, (packages, kept.get("PYTHONPATH")))),
        "PYTHONWARNINGS": "ignore",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


async def _export(request: dict[str, Any], journal: Path, advance: Callable[[], None], verbose: bool) -> dict[str, Any]:
    keep = f"the predictions are kept in {journal}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "evals.export",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=None if verbose else asyncio.subprocess.PIPE,
        env=_child_environment(),
        cwd=journal.parent.absolute(),
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def feed(pipe: asyncio.StreamWriter) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # its exit says why
            pipe.write(json.dumps(request, default=str).encode("utf-8", "replace"))
            await pipe.drain()
            pipe.close()

    async def answer(pipe: asyncio.StreamReader) -> dict[str, Any]:
        last: dict[str, Any] = {}
        async for line in pipe:
            last = json.loads(line)
            for _ in range(last.pop("recorded", 0)):
                advance()
        return last

    async def drain(pipe: asyncio.StreamReader | None) -> bytes:
        tail = b""
        while pipe is not None and (data := await pipe.read(65536)):
            tail = (tail + data)[-20_000:]
        return tail

    try:
        _, result, errors = await asyncio.gather(feed(process.stdin), answer(process.stdout), drain(process.stderr))
        code = await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if "error" in result:
        raise EvaluationError(f"MLflow did not record the evaluation: {result['error']}; {keep}", journal)
    if code or "run_id" not in result:
        reason = (errors.decode("utf-8", "replace").strip().splitlines() or [f"exit code {code}"])[-1]
        raise EvaluationError(f"MLflow did not record the evaluation: {reason}; {keep}", journal)
    return result


@contextmanager
def _bar(progress: bool, title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
