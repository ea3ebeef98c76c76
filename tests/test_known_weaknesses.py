"""Weaknesses that were published for other gateways, each tried on a running server."""

from __future__ import annotations

import concurrent.futures
import json
import re
import socket
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.live import KEY, Live, serving, wait_until
from tests.serving.upstream import house
from tests.serving.upstream import serving as serving_app

CHAT = {"model": "assistant", "messages": [{"role": "user", "content": "What is a tessera?"}]}


class Listener:
    """Somebody else's server: notes whatever reaches it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(60)
                try:
                    self.heard.append(connection.recv(65_536))
                    connection.sendall(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                except OSError:
                    self.heard.append(b"")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("weaknesses")
    (docs := home / "docs").mkdir()
    (docs / "tiles.md").write_text("# Tiles\n\nA tessera is a small tile of glass.\n")
    with serving(home / "state", docs, SOME_CLOUD_SECRET="cloud-secret-of-the-server") as opened:
        yield opened


@pytest.fixture(scope="module")
def alice(live: Live) -> str:
    """A key that may ask `assistant` and nothing else."""
    return key_of(live, "alice", "assistant")


def key_of(live: Live, name: str, endpoint: str | None = None) -> str:
    from tests.live import smalti

    made = smalti("keys", "create", name, *(["--endpoint", endpoint] if endpoint else []), "--json", home=live.home)
    assert made.returncode == 0, made.stderr
    found = re.search(r"smk_[A-Za-z0-9_-]{20,}", made.stdout)
    assert found
    return found[0]


@contextmanager
def client(live: Live, key: str | None, **headers: str) -> Iterator[httpx.Client]:
    given_headers = {**({"authorization": f"Bearer {key}"} if key is not None else {}), **headers}
    with httpx.Client(base_url=live.url, headers=given_headers, timeout=60, trust_env=False) as opened:
        yield opened


def rows(live: Live) -> list[dict[str, Any]]:
    with live.client() as admin:
        admin.get("/api/2.0/smalti/usage")  # brings in what the journal holds
    with closing(sqlite3.connect(live.home / "smalti.db", timeout=30)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM inference_table")]


def everything_written(live: Live) -> bytes:
    files = [path for path in live.home.rglob("*") if path.is_file()]
    return b"".join(path.read_bytes() for path in files) + live.home.with_name(f"{live.home.name}.log").read_bytes()


def test_a_client_cannot_choose_the_address_that_the_servers_key_is_sent_to(live: Live, alice: str, elsewhere: Listener) -> None:
    """CVE-2024-6587: `api_base` in a request's body sent the provider's key to whoever asked."""
    named = {"api_base": elsewhere.url, "base_url": elsewhere.url, "api_key": "x", "custom_llm_provider": "openai"}
    asked = {**CHAT, **named, "litellm_params": named, "extra_body": named, "metadata": {"api_base": elsewhere.url}}
    hints = {"x-forwarded-host": "127.0.0.1", "api-base": elsewhere.url, "x-portkey-custom-host": elsewhere.url}
    for path in ("/v1/chat/completions", "/serving-endpoints/assistant/invocations"):
        with client(live, alice, **hints) as http:
            assert http.post(path, json=asked).status_code in (200, 400)
    assert elsewhere.heard == []


@pytest.mark.parametrize(
    "key",
    [
        "' OR '1'='1",
        "x' UNION SELECT id, digest, name, kind, 1, NULL, NULL, NULL FROM api_keys --",
        "smk_%",
        '"; DROP TABLE api_keys; --',
        "smk_" + "a" * 5_000,
        "\\x00",
    ],
)
def test_a_key_is_never_part_of_a_statement(live: Live, key: str) -> None:
    """CVE-2026-42208: the key of the Authorization header was pasted into the SQL that looked it up."""
    for header in ({"authorization": f"Bearer {key}"}, {"authorization": key}, {"x-api-key": key, "api-key": key}):
        with client(live, None, **header) as http:
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 401
            assert http.get("/api/2.0/smalti/audit").status_code in (401, 403)
    with live.client() as http:
        assert http.get("/v1/models").status_code == 200


def test_keys_that_begin_alike_are_not_each_others(live: Live, alice: str) -> None:
    """CVE-2026-35030: tokens were cached by their first characters, so that another's token was taken for one's own."""
    with client(live, alice) as http:
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200  # whatever is cached, is now
    for like in (alice[:20], alice[:-1], alice + "x", alice[:20] + "A" * (len(alice) - 20), alice.swapcase(), alice[:40]):
        with client(live, like) as http:
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 401, len(like)


def test_who_may_ask_may_not_configure(live: Live, alice: str) -> None:
    """CVE-2026-35029 and CVE-2026-47101: any key could change the server's configuration, and give itself an admin's rights."""
    policy = {"guardrails": {"input": {"custom": ["os:system"]}}}
    served = {"served_entities": [{"name": "m", "external_model": {"name": "m", "provider": "openai"}}]}
    grant = {"access_control_list": [{"user_name": "alice", "permission_level": "CAN_MANAGE"}]}
    attempts = [
        ("PUT", "/api/2.0/serving-endpoints/assistant/ai-gateway", policy),
        ("PUT", "/api/2.0/serving-endpoints/assistant/config", served),
        ("POST", "/api/2.0/serving-endpoints", {"name": "mine", "config": served}),
        ("PATCH", "/api/2.0/permissions/serving-endpoints/assistant", grant),
        ("DELETE", "/api/2.0/serving-endpoints/assistant", None),
        ("GET", "/api/2.0/smalti/audit", None),
        ("GET", "/metrics", None),
    ]
    with client(live, alice) as http:
        for method, path, body in attempts:
            answer = http.request(method, path, json=body)
            assert answer.status_code in (401, 403, 404), (method, path, answer.status_code, answer.text)
    with live.client() as admin:
        answer = admin.put("/api/2.0/serving-endpoints/assistant/ai-gateway", json=policy)
        assert answer.status_code == 400, "not even an admin names code by the network"


def test_lists_show_what_one_may_see(live: Live) -> None:
    """CVE-2026-3198: the listings of a gateway's endpoints and secrets asked for no permission."""
    stranger = key_of(live, "stranger")
    with client(live, stranger) as http:
        for path in ("/v1/models", "/api/2.0/serving-endpoints", "/api/2.0/vector-search/endpoints"):
            answer = http.get(path)
            assert "assistant" not in answer.text, path
        for path in ("/api/2.0/serving-endpoints/assistant", "/v1/models/assistant"):
            assert http.get(path).status_code in (403, 404), path
        scopes = http.get("/api/2.0/secrets/scopes/list")
        assert scopes.json().get("scopes", []) == []
    with client(live, None) as http:
        for path in ("/v1/models", "/api/2.0/serving-endpoints", "/api/2.0/secrets/scopes/list"):
            assert http.get(path).status_code == 401, path


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest",
        "http://[fd00:ec2::254]/v1",
        "http://2852039166/v1",
        "http://0x7f.1:9/v1",
        "http://[::ffff:127.0.0.1]:9/v1",
        "http://localhost:9/v1",
        "file:///etc/passwd",
        "gopher://127.0.0.1:9/",
    ],
)
def test_a_model_is_not_at_an_address_within(live: Live, address: str) -> None:
    """CVE-2026-2393: an address that a user had registered was connected to, wherever it was."""
    external = {
        "name": "m",
        "provider": "openai",
        "task": "llm/v1/chat",
        "openai_config": {"openai_api_base": address, "openai_api_key_plaintext": "x"},
    }
    name = f"within-{uuid.uuid4().hex[:8]}"
    with live.client() as admin:
        served = {"served_entities": [{"name": "m", "external_model": external}]}
        made = admin.post("/api/2.0/serving-endpoints", json={"name": name, "config": served})
        if made.status_code == 200:
            wait_until(lambda: "NOT_UPDATING" in admin.get(f"/api/2.0/serving-endpoints/{name}").text, 60)
            told = admin.post("/v1/chat/completions", json={**CHAT, "model": name})
            assert told.status_code in (400, 404, 424, 502, 503), told.text
            assert "private network" in told.text or "not" in told.text
            admin.delete(f"/api/2.0/serving-endpoints/{name}")
        else:
            assert 400 <= made.status_code < 500, made.text


