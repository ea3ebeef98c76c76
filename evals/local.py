"""Evaluations of this state's own endpoints: what `smalti eval ENDPOINT` and `smalti test` share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from evals.data import Dataset
    from evals.judged import RowScorer
    from evals.run import Evaluation


def mlflow_pages(work: Any) -> str:
    """Where MLflow's pages are: with the running server, or where one would be."""
    running = work.home.server()
    return f"{running['url'] if running else f'http://{work.settings.host}:{work.settings.port}'}/mlflow"


def options(
    work: Any,
    *,
    record: bool,
    scorers: Sequence[RowScorer] = (),
    concurrency: int = 4,
    timeout: float = 120.0,
    experiment: str = "smalti",
    reuse: bool = True,
    progress: bool = True,
    verbose: bool = False,
) -> dict[str, Any]:
    """What `evals.run.evaluate` is given for an evaluation that the state folder keeps."""
    return {
        "tracking_uri": work.tracking_uri if record else None,
        "folder": work.home.path / "evals",
        "experiment": experiment,
        "concurrency": concurrency,
        "timeout": timeout,
        "scorers": scorers,
        "reuse": reuse,
        "progress": progress,
        "verbose": verbose,
        "ui": mlflow_pages(work),
    }


def evaluate_at(
    base: str,
    headers: Mapping[str, str],
    endpoint: str,
    dataset: Dataset,
    given: Mapping[str, Any],
    *,
    protocol: str = "responses",
    path: str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Ask `endpoint` at the address `base` every question; `given` are `options`."""
    import httpx

    from evals.ask import Ask
    from evals.run import evaluate

    async def asked() -> Evaluation:
        limits = httpx.Limits(max_connections=given["concurrency"])
        async with httpx.AsyncClient(
            base_url=base, headers=headers, timeout=given["timeout"], limits=limits, trust_env=False
        ) as client:
            predict = Ask(client, endpoint, protocol, path)  # pyright: ignore[reportArgumentType]
            return await evaluate(endpoint, dataset, predict, identity=identity, **given)

    return asyncio.run(asked())


def evaluate_here(
    work: Any, client: httpx.Client, endpoint: str, dataset: Dataset, given: Mapping[str, Any], *, protocol: str = "responses"
) -> Evaluation:
    """Ask an endpoint of the server that `client` is connected to. Raises what `work.check` raises, where there is none."""
    from evals.identity import identity

    found = work.check(client.get(f"/api/2.0/serving-endpoints/{endpoint}"))
    task = str(found.get("task") or "")
    classical = any(row.inputs is not None for row in dataset) or "classif" in task
    path = f"/serving-endpoints/{endpoint}/invocations" if classical else "/v1/responses"
    headers = {"Authorization": client.headers["Authorization"]}
    endpoints = work.check(client.get("/api/2.0/serving-endpoints")).get("endpoints", ())
    indexes = work.check(client.get("/api/2.0/smalti/indexes")).get("indexes", ())
    known = identity(endpoint, endpoints, indexes, work.settings.model_dump(mode="json"))
    return evaluate_at(str(client.base_url), headers, endpoint, dataset, given, protocol=protocol, path=path, identity=known)
