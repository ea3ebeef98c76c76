"""The `eval` command: asks an endpoint every question of a dataset and holds the answers against gates."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import httpx

    from evals.data import Prediction

BAD_INPUT = 2
"""Exit status when the dataset or a gate cannot be read; 1 is a gate that failed."""


def evaluate(
    context: typer.Context,
    endpoint: Annotated[str, typer.Argument(help="The endpoint to evaluate, such as `assistant`.")],
    data: Annotated[Path, typer.Option(help="Dataset: a JSONL file.")],
    minimum: Annotated[
        list[str] | None, typer.Option("--min", metavar="METRIC=VALUE", help="Fail below; may be given again.")
    ] = None,
    maximum: Annotated[list[str] | None, typer.Option("--max", metavar="METRIC=VALUE", help="Fail above (latencies).")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Questions asked at once.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a question may take.")] = 120.0,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "smalti",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show MLflow's own output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Ask ENDPOINT every question of a dataset, score the answers, and record the run in MLflow."""
    from evals.data import DatasetError, load_dataset
    from evals.report import GateError, check, exit_code, parse_gate, render, to_json
    from evals.run import evaluate as run

    work = context.obj
    try:
        gates = [parse_gate(text) for text in minimum or ()] + [parse_gate(text, "max") for text in maximum or ()]
        dataset = load_dataset(data)
    except (DatasetError, GateError) as error:
        typer.echo(f"smalti: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    with work.connect() as client, ThreadPoolExecutor(concurrency) as pool:
        work.check(client.get(f"/api/2.0/serving-endpoints/{endpoint}"))
        evaluation = asyncio.run(
            run(
                endpoint,
                dataset,
                _predictor(client, endpoint, pool, timeout),
                tracking_uri=f"sqlite:///{work.home.path / 'mlflow.db'}",
                folder=work.home.path / "evals",
                experiment=experiment,
                concurrency=concurrency,
                timeout=timeout,
                progress=not as_json,
                verbose=verbose,
                ui=f"http://{work.settings.host}:{work.settings.port}/mlflow",
            )
        )
    results = check(evaluation, gates)
    if as_json:
        work.print_json(to_json(evaluation, results))
    else:
        from rich.console import Console

        Console().print(render(evaluation, results))
    if code := exit_code(evaluation, results):
        raise typer.Exit(code)


def _predictor(client: httpx.Client, endpoint: str, pool: ThreadPoolExecutor, timeout: float) -> Any:
    """Asks over the Responses API, as any client would; the sources are those that were retrieved, best first."""
    from evals.data import Prediction

    def ask(question: str) -> Prediction:
        started = time.perf_counter()
        answer = client.post("/v1/responses", json={"model": endpoint, "input": question}, timeout=timeout)
        latency = (time.perf_counter() - started) * 1e3
        request_id = answer.headers.get("x-request-id", "")
        body = answer.json()
        if not answer.is_success or body.get("status") == "failed":
            message = (body.get("error") or {}).get("message", answer.text[:300])
            return Prediction(text="", sources=(), abstained=False, latency_ms=latency, request_id=request_id, error=message)
        outputs = body.get("custom_outputs") or {}
        return Prediction(
            text=_text(body),
            sources=tuple(dict.fromkeys(passage["source"] for passage in outputs.get("passages") or ())),
            abstained=bool(outputs.get("abstained")),
            latency_ms=latency,
            request_id=request_id,
            trace_id=outputs.get("trace_id"),
        )

    async def predict(question: str) -> Prediction:
        return await asyncio.get_running_loop().run_in_executor(pool, ask, question)

    return predict


def _text(response: dict[str, Any]) -> str:
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")