@pytest.mark.parametrize("reference", ["$SOME_CLOUD_SECRET", "${SOME_CLOUD_SECRET}", "os.environ/SOME_CLOUD_SECRET", "{{env/X}}"])
def test_a_model_made_by_the_network_reads_no_variable_of_the_server(live: Live, elsewhere: Listener, reference: str) -> None:
    """CVE-2026-4035: `$NAME` in a key was replaced by the server's variable, and sent to an address of the client's choice."""
    external = {
        "name": "m",
        "provider": "custom",
        "task": "llm/v1/chat",
        "private_network": True,
        "custom_provider_config": {
            "custom_provider_url": elsewhere.url,
            "bearer_token_auth": {"token_plaintext": reference},
        },
    }
    name = f"reads-{uuid.uuid4().hex[:8]}"
    with live.client() as admin:
        served = {"served_entities": [{"name": "m", "external_model": external}]}
        made = admin.post("/api/2.0/serving-endpoints", json={"name": name, "config": served})
        if made.status_code == 200:
            admin.post("/v1/chat/completions", json={**CHAT, "model": name})
            admin.delete(f"/api/2.0/serving-endpoints/{name}")
    assert not any(b"cloud-secret-of-the-server" in heard for heard in elsewhere.heard)
    elsewhere.heard.clear()


