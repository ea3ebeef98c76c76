"""What the console makes of its rows, without a browser."""

from __future__ import annotations

from datetime import UTC, datetime

from serving.ui.console import finetuning, review
from serving.ui.console.endpoints import guards_said, limit_said, shares_of
from serving.ui.console.indexes import ranked
from serving.ui.console.overview import OTHERS, attention, overview
from serving.ui.console.schema_form import fields
from serving.ui.console.tables import csv_of

NOW = datetime(2026, 11, 23, 9, 40, tzinfo=UTC)


def row(hour, endpoint="chat", inner=0, requests=10, **more):
    numbers = {
        "requests": requests,
        "refused": 0,
        "limited": 0,
        "errors": 0,
        "input_tokens": 5,
        "output_tokens": 2,
        "cost": 0.5,
        "bands": {20: 9},
    }
    return {"hour": hour, "endpoint": endpoint, "inner_call": inner, **numbers, **more}


def test_hours_fall_into_columns_and_inner_calls_are_not_counted_twice():
    rows = [row("2026-11-23T09"), row("2026-11-23T04", requests=3), row("2026-11-22T10"), row("2026-11-23T09", "docs", 1)]
    seen = overview(rows, NOW, 24, 1)
    assert (seen.total.requests, seen.total.tokens, seen.total.cost) == (23, 21, 1.5)
    assert seen.endpoints["docs"].requests == 10
    assert [(at.hour, numbers.requests) for at, numbers in seen.columns if numbers.requests] == [(10, 10), (4, 3), (9, 10)]
    assert len(overview(rows, NOW, 168, 6).columns) == 28
    assert sum(numbers.requests for _, numbers in overview(rows, NOW, 168, 6).columns) == 23


def test_thumbs_are_counted_where_they_fell_and_doubts_are_told():
    at = NOW.timestamp()
    thumbs = [{"time": at - 60 * i, "helpful": i == 0, "endpoint": "chat"} for i in range(7)]
    seen = overview([], NOW, 24, 1, [*thumbs, {"time": at - 5 * 3600, "helpful": True, "endpoint": "docs"}])
    assert (seen.total.helpful, seen.total.unhelpful) == (2, 6)
    assert [(when.hour, s.helpful, s.unhelpful) for when, s in seen.columns if s.helpful or s.unhelpful] == [(4, 1, 0), (9, 1, 6)]
    assert [what for _, what, _ in attention(seen, [], [])] == ["6 answers of chat did not help, 1 did."]


def test_the_worst_needs_attention_first():
    seen = overview([row("2026-11-23T09", errors=4), row("2026-11-23T09", "docs", refused=1)], NOW, 24, 1)
    endpoints = [{"name": "down", "state": {"ready": "NOT_READY"}}, {"name": "fine", "state": {"ready": "READY"}}]
    told = attention(seen, endpoints, [{"name": "main.default.docs", "error": "", "skipped": [{}, {}]}])
    assert [severity for severity, *_ in told] == ["bad", "bad", "warn", "warn"]
    assert "down is not ready" in told[0][1]
    assert ("4 of 10 calls of chat failed." in told[1][1], told[1][2]) == (
        True,
        "/console/journal?endpoint=chat&hours=24&status=5",
    )
    assert attention(overview([], NOW, 24, 1), [], []) == []


def test_limits_hit_are_told_apart_from_what_was_refused():
    seen = overview([row("2026-11-23T09", refused=3, limited=2)], NOW, 168, 6)
    assert (seen.total.limited, seen.total.refused, seen.total.answered) == (2, 1, 7)
    assert attention(seen, [], [], 168) == [
        ("warn", "2 calls of chat hit a limit or a budget.", "/console/journal?endpoint=chat&hours=168&status=429"),
        ("warn", "1 call of chat was refused: grants or input.", "/console/journal?endpoint=chat&hours=168&status=4"),
    ]


