"""MLflow's side of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.publish import quiet

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from finetune.runs import TrainingRun

LOGGED, MOST = 1.0, 1000
"""Seconds between two requests for curves to MLflow, which take as long as a short step; numbers that one takes."""


class Tracker:
    """Parameters at the start, curves while it trains, and what came of it."""

    def __init__(self, run: TrainingRun, job: Any, facts: Mapping[str, str]) -> None:
        import mlflow

        from finetune.train import alone, experiment, flat

        self._run, self._logged = run, 0.0
        self._waiting: list[Any] = []
        uri = run.spec["tracking_uri"]
        mlflow.set_tracking_uri(uri)
        known = run.state().get("mlflow_run_id")
        with alone(uri):
            self.client: MlflowClient = mlflow.MlflowClient()
            number = experiment(self.client, job.recipe.name, uri, None)
        active = mlflow.start_run(run_id=known, experiment_id=None if known else number, run_name=None if known else run.id)
        self.run_id: str = active.info.run_id
        run.set_state(mlflow_run_id=self.run_id, mlflow_experiment_id=active.info.experiment_id)
        if not known:
            mlflow.log_params(flat(job.recipe))
            parent = {"mlflow.parentRunId": run.spec["parent_run_id"]} if "parent_run_id" in run.spec else {}
            mlflow.set_tags({**facts, **parent, "smalti.run": run.id})
            mlflow.log_dict(json.loads(job.recipe.model_dump_json()), "recipe.json")
            if job.warnings:
                mlflow.log_text("\n".join(job.warnings), "data_warnings.txt")

    def emit(self, kind: str, **what: Any) -> None:
        """Tell of an event, and add its numbers to MLflow's curves, those of progress once a second."""
        self._run.emit(kind, **what)
        if kind == "checkpoint":  # a run that is gone on from it has its curve up to there
            self._flush()
        if kind not in ("progress", "evaluation", "trial"):
            return
        from mlflow.entities import Metric

        if kind != "evaluation":
            self._run.set_state(step=what["step"])
        prefix, now = ("eval/" if kind == "evaluation" else ""), time.time()
        numbers = {key: value for key, value in what.items() if isinstance(value, int | float) and key not in ("step", "steps")}
        self._waiting += [Metric(prefix + key, float(value), int(now * 1000), what["step"]) for key, value in numbers.items()]
        if kind != "progress" or now - self._logged >= LOGGED:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting, self._logged = self._waiting, [], time.time()
        with quiet():
            for at in range(0, len(waiting), MOST):
                self.client.log_batch(self.run_id, waiting[at : at + MOST])

    def log(self, result: Mapping[str, Any], artifacts: Mapping[str, Any]) -> None:
        """The final evaluation: metrics, the baseline's beside them, and what the task draws."""
        import mlflow

        metrics, baseline = result.get("metrics") or {}, result.get("baseline") or {}
        mlflow.log_metrics({**metrics, **{f"baseline_{key}": value for key, value in baseline.items()}})
        mlflow.log_metrics({"training_seconds": result["training_seconds"]})
        for name, content in artifacts.items():
            if isinstance(content, str):
                mlflow.log_text(content, name)
            elif isinstance(content, dict):
                mlflow.log_dict(content, name)
            else:
                mlflow.log_figure(content, name)

    def end(self, status: str) -> None:
        import mlflow

        self._flush()
        mlflow.end_run(status)