def test_no_cache_answers_after_a_key_is_gone(live: Live) -> None:
    """CVE-2026-12772 and CVE-2026-12796: who had been let in went on being let in after a key was revoked or had expired."""
    secret = key_of(live, "leaver", "assistant")
    with (
        live.client() as admin,
        client(live, secret) as http,
        httpx.Client(base_url=live.url, headers={"origin": live.url}, timeout=60, trust_env=False) as pages,
    ):
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert pages.post("/login", data={"key": secret}).status_code in (200, 303)
        assert pages.get("/console").status_code == 200
        keys = admin.get("/api/2.0/smalti/keys", params={"name": "leaver"}).json()["keys"]
        (key,) = [each for each in keys if not each["label"]]  # the page's session has one of its own
        admin.delete(f"/api/2.0/smalti/keys/{key['id']}").raise_for_status()
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 401
        assert http.get("/v1/models").status_code == 401
        assert pages.get("/console").status_code in (302, 303, 307, 401)


def test_nobody_gives_a_key_more_than_they_have(live: Live, alice: str) -> None:
    """CVE-2026-47101: whoever made a key said which routes it opens, and nobody looked."""
    wanted = {"name": "alice", "scopes": ["endpoint:*", "index:*"], "admin": True, "groups": ["admins"]}
    with client(live, alice) as http:
        for path, body in (
            ("/api/2.0/smalti/keys", wanted),
            ("/api/2.0/smalti/keys/any/rotate", None),
        ):
            assert http.post(path, json=body).status_code in (403, 404), path
        assert http.put("/api/2.0/smalti/principals/alice/groups", json={"groups": ["admins"]}).status_code == 403
    with live.client() as admin:
        narrow = admin.post("/api/2.0/smalti/keys", json={"name": "alice", "scopes": ["endpoint:other"]}).json()["key"]
    with client(live, narrow) as http:
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 403
        token = http.post("/api/2.0/token/create", json={"comment": "x"}).json()["token_value"]
        assert http.post("/api/2.0/token/create", json={"scopes": ["endpoint:*"]}).status_code == 400
    with client(live, token) as http:
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 403
        assert http.post("/api/2.0/smalti/keys", json=wanted).status_code == 403


