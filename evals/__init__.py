"""Evaluation: datasets, scorers that need no LLM, runs recorded in MLflow, reports, gates and comparisons."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.ask import Ask
    from evals.compare import Comparison, Difference, compare_runs
    from evals.data import Dataset, Prediction, Row, RowResult, load_dataset
    from evals.errors import DatasetError
    from evals.faithfulness import Faithfulness
    from evals.gate import Criteria, Decision, load_criteria
    from evals.groundedness import Groundedness
    from evals.journal import Evaluation, EvaluationError, read_journal
    from evals.report import Gate, GateError, GateResult, check, exit_code, failures, parse_gate, render, to_json
    from evals.run import evaluate
    from evals.scorers import METRICS, mlflow_scorers, score

_HOME = {
    "ask": ("Ask",),
    "compare": ("Comparison", "Difference", "compare_runs"),
    "faithfulness": ("Faithfulness",),
    "groundedness": ("Groundedness",),
    "gate": ("Criteria", "Decision", "load_criteria"),
    "data": ("Dataset", "Prediction", "Row", "RowResult", "load_dataset"),
    "errors": ("DatasetError",),
    "report": ("Gate", "GateError", "GateResult", "check", "exit_code", "failures", "parse_gate", "render", "to_json"),
    "journal": ("Evaluation", "EvaluationError", "read_journal"),
    "run": ("evaluate",),
    "scorers": ("METRICS", "mlflow_scorers", "score"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [  # noqa: RUF022 - by module
    "Ask",
    "Criteria", "Decision", "load_criteria",
    "Faithfulness", "Groundedness",
    "Comparison", "Difference", "compare_runs",
    "Dataset", "DatasetError", "Prediction", "Row", "RowResult", "load_dataset",
    "Gate", "GateError", "GateResult", "check", "exit_code", "failures", "parse_gate", "render", "to_json",
    "Evaluation", "EvaluationError", "evaluate", "read_journal",
    "METRICS", "mlflow_scorers", "score",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'evals' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"evals.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
