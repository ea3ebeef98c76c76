"""Every route of a running server, tried with requests that are nearly right: none is answered 500, none hangs."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.live import Live, serving

EXAMPLES = int(os.environ.get("SMALTI_FUZZ", "150"))
"""`SMALTI_FUZZ=20000 HYPOTHESIS_PROFILE=explore pytest tests/test_fuzz.py` looks for long."""
pytestmark = pytest.mark.timeout(max(300, EXAMPLES))

SAID = [{"role": "user", "content": "What is a tessera?"}]
MODEL = {"name": "m", "provider": "openai", "task": "llm/v1/chat", "openai_config": {"openai_api_key_plaintext": "x"}}
SERVED = {"served_entities": [{"name": "m", "external_model": MODEL}], "traffic_config": {"routes": []}}
ACCESS = {"access_control_list": [{"user_name": "a", "permission_level": "CAN_QUERY"}]}
SIDE = {"pii": {"behavior": "MASK"}, "safety": False, "invalid_keywords": ["x"], "valid_topics": []}
POLICY = {
    "rate_limits": [{"calls": 5, "key": "user", "renewal_period": "minute", "principal": "a", "tokens": 4}],
    "guardrails": {"input": SIDE, "output": {}},
    "inference_table_config": {"enabled": True, "sample_percentage": 10, "redact": ["request.a"]},
    "usage_tracking_config": {"enabled": True},
    "fallback_config": {"enabled": True},
}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
QUERY = {"columns": ["id"], "query_text": "x", "num_results": 2, "filters_json": '{"id": 1}', "query_type": "HYBRID"}
RUN = {"assistant_id": "assistant", "input": {"messages": SAID}, "if_not_exists": "create", "metadata": {"a": 1}}
BODIES: dict[str, Any] = {  # what a path's end takes
    "/chat/completions": {"model": "assistant", "messages": SAID, "stream": True, "max_tokens": 5, "stop": ["x"], "n": 1},
    "/responses": {"model": "assistant", "input": SAID, "tools": [TOOL], "metadata": {"a": "b"}, "text": {"format": {}}},
    "/completions": {"model": "assistant", "prompt": ["a"], "max_tokens": 4},
    "/embeddings": {"model": "all-minilm-l6-v2", "input": ["a"], "encoding_format": "base64", "dimensions": 10},
    "/invocations": {"messages": SAID, "dataframe_split": {"columns": ["a"], "data": [[1]]}, "inputs": {"a": [1]}},
    "/agents/{name}/chat": {"id": "x", "messages": [{"role": "user", "parts": [{"type": "text", "text": "x"}]}]},
    "/smalti/keys": {"name": "f", "kind": "user", "groups": ["a"], "ttl": 60, "label": "x", "scopes": ["endpoint:assistant"]},
    "/groups": {"groups": ["g"], "kind": "user"},
    "/ai-gateway": POLICY,
    "/rate-limits": {"rate_limits": POLICY["rate_limits"]},
    "/config": SERVED,
    "/tags": {"add_tags": [{"key": "a", "value": "b"}], "delete_tags": ["a"], "tags": {"a": "b"}},
    "/serving-endpoints": {"name": "fuzzed", "config": SERVED, "tags": [{"key": "a"}], "ai_gateway": POLICY},
    "/query": QUERY,
    "/scan": {"num_results": 2, "last_primary_key": "x"},
    "/query-next-page": {"page_token": "x"},
    "/upsert-data": {"inputs_json": '[{"id": 1}]'},
    "/experiments": {"name": "x", "endpoint": "assistant", "arms": [{"served_entity": "m"}], "metric": "m"},
    "/feedback": {"request_id": "x", "name": "thumb", "value": True},
    "/indexes": {"name": "main.default.x", "primary_key": "id", "index_type": "DIRECT_ACCESS", "direct_access_index_spec": {}},
    "/validate": {"task": "classify", "method": "full", "name": "k", "base_model": "x", "data": {"train": "x.jsonl"}},
    "/secrets/put": {"scope": "s", "key": "k", "string_value": "v"},
    "/scopes/create": {"scope": "s"},
    "/acls/put": {"scope": "s", "principal": "a", "permission": "READ"},
    "/runs": RUN, "/stream": RUN, "/wait": RUN,
    "/state": {"values": {"messages": SAID}, "as_node": "route", "checkpoint": {"checkpoint_id": "x", "checkpoint_ns": ""}},
    "/state/checkpoint": {"checkpoint": {"checkpoint_id": "x"}},
    "/history": {"limit": 3, "before": {"checkpoint_id": "x"}, "metadata": {"step": 1}, "checkpoint": {}},
    "/runs/cancel": {"status": "all"}, "/prune": {"thread_ids": ["x"], "strategy": "keep_latest"},
    "/threads": {"metadata": {"a": "b"}, "if_exists": "do_nothing"},
    "/search": {"metadata": {"a": "b"}, "limit": 10, "offset": 0},
    "/mcp/{path:path}": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x", "arguments": {"query": "x"}}},
    "/token": {"grant_type": "client_credentials", "client_id": "x", "client_secret": "y"},
}  # fmt: skip
NAMES = ["assistant", "main.default.docs", "nothing", "tiles.md", "00000000-0000-0000-0000-000000000001", "resp_x", "1"]
STRANGE = [
    "",
    " ",
    "a" * 300,
    "\u0000",
    "ü",
    "%00",
    "../../etc/passwd",
    "' OR 1=1 --",
    "${x}",
    "9999-12-31",
    "NaN",
    "1e999",
    "[]",
    "{}",
]
STRANGE += [
    "\u202e\u200b",
    "𝟜",
    "²",
    "http://169.254.169.254/",
    "user:a",
    "*",
    "data:,x",
    "{{secrets/a/b}}",
    "-1",
    "true",
    "null",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 2**31, 2**63, 2**70, 1e308, -0.0, 0.5, *STRANGE, *NAMES]),
    st.sampled_from([[], {}, [[]], [{}], [None], ["a"], {"a": 1}, {"": ""}, {"a": {"b": [1]}}, [0.1] * 400, {"$ref": "#"}]),
)
QUERIES = [
    "limit", "since", "by", "page_token", "max_results", "endpoint_name", "starting_after", "stream", "name", "scope", "key",
    "request_id", "offset", "version", "full_name", "overlap", "path", "principal", "next",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """A body that the path takes with up to three places changed, sometimes cut short or no text."""
    fits = [body for end, body in BODIES.items() if path.endswith(end)] or [{}]
    body = copy.deepcopy(max(fits, key=lambda each: len(str(each))))
    for _ in range(draw(st.integers(0, 3))):
        if not isinstance(body, dict | list) or not (there := [place for place in places(body) if place]):
            body = draw(VALUES)
            break
        *way, last = draw(st.sampled_from(there))
        holder = body
        for step in way:
            holder = holder[step]
        match draw(st.integers(0, 3)):
            case 0:
                del holder[last]
            case 1:
                holder[last] = [holder[last]] * 3
            case _:
                holder[last] = draw(VALUES)
    raw = json.dumps(body).encode()
    return draw(st.sampled_from([raw] * 12 + [raw[: len(raw) // 2], raw.replace(b"a", b"\xff", 1), b""]))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("fuzz")
    (docs := home / "docs").mkdir()
    (docs / "tiles.md").write_text("# Tiles\n\nA tessera is a small tile of glass.\n")
    with serving(home / "state", docs) as opened:
        yield opened


@pytest.fixture(scope="module")
def low(live: Live) -> str:
    grant = {"access_control_list": [{"user_name": "low", "permission_level": "CAN_QUERY"}]}
    with live.client() as admin:
        admin.patch("/api/2.0/permissions/serving-endpoints/assistant", json=grant).raise_for_status()
        return admin.post("/api/2.0/smalti/keys", json={"name": "low"}).json()["key"]


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    from app import build_app
    from serving.settings import Settings
    from serving.state import Home, owned
    from tests.test_only_way import every_route

    home = Home(tmp_path_factory.mktemp("routes"))
    with owned(home):
        app = build_app(Settings(home=home.path, docs=Path("nothing"), admin_key="abcdefgh1234", mlflow=False), home)
        found = sorted(set(every_route(app.router)))
        app.state.platform.journal.close()
        app.state.platform.engine.dispose()
    left_out = re.compile(r"/_nicegui|/logout|/api/\{path|/v1/\{path|/ml/")
    return [(method, path) for method, path in found if method != "OPTIONS" and not left_out.match(path)]


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_request_is_answered_500(live: Live, low: str, routes: list[tuple[str, str]], data: st.DataObject) -> None:
    method, path = data.draw(st.sampled_from(routes))

    def named(_: re.Match[str]) -> str:
        return quote(data.draw(st.sampled_from([*NAMES * 3, *STRANGE])) or "x", safe="")

    filled = re.sub(r"\{\w+(?::\w+)?\}", named, path)
    if method == "DELETE" and filled.endswith(("/assistant", "main.default.docs")):
        return
    query = data.draw(st.dictionaries(st.sampled_from(QUERIES), st.sampled_from([*STRANGE, *NAMES]), max_size=2))
    body = data.draw(bodies(path)) if method in ("POST", "PUT", "PATCH") else None
    headers = {"authorization": f"Bearer {data.draw(st.sampled_from([live.key, live.key, low]))}"}
    headers |= {"content-type": "application/x-www-form-urlencoded" if path.endswith("/token") else "application/json"}
    with (
        httpx.Client(base_url=live.url, headers=headers, timeout=60, trust_env=False) as client,
        client.stream(method, filled, params=query, content=body) as answer,
    ):
        told = b""
        for chunk in answer.iter_raw():
            told += chunk
            if len(told) > 200_000:
                break
    tried = (method, filled, query, body, answer.status_code, told[-500:])
    assert answer.status_code < 500 or answer.status_code == 503, tried
    assert b"Traceback (most recent" not in told, tried