def test_a_host_header_opens_nothing(live: Live) -> None:
    """CVE-2026-48710 and CVE-2026-49468: a Host header that moved the path let requests past the check of the key."""
    for host in (
        "127.0.0.1/v1/models?",
        "localhost:4000/#@attacker.example",
        "x/health#",
        "a@b",
        "[::1",
        "health",
        "localhost:99999999",
    ):
        with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), 20) as connection:
            connection.sendall(f"GET /api/2.0/smalti/audit HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            status = connection.recv(4_096).split(b" ", 2)[1]
        assert status in (b"400", b"401"), (host, status)


def test_tools_of_a_request_start_no_program(live: Live, alice: str, tmp_path: Path) -> None:
    """CVE-2026-42271: a server of tools described in a request, with a command, was started."""
    mark = tmp_path / "started"
    tool = {
        "type": "mcp",
        "server_label": "x",
        "command": "touch",
        "args": [str(mark)],
        "transport": "stdio",
        "server_url": "stdio:",
    }
    with client(live, alice) as http:
        http.post("/v1/responses", json={"model": "assistant", "input": "hello", "tools": [tool]})
        for path in ("/mcp-rest/test/connection", "/api/2.0/mcp/test"):
            http.post(path, json=tool)
    assert not mark.exists()


def test_guardrails_look_at_every_way_to_an_endpoint(live: Live) -> None:
    """CVE-2026-12797: keywords were looked for in one kind of call, and the ordinary one was another."""
    side = {"invalid_keywords": ["nightfall"]}
    with live.client() as admin:
        policy = {"guardrails": {"input": side, "output": side}}
        admin.put("/api/2.0/serving-endpoints/assistant/ai-gateway", json=policy).raise_for_status()
        try:
            text = "Tell me of NIGHT\u200bFALL"
            messages = [{"role": "user", "content": text}]
            parts = [{"role": "user", "content": [{"type": "text", "text": text}]}]
            ways = [
                ("/v1/chat/completions", {"messages": messages}),
                ("/v1/chat/completions", {"messages": messages, "stream": True}),
                ("/v1/chat/completions", {"messages": parts}),
                ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": text}, *CHAT["messages"]]}),
                ("/v1/responses", {"input": text}),
                ("/v1/responses", {"input": text, "stream": True}),
                ("/v1/responses", {"input": "hello", "instructions": text}),
                ("/v1/completions", {"prompt": text}),
                ("/serving-endpoints/assistant/invocations", {"messages": messages}),
                ("/serving-endpoints/assistant/invocations", {"input": messages}),
            ]
            for path, body in ways:
                answer = admin.post(path, json={"model": "assistant", **body})
                assert answer.status_code == 400, (path, body, answer.status_code, answer.text)
                assert "CONTENT_FILTER" in answer.text or "invalid_keywords" in answer.text, (path, answer.text)
        finally:
            admin.put("/api/2.0/serving-endpoints/assistant/ai-gateway", json={}).raise_for_status()


def test_no_answer_is_another_callers(tmp_path: Path) -> None:
    """CVE-2026-89032: answers were kept to be given again, and on some paths, Responses among them, to another tenant."""
    messages = [{"role": "user", "content": "What is my balance?"}]
    ways = [
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/responses", {"input": messages}),
        ("/ai-gateway/openai/v1/responses", {"input": messages, "metadata": {"user_api_key": "bob"}}),
        ("/serving-endpoints/echo/invocations", {"messages": messages, "prompt_cache_key": "balance", "user": "bob"}),
    ]
    with house(tmp_path) as made, serving_app(made.app) as url:
        keys = {name: made.key(name, "endpoint:echo") for name in ("bob", "eve")}
        for path, body in ways:
            told = []
            for name in ("bob", "eve", "eve"):
                headers = {"authorization": f"Bearer {keys[name]}"}
                answer = httpx.post(f"{url}{path}", json={"model": "echo", **body}, headers=headers, trust_env=False)
                told.append(answer.raise_for_status().json()["id"])
                if path.endswith("responses") and name == "eve":
                    for other, status in ((told[0], 404), (told[-1], 200)):
                        assert httpx.get(f"{url}/v1/responses/{other}", headers=headers, trust_env=False).status_code == status
            assert len(set(told)) == 3
        asked = [call.caller.name for call in made.ran if call.caller]
        assert asked == ["bob", "eve", "eve"] * len(ways)


def raw(live: Live, head: str, body: bytes) -> int:
    """The status that bytes are answered with, as they are."""
    host, _, port = live.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        with connection.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def test_no_way_of_writing_a_request_reaches_what_was_not_granted(live: Live, alice: str, elsewhere: Listener) -> None:
    """Smuggling: another name, path, method, length, coding or header than the one that was checked."""
    name, heard = f"hidden-{uuid.uuid4().hex[:8]}", len(elsewhere.heard)
    model = {"custom_provider_url": elsewhere.url, "bearer_token_auth": {"token_plaintext": "x"}}
    external = {"name": "m", "provider": "custom", "task": "llm/v1/chat", "custom_provider_config": model}
    with live.client() as admin:
        served = {"served_entities": [{"name": "m", "external_model": {**external, "private_network": True}}]}
        admin.post("/api/2.0/serving-endpoints", json={"name": name, "config": served}).raise_for_status()
        wait_until(lambda: "NOT_UPDATING" in admin.get(f"/api/2.0/serving-endpoints/{name}").text, 60)
    say = b'"messages": [{"role": "user", "content": "hello"}]'
    chat = b'{"model": "%s", %s}' % (name.encode(), say)
    both = b'{"model": "assistant", "model": "%s", %s}' % (name.encode(), say)
    cased = b'{"Model": "assistant", "model": "%s", %s}' % (name.encode(), say)
    chunks = b"%x\r\n%s\r\n0\r\nx-model: assistant\r\n\r\n" % (len(chat), chat)
    there = f"/serving-endpoints/{name}"
    base = f"HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {alice}"
    sized = f"{base}\r\ncontent-length: {len(chat)}"
    tries = [
        *((f"POST /v1/chat/completions?model=assistant {base}\r\ncontent-length: {len(b)}", b) for b in (chat, both, cased)),
        *(
            (f"POST {path} {sized}", chat)
            for path in (
                f"{there}/invocations",
                f"/serving-endpoints/%{ord(name[0]):x}{name[1:]}/invocations",
                f"/serving-endpoints/assistant/../{name}/invocations",
                f"/serving-endpoints/assistant%2f..%2f{name}/invocations",
                f"{there}./invocations",
                f"{there}%20/invocations",
                f"{there}%00/invocations",
                f"{there};a/invocations",
                f"{there}/invocations/",
                f"/{there}/invocations",
                f"{there.upper()}/invocations",
                f"http://127.0.0.1{there}/invocations",
            )
        ),
        *((f"{method} {there}/invocations {base}", b"") for method in ("HEAD", "OPTIONS", "TRACE", "GET")),
        (f"POST {there}/invocations {sized}\r\nx-http-method-override: GET\r\nx-original-url: /health", chat),
        (f"POST /health {sized}\r\nx-original-url: {there}/invocations\r\nx-rewrite-url: {there}/invocations", chat),
        (f"POST {there}/invocations {sized.replace('HTTP/1.1', 'HTTP/1.0')}", chat),
        (f"POST {there}/invocations {base}\r\ntransfer-encoding: chunked", chunks),
        (f"POST {there}/invocations {base}\r\ntransfer-encoding: chunked\r\ncontent-length: 5", chunks),
        (f"POST {there}/invocations {sized}\r\ncontent-length: 0", chat),
        (f"POST {there}/invocations {sized}\r\nx-forwarded-user: admin\r\nauthorization: Bearer {KEY}x", chat),
    ]
    for head, body in tries:
        assert 400 <= raw(live, head, body) < 500, head
    assert len(elsewhere.heard) == heard
    with live.client() as admin:
        admin.delete(f"/api/2.0/serving-endpoints/{name}")


def test_rows_are_ours_and_none_is_dropped_where_many_say_the_same_id(live: Live, alice: str) -> None:
    """Spend rows were keyed by the id that a provider or client gives, so that one overwrote the other, or lost in a flush."""
    before = len(rows(live))

    def ask(_: int) -> int:
        with client(live, alice, **{"x-request-id": "the-same"}) as http:
            return http.post("/v1/responses", json={"model": "assistant", "input": "?", "client_request_id": "same"}).status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(24))) == {200}
    found = [row for row in rows(live)[before:] if row["client_request_id"] == "same" and not row["parent_request_id"]]
    assert len(found) == len({row["databricks_request_id"] for row in found}) == 24


