from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from retrieval import BadRequest, Indexes, NotFound
from retrieval.api import metrics
from retrieval.api.access import Access
from tests.retrieval.conftest import Who

ASKED = [(1000.0, 200, 10.0), (1001.5, 200, 30.0), (1001.9, 429, None), (1060.0, 200, 5.0)]


def calls(indexes: Sequence[str], since: float, until: float) -> Iterable[tuple[float, int, float | None]]:
    assert list(indexes) == ["main.default.docs"]
    return [each for each in ASKED if since <= each[0] < until]


@pytest.fixture
def access(indexes: Indexes, folder: Any) -> Access:
    indexes.add("docs", folder)
    return Access(indexes, lambda: None, lambda *_: None, visible=lambda who, _: who.admin)  # type: ignore[arg-type]


def told(access: Access, body: dict[str, Any], *, admin: bool = True) -> dict[str, Any]:
    return metrics.answer(access, calls, Who("a", admin), "smalti", metrics.asked(body), metrics.times(body))


def test_queries_are_counted_by_step(access: Access) -> None:
    found = told(access, {"start_time": "1000000", "end_time": "1970-01-01T00:18:40Z", "granularity_in_seconds": 60})
    assert "next_page_token" not in found
    series = {(each["metric"]["name"], each["metric"].get("percentile")): each["values"] for each in found["metric_values"]}
    assert series["requests_per_second", None] == [
        {"timestamp": 1000_000, "value": 0.05},
        {"timestamp": 1060_000, "value": 1 / 60},
    ]
    assert [round(each["value"], 1) for each in series["error_rate", None]] == [33.3, 0]
    assert [each["value"] for each in series["request_latency", 50.0]] == [20, 5]
    label = [{"name": "index_name", "value": "main.default.other"}]
    other = told(access, {"start_time": "1000000", "end_time": "1120000", "metrics": [{"name": "error_rate", "labels": label}]})
    assert other["metric_values"][0]["values"] == []


def test_long_times_come_in_pages(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PAGE", 20)
    body: dict[str, Any] = {"start_time": 980_000, "end_time": 1070_000, "granularity_in_seconds": 1}
    body["metrics"] = [{"name": "request_latency", "percentile": 100}]
    values, pages = [], 0
    while True:
        found, pages = told(access, body), pages + 1
        values += found["metric_values"][0]["values"]
        if "next_page_token" not in found:
            break
        body["page_token"] = found["next_page_token"]
    assert pages == 5
    assert [(each["timestamp"], each["value"]) for each in values] == [(1000_000, 10), (1001_000, 30), (1060_000, 5)]


def test_what_one_may_not_see_is_not_counted(access: Access) -> None:
    found = told(access, {"start_time": 1000_000, "end_time": 1060_000}, admin=False)
    assert {each["value"] for each in found["metric_values"][0]["values"]} == {0}
    with pytest.raises(NotFound):
        metrics.answer(access, calls, Who("a", True), "none", metrics.SHOWN, metrics.times({}))


@pytest.mark.parametrize(
    "body",
    [
        {"start_time": "yesterday"},
        {"start_time": True},
        {"start_time": "9" * 400},
        {"start_time": 2000, "end_time": 1000},
        {"start_time": 0},
        {"granularity_in_seconds": 0},
        {"granularity_in_seconds": 1.5},
        {"page_token": "é"},
        {"page_token": "eyJzaW5jZSI6IDB9"},
        {"page_token": "eyJzaW5jZSI6IDAsICJ1bnRpbCI6IDEwLCAic3RlcCI6IDB9"},
        {"metrics": [{"name": "qps"}]},
        {"metrics": ["request_latency"]},
        {"metrics": {"name": "error_rate"}},
        {"metrics": [{"name": "request_latency", "percentile": "50"}]},
        {"metrics": [{"name": "request_latency", "percentile": 101}]},
        {"metrics": [{"name": "error_rate", "labels": [{"name": "route"}]}]},
    ],
)
def test_what_is_asked_wrongly_is_refused_by_name(body: dict[str, Any]) -> None:
    def read() -> None:
        metrics.asked(body)
        metrics.times(body)

    with pytest.raises(BadRequest, match=r"field|metric|start_time"):
        read()
