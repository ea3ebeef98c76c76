"""Classical models as tools, as routers and as verifiers: anything that predicts from columns.

A tool's schema is that of the model's MLflow signature (https://mlflow.org/docs/latest/ml/model/signatures/), read when the
model is offered, so that a new version's columns count at once.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from pydantic import Field

from agents.state import Route, Router, emit_step
from agents.tools.signature import schema
from retrieval.types import Passage

Predict = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Predictions for one row, given by column."""


class ClassicalTool(BaseTool):
    """A model that predicts from columns.

    Parameters
    ----------
    predict: asks the model.
    inputs: its signature's inputs, whenever it is offered.
    """

    predict: Predict = Field(exclude=True, repr=False)
    inputs: Callable[[], Sequence[Mapping[str, Any]]] = Field(exclude=True, repr=False)
    args_schema: Any = Field(default_factory=lambda: {"type": "object", "properties": {}})

    @property
    def tool_call_schema(self) -> Any:
        return schema(self.inputs())

    def _run(self, *args: Any, **row: Any) -> str:
        raise NotImplementedError("await this tool: ainvoke")

    async def _arun(self, *args: Any, **row: Any) -> str:
        return json.dumps(await self.predict(row), default=str)


def label_of(prediction: Any) -> tuple[str, float, dict[str, float]]:
    """(label, confidence, scores) of a classifier's prediction: a label with its confidence (`score` or `confidence`) and, where
    they are told, the probabilities of all (`p_LABEL`); scores by label; or a bare label, whose confidence is 1.
    """
    found = prediction[0] if isinstance(prediction, list) and prediction else prediction
    if isinstance(found, Mapping):
        if "label" in found:
            score = float(found.get("score", found.get("confidence", 1.0)))
            each = {str(k)[2:]: float(v) for k, v in found.items() if str(k).startswith("p_")}
            return str(found["label"]), score, each or {str(found["label"]): score}
        scores = {str(k): float(v) for k, v in found.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        if scores:
            best = max(scores, key=lambda name: scores[name])
            return best, scores[best], scores
    return str(found), 1.0, {str(found): 1.0}


def classical_router(predict: Predict, *, column: str = "text", threshold: float = 0.6) -> Router:
    """A router made of a classifier: below `threshold` its confidence does not count, and a model is asked where there is one."""

    async def route(text: str) -> Route:
        label, confidence, scores = label_of(await predict({column: text}))
        return Route(label, confidence, scores, confidence >= threshold)

    return route


def verifier(
    predict: Predict, *, supported: str = "supported", columns: tuple[str, str] = ("claim", "evidence"), threshold: float = 0.5
) -> Callable[[str, Sequence[Passage]], Awaitable[bool]]:
    """A check of whether passages support a text, made of a classifier of (claim, evidence) pairs; traced as a step."""

    async def check(text: str, passages: Sequence[Passage]) -> bool:
        evidence = "\n".join(passage.text for passage in passages)
        with emit_step("verify", "model", inputs={"claim": text[:2_000], "passages": len(passages)}) as step:
            label, confidence, scores = label_of(await predict(dict(zip(columns, (text, evidence), strict=True))))
            good = scores.get(supported, confidence if label == supported else 0.0) >= threshold
            step.attributes |= {"label": label, "confidence": round(confidence, 4), "supported": good}
        return good

    return check