def test_every_change_of_a_policy_is_on_record(live: Live) -> None:
    """Who, when, before and after, whatever route it came by; and no secret."""
    custom = {
        "custom_provider_url": "http://127.0.0.1:9/v1",
        "bearer_token_auth": {"token_plaintext": "upstream-key-in-plain-text"},
    }
    external = {"name": "m", "provider": "custom", "task": "llm/v1/chat", "custom_provider_config": custom}
    served = {"served_entities": [{"name": each, "external_model": external} for each in ("a", "b")]}
    shares = {"routes": [{"served_entity_name": each, "traffic_percentage": 50} for each in ("a", "b")]}
    access = {"access_control_list": [{"user_name": "dave", "permission_level": "CAN_QUERY"}]}
    at, perms = "/api/2.0/serving-endpoints", "/api/2.0/permissions"
    with live.client() as admin:

        def recorded(method: str, path: str, body: Any = None) -> Any:
            newest = admin.get("/api/2.0/smalti/audit", params={"limit": 1, "sessions": True}).json()["entries"][0]["id"]
            answer = admin.request(method, path, json=body)
            assert answer.status_code == 200, (method, path, answer.text)
            entries = admin.get("/api/2.0/smalti/audit", params={"limit": 20, "sessions": True}).json()["entries"]
            made = [each for each in entries if each["id"] > newest]
            assert made, (method, path)
            assert all(each["actor"] == "admin" and each["time"] for each in made), made
            assert all(each["before"] != each["after"] for each in made), made
            return answer.json()

        recorded("POST", at, {"name": "recorded", "config": {**served, "traffic_config": shares}})
        wait_until(lambda: admin.get(f"{at}/recorded").json()["state"]["config_update"] == "NOT_UPDATING")
        shares["routes"][0]["traffic_percentage"], shares["routes"][1]["traffic_percentage"] = 90, 10
        recorded("PUT", f"{at}/recorded/config", {"traffic_config": shares})
        recorded("PATCH", f"{at}/recorded/tags", {"add_tags": [{"key": "k", "value": "v"}]})
        recorded("PUT", f"{at}/recorded/ai-gateway", {"rate_limits": [{"calls": 5, "renewal_period": "minute"}]})
        recorded("PUT", f"{at}/recorded/rate-limits", {"rate_limits": [{"calls": 6, "renewal_period": "minute"}]})
        recorded("PATCH", f"{perms}/serving-endpoints/recorded", access)
        recorded("PUT", f"{perms}/serving-endpoints/recorded", {"access_control_list": []})
        recorded("DELETE", f"{at}/recorded")
        key = recorded("POST", "/api/2.0/smalti/keys", {"name": "dave"})
        recorded("POST", f"/api/2.0/smalti/keys/{key['id']}/rotate")
        recorded("DELETE", f"/api/2.0/smalti/keys/{key['id']}")
        recorded("PUT", "/api/2.0/smalti/principals/dave/groups", {"groups": ["crew"]})
        token = recorded("POST", "/api/2.0/token/create", {"comment": "x"})["token_info"]["token_id"]
        recorded("POST", "/api/2.0/token/delete", {"token_id": token})
        recorded("POST", "/api/2.0/secrets/scopes/create", {"scope": "recorded"})
        recorded("POST", "/api/2.0/secrets/acls/put", {"scope": "recorded", "principal": "dave", "permission": "READ"})
        recorded("POST", "/api/2.0/secrets/acls/put", {"scope": "recorded", "principal": "dave", "permission": "WRITE"})
        recorded("POST", "/api/2.0/secrets/acls/delete", {"scope": "recorded", "principal": "dave"})
        recorded("POST", "/api/2.0/secrets/scopes/delete", {"scope": "recorded"})
        row_access = "/api/2.0/smalti/indexes/main.default.docs/row-access"
        recorded("PUT", row_access, {"column": "folder"})
        recorded("DELETE", row_access)
        told = admin.get("/api/2.0/smalti/audit", params={"limit": 100, "sessions": True}).text
    assert "upstream-key-in-plain-text" not in told
    assert key["key"] not in told