def test_one_endpoint_is_shown_with_its_inner_calls_and_thumbs():
    rows = [row("2026-11-23T09"), row("2026-11-23T08", "docs", 1, requests=4), row("2026-11-23T09", "docs")]
    thumbs = [{"time": NOW.timestamp(), "helpful": True, "endpoint": name} for name in ("chat", "docs", "docs")]
    seen = overview(rows, NOW, 24, 1, thumbs, only="docs")
    assert (seen.total.requests, seen.total.rated, seen.endpoints["chat"].requests) == (14, 2, 10)
    assert [numbers.requests for _, numbers in seen.columns[-2:]] == [4, 10]


def test_the_busiest_endpoints_have_a_colour_of_their_own():
    rows = [row("2026-11-23T09", f"e{i}", requests=i) for i in range(1, 9)]
    shares = overview(rows, NOW, 24, 1).busiest()
    assert {name: sum(counts) for name, counts in shares.items()} == {"e8": 8, "e7": 7, "e6": 6, "e5": 5, "e4": 4, OTHERS: 6}


def test_csv_quotes_what_a_spreadsheet_would_run():
    text = csv_of([("a", "A"), ("b", "B")], [{"a": '=HYPERLINK("x")', "b": -3}, {"a": 'say "hi",\nthere', "b": None}])
    assert text == 'A,B\r\n"\'=HYPERLINK(""x"")",-3\r\n"say ""hi"",\nthere",\r\n'


def test_limits_guardrails_and_splits_in_words():
    assert limit_said({"calls": 1000, "key": "user", "renewal_period": "minute"}) == "1,000 calls a minute, each user"
    said = limit_said({"cost": 5.0, "key": "user_group", "principal": "ml", "renewal_period": "month", "soft": True})
    assert said == "$5 a month, user group ml (soft)"
    guards = {"ai_gateway": {"guardrails": {"input": {"pii": {"behavior": "MASK"}, "safety": True}, "output": None}}}
    assert guards_said(guards) == ["input: personal data mask", "input: safety"]
    routes = [{"served_entity_name": "a", "traffic_percentage": 90}, {"served_model_name": "b", "traffic_percentage": 10}]
    assert shares_of({"config": {"traffic_config": {"routes": routes}}}) == {"a": 90, "b": 10}
    assert shares_of({}) == {}


def test_ranks_of_the_three_modes_come_together():
    def passage(key):
        return {"id": key, "similarity": 0.5, "lexical": 1.0, "title": key, "source": key, "text": "x\n y"}

    found = {"hybrid": [passage("b"), passage("a")], "dense": [passage("a")], "lexical": [passage("b"), passage("c")]}
    rows = [(each["id"], each["fused"], each["dense"], each["lexical"]) for each in ranked(found)]
    assert rows == [("b", 1, None, 1), ("a", 2, 1, None), ("c", None, None, 2)]


def test_what_an_object_needs_is_not_needed_where_the_object_may_be_left_out():
    inner = {"type": "object", "properties": {"space": {"type": "string"}}, "required": ["space"]}
    either = {"anyOf": [{"$ref": "#/$defs/inner"}, {"type": "null"}], "default": None}
    schema = {"$defs": {"inner": inner}, "properties": {"sweep": either, "data": {"$ref": "#/$defs/inner"}}, "required": ["data"]}
    assert {each.name: each.required for each in fields(schema)} == {"sweep.space": False, "data.space": True}


def test_a_run_is_linked_within_its_experiment():
    assert finetuning.mlflow_url({"mlflow_run_id": "ab", "mlflow_experiment_id": "7"}) == "/mlflow/#/experiments/7/runs/ab"
    assert finetuning.mlflow_url({"mlflow_run_id": "ab", "mlflow_experiment_id": None}) == "/mlflow/#/experiments/0/runs/ab"


def test_a_label_is_said_as_its_schema_has_it():
    def said(kind, text):
        return review.said({"name": "x", "input": {"type": kind}}, {"label-x": text})

    assert [said("boolean", each) for each in ("yes", "no", "")] == [True, False, None]
    assert [said("numeric", each) for each in ("2.5", "0", "many", " ")] == [2.5, 0.0, "many", None]
    assert said("text_list", " one\n\n two ") == ["one", "two"]
    assert said("categorical", "kind") == "kind"
