"""What people and scorers said of answers, at an MLflow server elsewhere, as `serving.feedback` reads it of this one's own."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from governance.call import CallError
from governance.exposures import Event
from serving.feedback import NAME, number

if TYPE_CHECKING:
    from serving.tracking.remote.connection import Connection

_API = "/api/3.0/mlflow/traces"
_LATE = 7 * 86_400_000
"""Milliseconds after an answer in which what is said of it is still looked for."""


class RemoteTraces:
    """Assessments on the traces of `server`. All methods block; where it does not answer they know nothing."""

    def __init__(self, server: Connection) -> None:
        self._server = server

    def events(self, since_ms: int, names: Collection[str] = (NAME,)) -> list[Event]:
        """As `feedback.assessments`, of answers of a week before at most, and of these names only."""
        return [
            Event(
                said["assessment_id"],
                info["trace_id"].removeprefix("tr-"),
                said["assessment_name"],
                number(said.get("feedback", {}).get("value")) if said.get("valid", True) else None,
            )
            for name in names
            for info in self._about(name, since_ms - _LATE if since_ms else 0)
            for said in info.get("assessments") or ()
            if said.get("assessment_name") == name and "feedback" in said and _ms(said.get("last_update_time")) >= since_ms
        ]

    def thumbs(self, since_ms: int, who: str | None = None) -> list[dict[str, Any]]:
        """As `feedback.thumbs`."""
        named = self._experiments()
        return [
            {
                "time": made / 1000,
                "helpful": number(said["feedback"].get("value")) == 1,
                "endpoint": named.get(_place(info), ""),
            }
            for info in self._about(NAME, since_ms - _LATE)
            for said in info.get("assessments") or ()
            if said.get("assessment_name") == NAME and "feedback" in said and said.get("valid", True)
            if (made := _ms(said.get("create_time"))) >= since_ms
            if who is None or said.get("source", {}).get("source_id") == who
        ]

    def url(self, request_id: str, trace_id: str) -> str:
        """As `feedback.trace_url`."""
        for identifier in dict.fromkeys((f"tr-{request_id}", f"tr-{trace_id}")):
            try:
                info = self._server.ask_now("GET", f"{_API}/{quote(identifier, safe='')}")["trace"]["trace_info"]
            except (CallError, KeyError):
                continue
            return f"/mlflow/#/experiments/{_place(info)}/traces?selectedEvaluationId={identifier}"
        return "/mlflow/"

    def _about(self, name: str, since_ms: int) -> Iterator[Mapping[str, Any]]:
        """Traces since a time that something of this name was said of."""
        places = [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": each}} for each in self._experiments()]
        quoted = name.replace("`", "")
        asked: dict[str, Any] = {
            "locations": places,
            "filter": f"feedback.`{quoted}` LIKE '%' AND timestamp_ms >= {max(since_ms, 0)}",
            "max_results": 500,
        }
        while places:
            try:
                found = self._server.ask_now("POST", f"{_API}/search", asked)
            except CallError:
                return
            yield from found.get("traces") or ()
            if not (token := found.get("next_page_token")):
                return
            asked["page_token"] = token

    def _experiments(self) -> dict[str, str]:
        """Names of experiments by id."""
        named: dict[str, str] = {}
        asked: dict[str, Any] = {"max_results": 1000}
        while True:
            try:
                found = self._server.ask_now("POST", "/api/2.0/mlflow/experiments/search", asked)
            except CallError:
                return named
            named |= {each["experiment_id"]: each["name"] for each in found.get("experiments") or ()}
            if not (token := found.get("next_page_token")):
                return named
            asked["page_token"] = token


def _place(info: Mapping[str, Any]) -> str:
    return str(info.get("trace_location", {}).get("mlflow_experiment", {}).get("experiment_id", ""))


def _ms(moment: Any) -> int:
    try:
        return int(datetime.fromisoformat(str(moment).replace("Z", "+00:00")).timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)