def test_no_secret_is_written_or_told(live: Live, alice: str) -> None:
    """Keys and what a client hands on are in no row, log, metric or answer."""
    handed = "sk-handed-on-by-a-client-0123456789"
    tool = {"type": "mcp", "server_label": "x", "server_url": "https://x.test", "headers": {"authorization": f"Bearer {handed}"}}
    with client(live, alice) as http:
        told = [
            http.post("/v1/responses", json={"model": "assistant", "input": f"my key is {alice}"}).text,
            http.post("/v1/responses", json={"model": "assistant", "input": "hello", "tools": [tool]}).text,
            http.post("/v1/responses", json={"model": alice, "input": "hello"}).status_code,
            http.get(f"/v1/models/{handed}").status_code,
        ]
    with live.client() as admin:
        metrics = admin.get("/metrics").text
    assert told
    rows(live)
    written = everything_written(live) + metrics.encode()
    assert metrics
    assert alice.encode() not in written
    assert KEY.encode() not in written
    assert handed.encode() not in written


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("model", "messages", "input", "tools", "tool_choice", "stream", "max_tokens", "metadata", "response_format", "stop")
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", "/serving-endpoints/assistant/invocations")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), changed=st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=3))
def test_no_body_is_answered_500(live: Live, alice: str, path: str, changed: dict[str, Any]) -> None:
    body = json.dumps({**CHAT, "input": "hello", "prompt": "hello", **changed}).encode()
    with client(live, alice) as http:
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code < 500, (path, changed, answer.text)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), raw=st.binary(max_size=200), kind=st.sampled_from(["application/json", "text/plain", "x"]))
def test_no_bytes_are_answered_500(live: Live, alice: str, path: str, raw: bytes, kind: str) -> None:
    with client(live, alice) as http:
        assert 400 <= http.post(path, content=raw, headers={"content-type": kind}).status_code < 500
